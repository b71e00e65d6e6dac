"""The members of a fused model: what each is, where its files lie, and its architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from server.config import Config
from server.config.adapters import is_spare
from server.config.schema import LARGE
from server.config.source import GGUF
from server.config.speculation import BASE
from server.engine.gguf import converted
from server.engine.pairs import Pairs
from server.engine.settings import BASE as BASE_NUMBER
from server.engine.text_part import text_part
from server.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Role = Literal["large", "base", "expert", "against"]
Kind = Literal["model", "adapter", "merge", "use"]

# Everything that is small: settings, tokenizers, chat templates. Weights come after the checks.
SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
WEIGHT_FILES = ["*.safetensors", "*.bin"]


@dataclass(frozen=True)
class Member:
    """One model of the fused whole. An adapter or a merge has the base's architecture."""

    name: str
    role: Role
    kind: Kind
    where: str
    """The configuration's key that names it, for messages."""
    folder: Path
    """Its own files; for a merge, which has none, the base's."""
    hf_config: PreTrainedConfig
    """Of a multimodal model, that of its text model."""
    hub_id: str | None = None
    revision: str | None = None
    multimodal: bool = False
    """Whether its files hold more than the text model, which alone is served."""
    parts: tuple[tuple[float, Member], ...] = field(default=())
    """What a merge is made of: weights and experts."""
    mixture: tuple[Member, ...] = field(default=())
    """Adapters over this model that a router mixes for each request."""
    of: Member | None = None
    """Whose weights it uses, where it has none of its own."""
    shares_weights: bool = False
    """Of an adapter that has been checked: whether the base's layers run for it too (`server.engine.stack`)."""
    spare: bool = False
    """Whether it is an adapter that is loaded while the server serves, and the base until then."""
    end_ids: tuple[int, ...] = ()
    """Of an expert that has been checked: ids that end the answers which it steers."""

    @property
    def source(self) -> dict[str, Any]:
        """What the engine loads: `{"model": folder}`, `{"adapter": folder}` or `{"merge": [[weight, source], ...]}`.

        A mixture has its `parts` beside its model.
        """
        if self.kind == "merge":
            return {"merge": [[weight, part.source] for weight, part in self.parts]}
        found: dict[str, Any] = {self.kind: None if self.spare else str(self.folder), "multimodal": self.multimodal}
        if self.mixture:
            found["parts"] = {part.name: str(part.folder) for part in self.mixture}
        return found

    @property
    def text_config(self) -> PreTrainedConfig:
        """The part of its configuration that describes the text model."""
        config: PreTrainedConfig = self.hf_config.get_text_config()
        return config

    @property
    def vocabulary_rows(self) -> int:
        """For how many ids it has logits, padding included."""
        rows: int = self.text_config.vocab_size
        return rows

    @property
    def quantisation(self) -> str | None:
        """The method by which its weights are quantised, if they are."""
        settings = getattr(self.hf_config, "quantization_config", None)
        return None if not settings else str(settings.get("quant_method", "unknown"))

    @property
    def is_sparse(self) -> bool:
        """Whether it is a mixture of experts."""
        names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        return any(getattr(self.text_config, name, None) for name in names)

    @property
    def is_chunked(self) -> bool:
        """Whether its attention sees chunks of the text (Llama 4's), which begin at places of the request."""
        return getattr(self.text_config, "attention_chunk_size", None) is not None

    @property
    def is_latent(self) -> bool:
        """Whether it has multi-head latent attention (DeepSeek's)."""
        return getattr(self.text_config, "kv_lora_rank", None) is not None


@dataclass(frozen=True)
class Twin:
    """A member once more, with a KV cache of its own."""

    member: Member
    number: int
    of: int


@dataclass(frozen=True)
class Members:
    """All members, experts in the configuration's order; the base is `None` where nothing needs it."""

    large: Member
    base: Member | None
    experts: tuple[Member, ...]
    twins: tuple[Twin, ...] = ()

    @property
    def loaded(self) -> tuple[Member, ...]:
        """Large, base and the experts that have weights of their own."""
        base = () if self.base is None else (self.base,)
        return (self.large, *base, *(expert for expert in self.experts if expert.of is None))

    @property
    def all(self) -> tuple[Member, ...]:
        """Those, and the members that are one of them once more: all that have a KV cache."""
        return (*self.loaded, *(twin.member for twin in self.twins))

    @property
    def numbered(self) -> dict[int, Member]:
        """The small members by their numbers (`server.engine.settings`)."""
        base = {} if self.base is None else {BASE_NUMBER: self.base}
        experts = {1 + t: expert for t, expert in enumerate(self.experts) if expert.of is None}
        return {**base, **experts, **{twin.number: twin.member for twin in self.twins}}

    @property
    def needed_base(self) -> Member:
        """The base, where there are experts."""
        assert self.base is not None
        return self.base

    def shape_of(self, member: Member) -> Member:
        """The member as whose kind of model this one is served: the base's for an adapter or a merge."""
        if member.of is not None:
            return self.shape_of(member.of)
        return member if member.kind == "model" else self.needed_base


def resolve_members(config: Config) -> Members:
    """Find every member's folder, with settings and tokenizers downloaded but no weights, and read its architecture.

    Raises:
        ConfigError: a model cannot be found, or its config.json cannot be read.
    """
    large = _model("large", "large", "large.model", config.large.model, config.large.revision)
    base = None
    if config.base is not None:
        base = _model("base", "base", "base.model", config.base.model, config.base.revision)
    experts: dict[str, Member] = {}
    for name, expert in config.experts.items():
        where = f"experts.{name}.{expert.kind}"
        if expert.model is not None:
            whole = _model(name, "expert", where, expert.model, expert.revision)
            experts[name] = replace(whole, mixture=_parts(whole, expert.parts))
        elif is_spare(name):
            assert base is not None
            experts[name] = replace(
                base, name=name, role="expert", kind="adapter", where="adapters", shares_weights=True, spare=True
            )
        elif expert.adapter is not None:
            assert base is not None
            folder, hub_id = _fetch(where, expert.adapter, expert.revision, SMALL_FILES)
            experts[name] = replace(
                base,
                name=name,
                role="expert",
                kind="adapter",
                where=where,
                folder=folder,
                hub_id=hub_id,
                revision=expert.revision,
            )
    for name, expert in config.experts.items():
        if expert.merge is not None:
            parts = tuple((weight, experts[part]) for part, weight in expert.merge.items())
            where = f"experts.{name}.merge"
            assert base is not None
            experts[name] = replace(
                base, name=name, role="expert", kind="merge", where=where, hub_id=None, revision=None, parts=parts
            )
    named = {LARGE: large, BASE: base, **experts}
    for name, expert in config.experts.items():
        if expert.use is not None and (of := named[expert.use]) is not None:
            experts[name] = _once_more(of, name, f"experts.{name}.use")
    ordered = tuple(experts[name] for name in config.experts)
    return Members(large, base, ordered, _twins(config, large, base, ordered))


def _twins(config: Config, large: Member, base: Member | None, experts: Sequence[Member]) -> tuple[Twin, ...]:
    twins = []
    for t, number, of in Pairs(config).twins():
        expert = experts[t]
        if number == 1 + t:
            twins.append(Twin(expert, number, of))
        else:
            original = large if of < 0 else base if of == 0 else experts[of - 1]
            assert original is not None
            name = f"{expert.name} against {original.name}"
            member = _once_more(original, name, f"experts.{expert.name}.against")
            twins.append(Twin(replace(member, role="against"), number, of))
    return tuple(twins)


def _parts(of: Member, parts: Mapping[str, str]) -> tuple[Member, ...]:
    found = []
    for name, source in parts.items():
        where = f"experts.{of.name}.parts.{name}"
        folder, hub_id = _fetch(where, source, None, SMALL_FILES)
        part = replace(of, name=name, kind="adapter", where=where, folder=folder, hub_id=hub_id, revision=None)
        found.append(part)
    return tuple(found)


def _once_more(of: Member, name: str, where: str) -> Member:
    return replace(of, name=name, role="expert", kind="use", where=where, hub_id=None, revision=None, parts=(), of=of)


def fetch_weights(members: Members) -> None:
    """Download the weights of members on the hub into the folders that `resolve_members` named; local ones are there.

    Raises:
        ConfigError: a download fails.
    """
    for member in (*members.all, *(part for each in members.all for part in each.mixture)):
        if member.hub_id is not None:
            # One format is enough, and safetensors is the better one where both are offered.
            folder, _ = _fetch(member.where, member.hub_id, member.revision, WEIGHT_FILES[:1])
            if not any(folder.glob(WEIGHT_FILES[0])):
                _fetch(member.where, member.hub_id, member.revision, WEIGHT_FILES[1:])


def _model(name: str, role: Role, where: str, source: str, revision: str | None) -> Member:
    if source.endswith(GGUF):
        folder, hub_id = converted(where, Path(source)), None
    else:
        folder, hub_id = _fetch(where, source, revision, SMALL_FILES)
    hf_config = _hf_config(where, folder)
    text = text_part(hf_config, folder)
    return Member(name, role, "model", where, folder, text, hub_id, revision, multimodal=text is not hf_config)


def _fetch(where: str, source: str, revision: str | None, patterns: list[str]) -> tuple[Path, str | None]:
    """Return the folder of a source, and its id when it is on the hub."""
    if Path(source).is_absolute():
        return Path(source), None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = snapshot_download(source, revision=revision, allow_patterns=patterns)
    except RevisionNotFoundError:
        raise ConfigError(f"{where}: '{source}' on the hub has no revision '{revision}'") from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{where}: '{source}' is not on the hub, or not open to you (HF_TOKEN); a folder would start with ./ or /"
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"{where}: there is no folder '{source}' beside the configuration file, and the hub did not give a model "
            f"of that name ({reason})"
        ) from None
    return Path(folder), source


def _hf_config(where: str, folder: Path) -> PreTrainedConfig:
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = "; it is a LoRA adapter, so name it under 'adapter' of an expert"
        elif any(folder.glob("*.gguf")):
            hint = "; name one of its GGUF files itself"
        elif snapshots := sorted(folder.glob("snapshots/*/")):
            hint = f"; it is the hub's cache of a model, whose files lie in {snapshots[-1]}"
        raise ConfigError(f"{where}: {folder} has no config.json{hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {path} is not readable JSON: {error}") from None
    if not isinstance(settings, dict) or not settings.get("model_type"):
        raise ConfigError(f"{where}: {path} has no model_type; a model in the Hugging Face format is needed")
    from vllm.transformers_utils.config import get_config

    try:
        return get_config(str(folder), trust_remote_code=False)
    except Exception as error:  # every library on the way raises errors of its own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{where}: {path} is not understood: {reason}") from None
