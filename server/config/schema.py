"""The schema of the configuration file. Every description here is what `--help` and the documentation show."""

from __future__ import annotations

import re
import typing
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from server.config.adapters import AdaptersConfig, is_spare, spare_name
from server.config.http import HttpConfig
from server.config.presets import PresetConfig, PresetName
from server.config.prompts import SidePrompts
from server.config.rollout import check_arms
from server.config.routing import check_mixtures
from server.config.section import Section, fault
from server.config.setting import Alpha, SettingError
from server.config.source import ModelSource
from server.config.speculation import AUTO, BASE, SpeculationConfig
from server.config.structures import StructuresConfig
from server.config.traffic import AdmissionConfig, AuthConfig, LimitsConfig
from server.errors import nearest

ExpertKind = Literal["model", "adapter", "merge", "use"]

LARGE, NONE, FUSED = "large", "none", "fused"
RESERVED_EXPERTS = (LARGE, BASE, NONE, FUSED)
EXPERT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


def _expert_name(name: str) -> str:
    if not EXPERT_NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' is not an expert name: a letter, then letters, digits, '_' or '-', 32 characters at most"
        )
    if name in RESERVED_EXPERTS:
        raise ValueError(f"an expert cannot be called '{name}': that is the name of another member")
    return name


ExpertName = Annotated[str, AfterValidator(_expert_name)]


class MemberConfig(Section):
    """Where the large model or the base comes from."""

    model: ModelSource = Field(description="Folder in the Hugging Face format, or the id of a model on the hub.")
    revision: str | None = Field(
        None, description="Branch, tag or commit of the hub's model; its main branch if left out."
    )

    @model_validator(mode="after")
    def _revision_of_hub_only(self) -> Self:
        _check_revision(self.model, self.revision)
        return self


class ExpertConfig(Section):
    """Where an expert comes from (exactly one of `model`, `adapter`, `merge` and `use`), and how it is compared."""

    model: ModelSource | None = Field(None, description="A fine-tuned model: a folder, or an id on the hub.")
    adapter: ModelSource | None = Field(
        None, description="A LoRA adapter over the base, in the PEFT format: a folder, or an id on the hub."
    )
    parts: dict[str, ModelSource] = Field(
        {},
        description="Of a `model` that is a mixture: LoRA adapters over it, by the names that a preset's router knows, "
        "which mixes them in for each request. Without a router it is the model alone.",
    )
    merge: dict[str, Alpha] | None = Field(
        None,
        description="Task arithmetic: expert names and weights. The expert is the base plus the weighted sum of what "
        "fine-tuning changed in each of them. They must be `model` or `adapter` experts.",
    )
    use: str | None = Field(
        None,
        description="The weights of a member that is loaded anyway: `large`, `base`, or another expert. It costs no "
        "memory but the KV cache that a prompt of its own needs.",
    )
    revision: str | None = Field(None, description="As for `large`, of the hub's model or adapter.")
    against: str = Field(
        BASE,
        description="What the expert is compared with, as in alpha (expert - against): `base`, `large`, another "
        "expert, or `none`, which adds the expert's logits as they are.",
    )
    prompt: SidePrompts = Field(
        SidePrompts(),
        description="Prompts of their own for the expert (`with`) and what it is compared with (`against`); `{}` "
        "reads the request's prompt until the request gives one.",
    )
    stop_at_eos: bool = Field(
        True,
        description="Whether the answers that it steers end at its own end tokens too (its tokenizer's `eos_token`, "
        "`eos_token_id` in its generation_config.json), and not at the large model's alone.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in typing.get_args(ExpertKind) if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given)}" if given else "has none of them"
            raise ValueError(f"an expert needs exactly one of model, adapter, merge and use; this one {found}")
        if self.merge is not None and not self.merge:
            raise ValueError("merge is empty: it needs at least one {expert: weight}")
        if self.parts and self.model is None:
            raise ValueError("parts are adapters over a model of the expert's own: name it under model")
        _check_revision(self.model or self.adapter, self.revision)
        return self

    @property
    def kind(self) -> ExpertKind:
        """Which of the sources this expert has."""
        return next(kind for kind in typing.get_args(ExpertKind) if getattr(self, kind) is not None)


class Config(Section):
    """A whole configuration file."""

    large: MemberConfig = Field(description="The large model that answers. It is never fine-tuned.")
    base: MemberConfig | None = Field(
        None,
        description="The small pretrained model that experts were fine-tuned from; needed where one is an adapter or a "
        "merge, or is compared with it.",
    )
    experts: dict[ExpertName, ExpertConfig] = Field({}, description="The small fine-tuned models, by name.")
    presets: dict[PresetName, PresetConfig] = Field(
        description="The names that clients pass as `model`. The first one is the default."
    )
    engine: dict[str, Any] = Field(
        {},
        description="vLLM's engine arguments by their Python names, such as `max_model_len`, `max_num_seqs`, `dtype` "
        "or `tensor_parallel_size`.",
    )
    admission: AdmissionConfig = Field(
        AdmissionConfig(), description="How much work the engine holds at once, and how the rest waits."
    )
    limits: LimitsConfig = Field(LimitsConfig(), description="What one request may ask, and how long it may take.")
    structures: StructuresConfig = Field(
        StructuresConfig(), description="What the schemas, grammars and tools of one request may hold and cost."
    )
    speculation: SpeculationConfig | None = Field(
        None, description="Which member drafts tokens for the fused model to verify. Without it none does."
    )
    adapters: AdaptersConfig | None = Field(
        None, description="Experts that are loaded while the server serves. Without it none can be."
    )
    auth: AuthConfig = Field(AuthConfig(), description="Who may ask.")
    http: HttpConfig = Field(
        HttpConfig(), description="Where the server is on the network: its names, its path, the browsers that may call."
    )

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for name, expert in self.experts.items():
            self._check_sides(name, expert)
        if self.base is None:
            needs = next((name for name, expert in self.experts.items() if self._needs_base(expert)), None)
            if needs is not None:
                raise fault(
                    ("experts",),
                    f"expert '{needs}' needs a base, the model that it was fine-tuned from: base: {{model: ...}}",
                )
        elif not self.experts and self.adapters is None:
            raise fault(("base",), "without experts nothing uses a base; add experts, or leave it out")
        if self.adapters is not None and self.base is None:
            raise fault(("adapters",), "adapters need a base, the model that they were fine-tuned from")
        if not self.presets:
            raise fault(("presets",), "at least one preset is needed, such as {giant: {weighting: none}}")
        for name, expert in self.experts.items():
            for part in expert.merge or {}:
                where = ("experts", name, "merge")
                if part not in self.experts:
                    raise fault(where, f"there is no expert '{part}'; {nearest(part, set(self.experts) - {name})}")
                if self.experts[part].kind == "merge":
                    raise fault(where, f"'{part}' is a merge itself; name the experts that it is made of instead")
                if self.experts[part].kind == "use":
                    raise fault(where, f"'{part}' has no weights of its own; name the expert whose weights it uses")
        if self.speculation is not None:
            self._check_drafter(self.speculation.draft)
        try:
            check_mixtures(self)
        except SettingError as error:
            raise fault(error.field_path, str(error)) from None
        for name, preset in self.presets.items():
            self._check_preset(name, preset)
        for name, expert in self.experts.items():
            if expert.use == expert.against and not any(self.own_cache(name)):
                raise fault(
                    ("experts", name),
                    f"{expert.use} against itself is nothing: give either side a prompt of its own, as in "
                    'prompt: {against: {system: ""}}',
                )
        return self

    def with_spares(self) -> Config:
        """The configuration with the experts, and a preset for each, for which adapters may be loaded."""
        if self.adapters is None:
            return self
        assert self.base is not None
        names = [spare_name(number) for number in range(1, 1 + self.adapters.max)]
        # The base's own files: a spare is the base until an adapter is loaded.
        spare = ExpertConfig.model_construct(adapter=self.base.model, revision=self.base.revision)
        experts = {**self.experts, **dict.fromkeys(names, spare)}
        presets = {**self.presets, **{name: PresetConfig(experts=(name,)) for name in names}}
        return self.model_copy(update={"experts": experts, "presets": presets})

    @property
    def named_experts(self) -> tuple[str, ...]:
        """The experts that there are, without those for which an adapter may be loaded."""
        return tuple(name for name in self.experts if not is_spare(name))

    @property
    def named_presets(self) -> tuple[str, ...]:
        """The presets that there are, likewise."""
        return tuple(name for name in self.presets if not is_spare(name))

    @property
    def routers(self) -> tuple[str, ...]:
        """The files of all routers."""
        return tuple(dict.fromkeys(preset.route for preset in self.presets.values() if preset.route is not None))

    def arms(self, preset: str) -> tuple[str, ...]:
        """The presets that answer for one of them: itself, or those that it splits between, or that it shadows."""
        return self.presets[preset].arms or (preset,)

    def own_cache(self, expert: str) -> tuple[bool, bool]:
        """Whether an expert that is another member's weights, and what an expert is compared with, have own KV caches.

        They need one to read another prompt than that member does.
        """
        given = [self.experts[expert].prompt]
        given += [preset.prompts[expert] for preset in self.presets.values() if expert in preset.prompts]
        return any(sides.expert is not None for sides in given), any(sides.against is not None for sides in given)

    def _check_preset(self, name: str, preset: PresetConfig) -> None:
        try:
            check_arms(self, preset)
        except SettingError as error:
            raise fault(("presets", name, *error.field_path), str(error)) from None
        if preset.route is not None and self.base is None:
            raise fault(("presets", name, "route"), "a router reads the base's states, and there is no base")
        for part in preset.experts:
            if part not in self.experts:
                raise fault(("presets", name, "experts"), f"there is no expert '{part}'; {nearest(part, self.experts)}")
            if preset.route is not None and any(self.own_cache(part)):
                raise fault(
                    ("presets", name, "route"),
                    f"expert '{part}' has prompts of its own; a router's experts have none",
                )
        for part, sides in preset.prompts.items():
            where = ("presets", name, "prompts")
            if part not in self.experts:
                raise fault(where, f"there is no expert '{part}'; {nearest(part, self.experts)}")
            if sides.against is not None and self.experts[part].against == NONE:
                raise fault((*where, part, "against"), "an expert that is compared with none has one prompt")

    @staticmethod
    def _needs_base(expert: ExpertConfig) -> bool:
        return expert.kind in ("adapter", "merge") or BASE in (expert.against, expert.use)

    def _check_sides(self, name: str, expert: ExpertConfig) -> None:
        others = [other for other, config in self.experts.items() if other != name and config.kind != "use"]
        for key, member, choices in (
            ("use", expert.use, (LARGE, BASE, *others)),
            ("against", expert.against, (BASE, LARGE, NONE, *others)),
        ):
            if member is not None and member not in choices:
                hint = nearest(member, choices)
                if member in self.experts:
                    hint = "it is this expert" if member == name else "its weights are another member's; name that one"
                raise fault(("experts", name, key), f"'{member}' cannot stand here; {hint}")
        if expert.prompt.against is not None and expert.against == NONE:
            raise fault(("experts", name, "prompt", "against"), "an expert that is compared with none has one prompt")

    def _check_drafter(self, draft: str) -> None:
        loaded = [name for name, expert in self.experts.items() if expert.kind != "use"]
        if self.base is not None:
            loaded.insert(0, BASE)
        if not loaded:
            raise fault(("speculation",), "without base and experts there is no member that could draft")
        if draft not in (AUTO, *loaded):
            hint = nearest(draft, (AUTO, *loaded))
            if draft in self.experts:
                hint = "its weights are another member's; name that one"
            raise fault(("speculation", "draft"), f"there is no expert '{draft}' that could draft; {hint}")


def _check_revision(source: str | None, revision: str | None) -> None:
    if revision is not None and (source is None or source.startswith("/")):
        raise ValueError("revision is only for an id on the hub, not for a folder or a merge")
