"""Whether LoRA adapters and merges fit the base that they are added to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from server.engine.checks.tensors import Tensor
from server.engine.members import Member, Members
from server.errors import ConfigError

Tensors = Mapping[str, Tensor]
PREFIX = "base_model.model."

# Settings of PEFT's LoRA that make it more than W + scaling * B A, and how to do without them.
UNSUPPORTED = {
    "use_dora": "train without DoRA",
    "modules_to_save": "train without modules_to_save",
    "lora_bias": "train with lora_bias false",
    "rank_pattern": "train with one rank for all modules",
    "alpha_pattern": "train with one lora_alpha for all modules",
    "trainable_token_indices": "train without new token embeddings",
    "target_parameters": "name modules in target_modules instead",
    "layer_replication": "train without layer replication",
    "use_qalora": "train without QALoRA",
    "use_bdlora": "train without BD-LoRA",
    "alora_invocation_tokens": "train without activated LoRA",
    "arrow_config": "train without Arrow routing",
    "kasa_config": "train without KaSA",
    "monteclora_config": "train without MonteCLoRA",
    "velora_config": "train without VeLoRA",
}
# Initialisations that change the base's weights too.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_settings(member: Member) -> dict[str, Any]:
    """Return an adapter's settings.

    Raises:
        ConfigError: there are none, or they ask for what is not served.
    """
    path = member.folder / "adapter_config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "; it is a whole model, so name it under 'model'" if (member.folder / "config.json").is_file() else ""
        raise ConfigError(f"{member.where}: {member.folder} has no adapter_config.json{hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{member.where}: {path} is not readable JSON: {error}") from None
    method = settings.get("peft_type")
    if method != "LORA":
        raise ConfigError(f"{member.where}: the adapter is of type {method}; only LORA adapters are served")
    for key, remedy in UNSUPPORTED.items():
        if settings.get(key):
            raise ConfigError(f"{member.where}: the adapter uses {key}, which is not served; {remedy}")
    if settings.get("bias", "none") != "none":
        raise ConfigError(f"{member.where}: the adapter trains biases ({settings['bias']}); train with bias 'none'")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ConfigError(
            f"{member.where}: the adapter started from {start}, which changes the base's weights too; save it as a "
            "plain LoRA adapter (PEFT: path_initial_model_for_weight_conversion)"
        )
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), int | float) or settings[key] <= 0:
            raise ConfigError(f"{member.where}: {path}: {key} must be a number above 0, not {settings.get(key)!r}")
    return settings


def check_adapters(
    members: Members, settings: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensors]
) -> list[str]:
    """Check every adapter against the base's tensors and return remarks that are no faults.

    Args:
        members: all of them.
        settings: what `read_settings` returned, by member name.
        tensors: models' and adapters', by member name.

    Raises:
        ConfigError: an adapter does not fit.
    """
    remarks = []
    for member in members.experts:
        if member.kind == "adapter":
            base = members.needed_base
            _refuse_quantised(base, member)
            _check_tensors(member, settings[member.name], tensors[base.name], tensors[member.name])
            trained_over = settings[member.name].get("base_model_name_or_path")
            ours = {str(base.folder), base.folder.name, base.hub_id}
            if trained_over and trained_over not in ours and trained_over.rstrip("/").split("/")[-1] not in ours:
                remarks.append(f"{member.name}: the adapter says it was trained over '{trained_over}'; its shapes fit")
    return remarks


def check_merges(members: Members, tensors: Mapping[str, Tensors]) -> None:
    """Check that each model of a merge has exactly the base's tensors; `tensors` are by member name.

    Raises:
        ConfigError: names or shapes differ, or a model is quantised or not in safetensors.
    """
    for merge in members.experts:
        for _, part in merge.parts:
            base = members.needed_base
            _refuse_quantised(base, merge)
            if part.kind == "model":
                _refuse_quantised(part, merge)
                _check_same(merge, part, tensors[base.name], tensors[part.name])


def _check_same(merge: Member, part: Member, base: Tensors, ours: Tensors) -> None:
    if not any(part.folder.glob("*.safetensors")) and part.hub_id is None:
        raise ConfigError(
            f"{merge.where}: '{part.name}' has no safetensors weights; save it in that format to merge it"
        )
    missing, extra = sorted(base.keys() - ours.keys()), sorted(ours.keys() - base.keys())
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]} besides"
        raise ConfigError(f"{merge.where}: '{part.name}' cannot be merged over the base: its model {what}")
    for name, tensor in base.items():
        if ours[name].shape != tensor.shape:
            raise ConfigError(
                f"{merge.where}: '{part.name}' cannot be merged over the base: {name} is {list(ours[name].shape)} "
                f"there and {list(tensor.shape)} in the base"
            )


def _refuse_quantised(model: Member, expert: Member) -> None:
    if model.quantisation is not None:
        raise ConfigError(
            f"{expert.where}: '{model.name}' is quantised ({model.quantisation}), and nothing can be added to "
            "quantised weights; name the model as it was before quantisation"
        )


def _check_tensors(member: Member, settings: Mapping[str, Any], base: Tensors, ours: Tensors) -> None:
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in ours.items():
        module, _, side = name.removesuffix(".weight").rpartition(".")
        if not name.startswith(PREFIX) or side not in ("lora_A", "lora_B") or not name.endswith(".weight"):
            raise ConfigError(f"{member.where}: the adapter holds {name}, which is no plain LoRA matrix")
        modules.setdefault(module.removeprefix(PREFIX), {})[side] = tensor
    if not modules:
        raise ConfigError(f"{member.where}: the adapter holds no LoRA matrices")
    for module, sides in modules.items():
        target = base.get(f"{module}.weight")
        if target is None:
            raise ConfigError(f"{member.where}: the adapter changes {module}, which the base does not have")
        if len(sides) != 2:
            missing = "lora_A" if "lora_B" in sides else "lora_B"
            raise ConfigError(f"{member.where}: the adapter lacks {missing} of {module}")
        down, up = sides["lora_A"].shape, sides["lora_B"].shape
        if down[0] != settings["r"] or up[1] != settings["r"]:
            raise ConfigError(
                f"{member.where}: {module} has rank {down[0]}, but adapter_config.json says r = {settings['r']}"
            )
        product = (up[0], down[1])
        if (product[::-1] if settings.get("fan_in_fan_out") else product) != target.shape:
            raise ConfigError(
                f"{member.where}: the adapter does not fit the base: {module} is {list(target.shape)} in the base and "
                f"{list(product)} in the adapter; it was trained over another model"
            )
