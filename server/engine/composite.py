"""The composite model: large, base and experts in one engine, answering with fused logits.

To vLLM it is the large model: `forward` is the large model's own, compiled and captured like any model. The small
members keep attention layers of their own under their own prefixes, so vLLM gives all of them room in one paged KV
cache; they run beside it, each on the requests that use it (`server.engine.state`). In `compute_logits` each member's
head turns its rows into logits, and `fuse_logits` weighs them by what each request asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix

from fusion_kernels import fuse_logits, warm_up
from server.engine.member import SmallMember
from server.engine.member_config import own_caches, quantised_under, small_config
from server.engine.mixture import MixtureMember
from server.engine.phases import BUILDING, announce, announce_first_pass, counted
from server.engine.settings import BASE, LARGE
from server.engine.sides import Sides
from server.engine.stack import Stack, StackedMember
from server.engine.text_part import text_name
from server.engine.twin import twin_of
from server.engine.weights import AdapterFiles, add_task_vectors, held_bytes, task_vectors

if TYPE_CHECKING:
    from vllm.sequence import IntermediateTensors
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from fusion_kernels import Fused
    from server.engine.slots import Rows, SlotTable
    from server.engine.state import FusionModelState

# Set before every tensor name of a member's checkpoint, so that one stream of weights can carry all members.
_SOURCE_PREFIX = "fusion_member_{}/"


class LogitFusionForCausalLM(nn.Module):
    """A large model steered by experts: logits = large + sum_t alpha_t (expert_t - base).

    Built by vLLM from the large model's configuration, in which `fusion` holds the other members (`launch`). A small
    member's source is `{"model": folder, "multimodal": bool}`, or for an expert `{"adapter": folder, ...}` or
    `{"merge": [[weight, source], ...]}`; of multimodal files the text model is read. A twin is another member once
    more, with a KV cache of its own. Members go by numbers (`server.engine.settings`).
    """

    state: FusionModelState
    """Set by the state itself, which the model runner makes when the weights are loaded."""
    stack: Stack | None = None
    """What runs base and adapters as one, where there are adapters that share the base's weights."""
    weight_bytes: int = 0
    """What all members' weights take, as they were loaded: on CPUs vLLM packs them into memory of its own."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        announce(BUILDING)
        fusion = vllm_config.model_config.hf_config.fusion
        large_config = quantised_under(vllm_config, maybe_prefix(prefix, "large"))
        architectures = fusion["architectures"]

        def large(name: str) -> nn.Module:
            return init_vllm_registered_model(
                large_config, prefix=maybe_prefix(prefix, name), architectures=architectures
            )

        self.large: Any = large("large")
        sources: dict[int, dict[str, Any]] = {each["number"]: each for each in fusion["members"]}
        # An adapter or a merge has the base's shape.
        shapes = {n: source if "model" in source else sources[BASE] for n, source in sources.items()}
        configs = {n: _small_config(vllm_config, shape) for n, shape in shapes.items()}
        names = {n: source["name"] for n, source in sources.items()}
        adapters = {twin["number"]: twin for twin in fusion["twins"] if "adapter" in twin}
        if adapters:
            folders: list[str | None] = [twin["adapter"] for twin in adapters.values()]
            configs[BASE].additional_config = _changed(folders, sources[BASE]["multimodal"])
        models = {n: _small_model(configs[n], maybe_prefix(prefix, name)) for n, name in names.items()}
        if adapters:
            own = f"{maybe_prefix(prefix, names[BASE])}."
            last_id = _last_id(configs[BASE], vllm_config)
            self.stack = Stack(own, models[BASE], configs[BASE], BASE, last_id, fusion["spare_rank"])
        for twin in fusion["twins"]:
            number, of, name = twin["number"], twin["of"], twin["name"]
            names[number] = name
            original, config = (self.large, large_config) if of == LARGE else (models[of], configs[of])
            configs[number] = own_caches(config)
            if of == LARGE:
                build = partial(_tagged, name, partial(large, name))
            else:
                build = partial(_small_model, configs[number], maybe_prefix(prefix, name))
            models[number] = twin_of(original, build)
            if self.stack is not None and of in self.stack.places:
                self.stack.add(number, of, models[number], twin if number in adapters else None)
        self.small: Any = nn.ModuleDict({str(number): model for number, model in models.items()})
        self._load_config = vllm_config.load_config
        self._sources = sources
        self._multimodal = {LARGE: fusion["multimodal"]} | {n: shape["multimodal"] for n, shape in shapes.items()}
        # vLLM's loader streams these after the large model's own weights.
        self.secondary_weights = [
            DefaultModelLoader.Source(shape["model"], revision=None, prefix=_SOURCE_PREFIX.format(number))
            for number, shape in shapes.items()
        ]
        self.small_members: list[SmallMember | None] = [None] * (1 + 2 * len(fusion["experts"]))
        for number, model in models.items():
            if self.stack is not None and number in self.stack.places:
                self.small_members[number] = StackedMember(self.stack, self.stack.places[number], configs[number])
                continue
            own, last_id = f"{maybe_prefix(prefix, names[number])}.", _last_id(configs[number], vllm_config)
            parts = sources.get(number, {}).get("parts")
            self.small_members[number] = _member(own, model, configs[number], last_id, parts)
        self._models = {number: member.model for number, member in enumerate(self.small_members) if member is not None}
        self._common_size = min(config.model_config.get_vocab_size() for config in (vllm_config, *configs.values()))
        if vllm_config.device_config.device_type == "cpu":
            warm_up()

    @staticmethod
    def get_model_state_cls() -> type[FusionModelState]:
        """The class of the state that vLLM's Model Runner V2 makes for this model."""
        # Imported late: the runner's module must have prepared its platform first.
        from server.engine.state import FusionModelState

        return FusionModelState

    def bind_kv_cache(self, kv_cache_config: KVCacheConfig) -> None:
        """There is a KV cache, in which all layers have their blocks."""
        if self.stack is not None:
            self.stack.bind(kv_cache_config)

    def finish_loading(self, table: SlotTable) -> None:
        """Make base and adapters one, and mixtures of experts; all weights are loaded."""
        if self.stack is not None:
            self.weight_bytes += self.stack.join()
        for number, member in enumerate(self.small_members):
            if isinstance(member, MixtureMember):
                self.weight_bytes += member.join(self._multimodal[number])
                member.shares_of_slots = table.shares[:, number - 1]

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The large model's token embeddings; vLLM asks every text model for them."""
        embeddings: torch.Tensor = self.large.embed_input_ids(input_ids)
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The large model's hidden states [num_tokens, width]; the small members have run by then."""
        states: torch.Tensor = self.large(input_ids, positions)
        # A stretch of prompt positions is known by its offset in this tensor.
        return states if states.storage_offset() == 0 else states.clone()

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Fused logits [N, V] of N rows of `forward`'s output.

        Float32 where any row fuses; the large model's own logits, in their dtype, where none does.
        """
        # vLLM asks for a prompt's logprobs by a thousand rows, each of which costs the logits of all members here.
        parts = torch.split(hidden_states, self.state.max_rows)
        if len(parts) == 1:
            return self._logits(hidden_states)
        first = self._logits(parts[0])
        # Float32, as later parts may fuse where the first does not.
        logits = first.new_empty(hidden_states.shape[0], first.shape[1], dtype=torch.float32)
        logits[: first.shape[0]] = first
        for number, part in enumerate(parts[1:], start=1):
            start = number * self.state.max_rows
            logits[start : start + part.shape[0]] = self._logits(part)
        return logits

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        large: torch.Tensor = self.large.compute_logits(hidden)
        call = self.state.rows_of(hidden)
        in_use = self.state.experts_of(call)
        if not in_use:
            if call.step is not None:
                self.state.record(call.step, large, None, None, [], None)
            return large
        sides = Sides(large, self._models, call.members, self._common_size)
        pairs = [self.state.pairs_of(call, expert) for expert in in_use]
        experts = [sides.experts(pair[:, 0]) for pair in pairs]
        against = [sides.against(pair[:, 1]) for pair in pairs]
        if call.owners is None:
            self._compile_kernels(large, against, experts)
        settings = self.state.settings_of(call, in_use)
        fused = _fuse(large, against, experts, settings)
        if call.step is not None:
            self.state.watch(large, against, experts, settings, fused)
            self.state.record(call.step, large, settings, fused, in_use, sides)
        return fused.logits

    def _compile_kernels(self, large: torch.Tensor, against: list[torch.Tensor], experts: list[torch.Tensor]) -> None:
        """Have the kernel compiled for smaller numbers of experts too, while no request waits for it."""
        # It has room for eight, sixteen and so on, and more kernels there are not.
        for number in (1 << power for power in range((len(experts) - 1).bit_length())):
            rows = self.state.table.dearest_rows(large.shape[0]).of_experts(list(range(number)))
            _fuse(large, against[:number], experts[:number], rows)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Hand each member its part of the stream: the large model's first, then those of `secondary_weights`.

        Raises:
            ValueError: a member's checkpoint lacks weights.
        """
        loaded: set[str] = set()
        # vLLM 0.32 itself looks for missing weights only where the large model is not quantised, and not in all layers.
        check = DefaultModelLoader(self._load_config).track_weights_loading
        for number, stream in groupby(weights, key=lambda item: _split(item[0])[0]):
            named: Iterable[tuple[str, torch.Tensor]] = ((_split(name)[1], tensor) for name, tensor in stream)
            if self._multimodal[number]:
                named = ((of_text, tensor) for name, tensor in named if (of_text := text_name(name)) is not None)
            if number == LARGE:
                prefix, title, member = "large", "large", self.large
            else:
                source = self._sources[number]
                prefix, title, member = f"small.{number}", source["title"], self._models[number]
                if number != BASE:
                    named = add_task_vectors(named, task_vectors(source))
            found = member.load_weights(counted(title, named))
            if found is None:  # some models do not say what they have loaded
                found = {name for name, _ in member.named_parameters()}
            loaded |= {f"{prefix}.{name}" for name in found}
            check(member, set(found), quantized=True)
        self.weight_bytes = held_bytes(self)
        announce_first_pass(self)
        return loaded


def _small_config(config: VllmConfig, source: dict[str, Any]) -> VllmConfig:
    own = small_config(config, source["model"])
    if "parts" in source:
        own.additional_config = _changed(list(source["parts"].values()), source["multimodal"])
    return own


def _changed(adapters: Sequence[str | None], multimodal: bool) -> dict[str, Any]:
    """Which layers adapters (`None`: those that come later) change, which vLLM makes a part of the compile cache's key.

    A model's compiled code has what they add; that of another model, or for other layers, may not be taken for it.
    """
    named = {name for each in adapters if each is not None for name in AdapterFiles(each, multimodal).changes}
    return {"changed": sorted(named), "spares": None in adapters}


def _member(
    prefix: str, model: nn.Module, config: VllmConfig, last_id: int | None, parts: dict[str, str] | None
) -> SmallMember:
    if parts:
        return MixtureMember(prefix, model, config, last_id, parts)
    return SmallMember(prefix, model, config, last_id)


def _small_model(config: VllmConfig, prefix: str) -> nn.Module:
    return _tagged(prefix, partial(init_vllm_registered_model, quantised_under(config, prefix), prefix=prefix))


def _last_id(config: VllmConfig, large: VllmConfig) -> int | None:
    """A member's last token id, where its vocabulary is shorter than the large model's."""
    size = config.model_config.get_vocab_size()
    return None if size >= large.model_config.get_vocab_size() else size - 1


def _tagged(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    # Each model is compiled under a name of its own.
    with set_model_tag(name):
        return build()


def _fuse(large: torch.Tensor, against: list[torch.Tensor], experts: list[torch.Tensor], rows: Rows) -> Fused:
    return fuse_logits(
        large, against, experts, kind=rows.kind, use=rows.use, alpha=rows.alpha, alpha_max=rows.alpha_max
    )


def _split(name: str) -> tuple[int, str]:
    """A streamed tensor's name to (the member's number, name in the checkpoint)."""
    start = _SOURCE_PREFIX.partition("{}")[0]
    if not name.startswith(start):
        return LARGE, name
    number, _, rest = name.removeprefix(start).partition("/")
    return int(number), rest
