"""Models from GGUF files: converted to a folder in the Hugging Face format once, and found there from then on.

Transformers reads the file: the architectures that it knows, the quantisations of llama.cpp, whose weights become
bfloat16 numbers. Other runtimes keep them quantised and so answer slightly otherwise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from server.errors import ConfigError


def converted(where: str, file: Path) -> Path:
    """The folder that holds a GGUF file's model, its configuration and its tokenizer.

    Raises:
        ConfigError: the extra `gguf` is not installed, or Transformers does not read the file.
    """
    status = file.stat()
    version = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = _cache() / f"{file.stem}-{version}"
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None or find_spec("accelerate") is None:
        raise ConfigError(
            f"{where}: {file} is a GGUF file, and the packages that convert it are not installed: "
            "pip install logit-fusion[gguf], or gguf and accelerate"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _convert(file, made)
        made.rename(folder)
    except Exception as error:  # libraries on the way raise errors of every kind
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{where}: {file} cannot be converted: {reason}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    # The weights are numbers again, but Transformers 5 goes on calling the model quantised, and does not save it.
    state, config = model.state_dict(), model.config
    del config.quantization_config
    plain = auto.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(state)
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "logit-fusion" / "gguf"
