"""The text model inside a multimodal checkpoint: its configuration, and its weights' names.

Everywhere else such a checkpoint is a text model like any other; what reads images or sound in it is left out, and with
it the libraries that vLLM's classes for it need.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Text models to which Transformers gives no class of their own: vLLM 0.32 builds these in its multimodal classes.
_CLASSES = {
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
    "qwen3_vl_moe_text": "Qwen3MoeForCausalLM",
}
# How the text model's names begin in a multimodal checkpoint, as published and as Transformers 5 saves it.
PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.text_model.": "model.",
}
_PLAIN = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")


def text_part(hf_config: PreTrainedConfig, folder: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint's text model: the whole one of a text model, or where there is no such part."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text: PreTrainedConfig = hf_config.get_text_config()
    name = _CLASSES.get(text.model_type) or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
    if text is hf_config or hf_config.is_encoder_decoder or name is None:
        return hf_config
    text = deepcopy(text)
    text.architectures = [name if isinstance(name, str) else name[0]]
    # Of what the whole configuration says, this is about the text model.
    for key in ("quantization_config", "dtype"):
        value = getattr(hf_config, key, None)
        if value is not None:
            setattr(text, key, value)
    # The two configurations may contradict each other here; the files do not.
    names = _tensor_names(folder)
    tied: bool = "lm_head.weight" not in map(text_name, names) if names else hf_config.tie_word_embeddings
    text.tie_word_embeddings = tied
    # Images have positions of three dimensions; in a text all three are the same.
    for rope in (getattr(text, "rope_parameters", None), getattr(text, "rope_scaling", None)):
        if isinstance(rope, dict) and rope.pop("mrope_section", None) is not None:
            rope.pop("mrope_interleaved", None)
            for key in ("type", "rope_type"):
                rope.update({key: "default"} if rope.get(key) == "mrope" else {})
    return text


def text_name(name: str) -> str | None:
    """A tensor's or module's name in the text model; `None` where it is no part of it."""
    for prefix, plain in PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name if name.startswith(_PLAIN) else None


def _tensor_names(folder: Path) -> Iterable[str]:
    """Those of a model's safetensors files; none where it has others, or is not downloaded yet."""
    index = folder / "model.safetensors.index.json"
    # What is wrong with a file is told where its tensors are checked.
    with contextlib.suppress(SafetensorError, OSError, ValueError, KeyError, AttributeError):
        if index.is_file():
            names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return names.keys()
        files: list[Any] = [safe_open(path, framework="pt") for path in folder.glob("*.safetensors")]
        return [name for file in files for name in file.keys()]  # noqa: SIM118 (not a dict)
    return ()
