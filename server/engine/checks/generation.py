"""Which sampling settings requests get that do not name them: those of the large model's generation_config.json.

vLLM applies them as its argument `generation_config` says: `auto` takes the large model's file, `vllm` none, a folder
that folder's; `override_generation_config` is laid over it. The other members' files are never read. What the file says
of special tokens (where an answer ends) belongs to the model and is taken in every case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.transformers_utils.config import try_get_generation_config

from server.engine.members import Member
from server.errors import ConfigError

# As vLLM 0.32 `ModelConfig.get_diff_sampling_param`: names in the file, and those of requests.
NAMES = {
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}
# At temperature 0 vLLM leaves out all other settings but still applies these.
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


def sampling_defaults(large: Member, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what requests get that leave it out, by their fields' names; empty where vLLM's own defaults hold.

    Raises:
        ConfigError: `engine.generation_config` names a folder without such a file.
    """
    source = engine.get("generation_config") or "auto"
    found: dict[str, Any] = {}
    if source != "vllm":
        folder = str(large.folder) if source == "auto" else source
        try:
            config = try_get_generation_config(folder, trust_remote_code=False)
        except ValueError:  # nothing there at all; vLLM would end with a page of hints
            raise ConfigError(
                f"engine.generation_config: '{source}' has no generation_config.json; it should be auto, vllm, or a "
                "folder that has one"
            ) from None
        found = config.to_diff_dict() if config is not None else {}
    found |= engine.get("override_generation_config") or {}
    return {field: found[name] for name, field in NAMES.items() if found.get(name) is not None}


def describe_defaults(defaults: Mapping[str, Any], engine: Mapping[str, Any]) -> str:
    """Return the sentence that says where the defaults come from and what turns them off; empty without any."""
    if not defaults:
        return ""
    source = engine.get("generation_config") or "auto"
    override = engine.get("override_generation_config")
    files = {"auto": "the large model's generation_config.json", "vllm": ""}
    file = files.get(source, f"generation_config.json in {source}")
    origin = " and ".join(filter(None, [file, "engine.override_generation_config" if override else ""]))
    listed = ", ".join(f"{name} {value}" for name, value in defaults.items())
    sentence = f"requests that leave them out get, from {origin}: {listed}"
    if any(defaults.get(name, neutral) != neutral for name, neutral in PENALTIES.items()):
        sentence += "; the penalties hold at temperature 0 too, whose answers are then not the likeliest tokens"
    return sentence + ("" if source == "vllm" else " (engine.generation_config: vllm takes none of the file's)")
