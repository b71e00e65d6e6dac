"""Whether LoRA adapters and merges fit the base that they are added to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from server.engine.adapter import LINEAR, Change, read_changes
from server.engine.checks.tensors import Tensor, read_tensors
from server.engine.members import Member, Members
from server.errors import ConfigError

Tensors = Mapping[str, Tensor]
# Settings of PEFT's LoRA that no sum of weights makes up for.
UNSUPPORTED = (
    "target_parameters",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
# Initialisations that change the base's weights too.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
MERGE = (
    "merge it and name the result under 'model': model = PeftModel.from_pretrained(AutoModelForCausalLM"
    ".from_pretrained(BASE), ADAPTER).merge_and_unload(); model.save_pretrained(FOLDER)"
)


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
    for key in UNSUPPORTED:
        if settings.get(key):
            raise ConfigError(f"{member.where}: the adapter uses {key}, which is not served; {MERGE}")
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
        if member.kind == "adapter" and not member.spare:
            base = members.needed_base
            _refuse_quantised(base, member)
            _check_tensors(member, settings[member.name], base, tensors[base.name], tensors[member.name])
            trained_over = settings[member.name].get("base_model_name_or_path")
            ours = {str(base.folder), base.folder.name, base.hub_id}
            if trained_over and trained_over not in ours and trained_over.rstrip("/").split("/")[-1] not in ours:
                remarks.append(f"{member.name}: the adapter says it was trained over '{trained_over}'; its shapes fit")
    return remarks


def check_part(part: Member, of: Member, theirs: Tensors) -> Tensors:
    """Check a mixture's part against its model `of`, which has tensors `theirs`, and return the part's tensors.

    Raises:
        ConfigError: it does not fit, or cannot be mixed in for each request.
    """
    _refuse_quantised(of, part)
    settings, ours = read_settings(part), read_tensors(part)
    _check_tensors(part, settings, of, theirs, ours)
    if not shares_weights(of, settings, ours):
        raise ConfigError(
            f"{part.where}: parts are plain LoRA over the attention's and the MLP's projections of a dense model; this "
            "one changes more, or the model is a mixture of experts or has latent attention"
        )
    return ours


def check_spares(members: Members) -> None:
    """Check that adapters can be loaded over the base while the server serves.

    Raises:
        ConfigError: its layers cannot run for them too.
    """
    spare = next((member for member in members.experts if member.spare), None)
    if spare is not None:
        base = members.needed_base
        _refuse_quantised(base, spare)
        if base.is_sparse or base.is_latent:
            what = "is a mixture of experts" if base.is_sparse else "has latent attention"
            raise ConfigError(f"adapters: the base {what}; adapters over it can only be merged, at the start")


def spare_parameters(tensors: Tensors, rank: int) -> int:
    """What an adapter of this rank has for all linear layers of a base with these tensors."""
    return sum(rank * sum(tensor.shape) for name, tensor in tensors.items() if LINEAR.search(name))


def shares_weights(base: Member, settings: Mapping[str, Any], tensors: Tensors) -> bool:
    """Whether an adapter is plain LoRA over linear layers of the base's, which can then run for both at once.

    Else its experts are the base's weights and the changes, merged once when they load. So they are where the base is
    a mixture of experts or has latent attention.
    """
    if base.is_sparse or base.is_latent:
        return False
    changes = read_changes(settings, tensors, base.multimodal)
    return all(change.parts.keys() == {"down", "up"} and LINEAR.search(name) for name, change in changes.items())


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


def _check_tensors(member: Member, settings: Mapping[str, Any], base: Member, theirs: Tensors, ours: Tensors) -> None:
    try:
        changes = read_changes(settings, ours, base.multimodal)
    except ValueError as error:
        raise ConfigError(f"{member.where}: the adapter holds {error}, which is no part of LoRA; {MERGE}") from None
    if not changes:
        raise ConfigError(f"{member.where}: the adapter holds no tensors")
    for name, change in changes.items():
        target = theirs.get(name)
        if target is None:
            raise ConfigError(f"{member.where}: the adapter changes {name}, which the base does not have")
        # Trained rows are the same in both; PEFT sees to that.
        if base.text_config.tie_word_embeddings and change.module.endswith(EMBEDDINGS) and "rows" not in change.parts:
            raise ConfigError(
                f"{member.where}: the adapter changes {name}, but the base uses one matrix for its embeddings and its "
                f"head (tie_word_embeddings); {MERGE}, with tie_word_embeddings false in its config.json"
            )
        _check_change(member, name, change, target.shape, {part: ours[key].shape for part, key in change.parts.items()})


def _check_change(
    member: Member, name: str, change: Change, target: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for side, other, module in (
        ("down", "up", "lora_B"),
        ("up", "down", "lora_A"),
        ("embedding_down", "embedding_up", "lora_embedding_B"),
        ("embedding_up", "embedding_down", "lora_embedding_A"),
    ):
        if side in shapes and other not in shapes:
            raise ConfigError(f"{member.where}: the adapter lacks {module} of {change.module}")
    down, up = (shapes.get(side, shapes.get(f"embedding_{side}")) for side in ("down", "up"))
    expected = {
        "saved": target,
        "added": target,
        "rows": (len(change.token_ids), *target[1:]),
        "magnitude": target[1:] if change.transposed else target[:1],
    }
    if down is not None and up is not None:
        if down[0] != change.rank or up[1] != change.rank:
            raise ConfigError(
                f"{member.where}: {change.module} has rank {down[0]}, but adapter_config.json says {change.rank}"
            )
        shapes = {**shapes, "product": (down[1], up[0]) if change.transposed else (up[0], down[1])}
        expected["product"] = target
    for part, shape in shapes.items():
        if part in expected and shape != expected[part]:
            raise ConfigError(
                f"{member.where}: the adapter does not fit the base: for {name}, {list(target)} in the base, it has "
                f"{list(shape)}; it was trained over another model, or one with added tokens"
            )
    last = max(change.token_ids, default=0)
    if last >= target[0]:
        raise ConfigError(f"{member.where}: the adapter trains the token {last}, and the base has {target[0]}")
