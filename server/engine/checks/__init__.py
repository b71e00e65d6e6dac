"""All that can be said about the members before their weights load: do they fit together, and what do they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from server.config import Config
from server.engine.checks.adapters import (
    check_adapters,
    check_merges,
    check_part,
    check_spares,
    read_settings,
    shares_weights,
    spare_parameters,
)
from server.engine.checks.architecture import (
    DTYPE_BYTES,
    Architecture,
    check_architecture,
    check_side_by_side,
    kv_dtype_bytes,
    resolve_dtype,
)
from server.engine.checks.ends import find_ends
from server.engine.checks.generation import describe_defaults, sampling_defaults
from server.engine.checks.quantised import check_quantised
from server.engine.checks.routers import check_routers
from server.engine.checks.templates import own_templates
from server.engine.checks.tensors import FLOATS, Tensor, read_tensors
from server.engine.checks.vocabulary import check_vocabularies, read_vocabularies
from server.engine.members import Member, Members, resolve_members
from server.engine.pairs import Pairs
from server.engine.settings import SIDES
from server.errors import ConfigError

__all__ = ["MemberReport", "Report", "check_members"]


@dataclass(frozen=True)
class MemberReport:
    """What one member is and costs."""

    member: Member
    architecture: Architecture
    parameters: int
    weight_bytes: int
    """As served: floating-point tensors in the engine's number format, quantised ones as stored; 0 of another member's
    weights."""
    read_bytes: int
    """What a step of it reads: the weights, whoever's they are."""
    kv_bytes_per_token: int

    def as_dict(self) -> dict[str, Any]:
        """What it is and costs, as JSON can say it."""
        return {
            "name": self.member.name,
            "role": self.member.role,
            "kind": self.member.kind,
            "architecture": self.architecture.name,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "layers": self.architecture.layers,
            "kv_bytes_per_token": self.kv_bytes_per_token,
        }


@dataclass(frozen=True)
class Report:
    """What the checks found out about a configuration that passed them."""

    config: Config
    """The configuration, with `engine.max_model_len` set: vLLM alone would take the large model's limit."""
    members: Members
    reports: tuple[MemberReport, ...]
    """One for each member that has a KV cache: large, base, experts in the configuration's order, and those again that
    read prompts of their own with another member's weights."""
    vocabulary: int
    """How many ids the shared tokenizer has."""
    max_model_len: int
    """The engine's setting, or else the smallest member's limit."""
    dtype: str
    sampling_defaults: dict[str, Any]
    """What requests get that leave it out, by their fields' names; where empty, vLLM's own defaults hold."""
    remarks: tuple[str, ...]
    """What may surprise but is no fault."""
    templates: dict[int, str] = field(default_factory=dict)
    """Chat templates of the members that write their own prompts, by the members' numbers."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all members' weights."""
        return sum(report.weight_bytes for report in self.reports)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache bytes that one token takes in all members together."""
        return sum(report.kv_bytes_per_token for report in self.reports)

    @property
    def _listed(self) -> list[MemberReport]:
        """Also the experts that are another member under the request's prompt, and cost nothing."""
        found = {report.member.name: report for report in self.reports}
        missing = [expert for expert in self.members.experts if expert.name not in found and expert.of is not None]
        free = [
            replace(found[expert.of.name], member=expert, weight_bytes=0, read_bytes=0, kv_bytes_per_token=0)
            for expert in missing
            if expert.of is not None
        ]
        return [*self.reports, *free]

    def _own_prompts(self, member: Member) -> list[str]:
        """The sides of an expert's pair for which a request may give prompts."""
        names = list(self.config.experts)
        if member.name not in names:
            return []
        pair = Pairs(self.config).own(names.index(member.name))
        return [side for side, number in zip(SIDES, pair, strict=True) if number >= 0]

    def as_dict(self) -> dict[str, Any]:
        """The members, and the presets over them, as JSON can say it."""
        return {
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "vocabulary": self.vocabulary,
            "sampling_defaults": self.sampling_defaults,
            "members": [
                report.as_dict() | {"own_prompts": self._own_prompts(report.member)} for report in self._listed
            ],
            "presets": {name: _described(name, self.config) for name in self.config.presets},
        }


def _described(name: str, config: Config) -> dict[str, Any]:
    """A preset as clients see it: no file's name. One that splits is described as the one with the largest share."""
    split = config.presets[name].split
    shown = config.presets[config.arms(name)[0] if split is None else max(split, key=split.__getitem__)]
    said = shown.model_dump(exclude={"prompts", "route", "top", "split", "sticky", "shadow"})
    if split is not None:
        said["split"] = split
    return said if shown.route is None else said | {"routed": True, "top": shown.top}


def check_members(config: Config) -> Report:
    """Check that the members can be served together. Reads settings, tokenizers and weight headers; loads no weights.

    Raises:
        ConfigError: they cannot; the message says which member is at fault, and what would be right.
    """
    config = config.with_spares()
    members = resolve_members(config)
    check_spares(members)
    dtype = resolve_dtype(members.large, config.engine)
    # First what each member is, then whether they go together.
    architectures = {member.name: check_architecture(member, config.engine, dtype) for member in members.all}
    vocabularies = read_vocabularies(members)
    stored = [member for member in members.loaded if member.kind != "merge" and not member.spare]
    parts = {part.where: (member, part) for member in members.loaded for part in member.mixture}
    settings = {member.name: read_settings(member) for member in stored if member.kind == "adapter"}
    tensors = {member.name: read_tensors(member) for member in stored}
    check_side_by_side(members, config.engine)
    remarks = check_vocabularies(members, vocabularies)
    members, ends = find_ends(config, members, vocabularies)
    max_model_len = _max_model_len(members, architectures, config.engine)
    remarks += ends
    remarks += check_adapters(members, settings, tensors)
    members = _sharing(members, settings, tensors)
    part_tensors = {where: check_part(part, member, tensors[member.name]) for where, (member, part) in parts.items()}
    check_merges(members, tensors)
    for member in stored:
        if member.kind == "model":
            check_quantised(member, tensors[member.name], dtype)
    defaults = sampling_defaults(members.large, config.engine)
    remarks += filter(None, [describe_defaults(defaults, config.engine)])
    kv_bytes = kv_dtype_bytes(config.engine, dtype)
    reports = []
    for member in members.all:
        own = member.shares_weights and not member.spare
        held = tensors[member.name if own else members.shape_of(member).name]
        architecture = architectures[member.name]
        parameters, read_bytes = _weigh(member, held, dtype)
        if member.spare and config.adapters is not None:
            parameters = spare_parameters(held, config.adapters.max_rank)
            read_bytes = parameters * DTYPE_BYTES[dtype]
        for part in member.mixture:
            of_part = sum(tensor.parameters for tensor in part_tensors[part.where].values())
            parameters, read_bytes = parameters + of_part, read_bytes + of_part * DTYPE_BYTES[dtype]
        weight_bytes = 0 if member.of is not None else read_bytes
        kv_bytes_per_token = architecture.kv_bytes_per_token(kv_bytes)
        reports.append(MemberReport(member, architecture, parameters, weight_bytes, read_bytes, kv_bytes_per_token))
        if member.multimodal and member.kind == "model":
            remarks.append(f"{member.name}: served as a text model; its parts that read images or sound are left out")
        formats = {tensor.dtype for tensor in held.values() if tensor.dtype in FLOATS}
        if dtype != "float32" and formats == {"F32"} and member.kind == "model":
            remarks.append(f"{member.name}: stored in float32, served in {dtype} (engine.dtype)")
    config = config.model_copy(update={"engine": {**config.engine, "max_model_len": max_model_len}})
    vocabulary = vocabularies[members.large.name].size
    templates = own_templates(config, members)
    check_routers(config, members)
    return Report(
        config, members, tuple(reports), vocabulary, max_model_len, dtype, defaults, tuple(remarks), templates
    )


def _sharing(
    members: Members, settings: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Mapping[str, Tensor]]
) -> Members:
    """The members, with the adapters marked for which the base's own layers run."""
    marked = [
        replace(expert, shares_weights=shares_weights(members.needed_base, settings[expert.name], tensors[expert.name]))
        if expert.kind == "adapter" and not expert.spare
        else expert
        for expert in members.experts
    ]
    return replace(members, experts=tuple(marked))


def _weigh(member: Member, tensors: Mapping[str, Tensor], dtype: str) -> tuple[int, int]:
    """Return the parameters and bytes of a member as served."""
    quantised = member.quantisation is not None
    parameters = weight_bytes = 0
    tied = member.text_config.tie_word_embeddings
    for name, tensor in tensors.items():
        if tied and name == "lm_head.weight":
            continue  # a copy of the embeddings that vLLM does not keep
        parameters += tensor.parameters
        as_served = not quantised and tensor.dtype in FLOATS
        weight_bytes += tensor.parameters * DTYPE_BYTES[dtype] if as_served else tensor.bytes
    return parameters, weight_bytes


def _max_model_len(members: Members, architectures: Mapping[str, Architecture], engine: Mapping[str, Any]) -> int:
    limits = {m.name: limit for m in members.all if (limit := architectures[m.name].max_length) is not None}
    smallest = min(limits, key=lambda name: limits[name], default=None)
    asked = engine.get("max_model_len")
    if asked is None:
        if smallest is None:
            raise ConfigError("engine.max_model_len is needed: no member's config.json bounds its context")
        return limits[smallest]
    if asked < 1:
        raise ConfigError(f"engine.max_model_len must be 1 or more, not {asked}; leave it out for the longest possible")
    if smallest is not None and asked > limits[smallest]:
        raise ConfigError(
            f"engine.max_model_len is {asked}, but {smallest} reads {limits[smallest]} tokens at most; "
            f"{limits[smallest]} is the largest value that works"
        )
    return int(asked)
