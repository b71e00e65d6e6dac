"""The composite model: large, base and experts in one engine, answering with fused logits.

To vLLM it is the large model: `forward` is the large model's own, compiled and captured like any model. The small
members keep attention layers of their own under their own prefixes, so vLLM gives all of them room in one paged KV
cache; they run beside it, each on the requests that use it (`server.engine.state`). In `compute_logits` each member's
head turns its rows into logits, and `fuse_logits` weighs them by what each request asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from server.engine.member_config import quantised_under, small_config
from server.engine.phases import BUILDING, announce, announce_first_pass, counted
from server.engine.text_part import text_name
from server.engine.weights import add_task_vectors, task_vectors

if TYPE_CHECKING:
    from vllm.sequence import IntermediateTensors

    from fusion_kernels import Fused
    from server.engine.slots import Rows
    from server.engine.state import FusionModelState
    from server.engine.step import MemberRows

# Set before every tensor name of a member's checkpoint, so that one stream of weights can carry all members.
_SOURCE_PREFIX = "fusion_member_{}/"


class LogitFusionForCausalLM(nn.Module):
    """A large model steered by experts: logits = large + sum_t alpha_t (expert_t - base).

    Built by vLLM from the large model's configuration, in which `fusion` holds the other members:
    `{"architectures": [...], "base": source, "experts": [{"name": ..., **source}, ...], ...}`; without experts the
    base is `None`. A source is `{"model": folder, "multimodal": bool}`, or for an expert `{"adapter": folder, ...}` or
    `{"merge": [[weight, source], ...]}`; of multimodal files the text model is read.
    """

    state: FusionModelState
    """Set by the state itself, which the model runner makes when the weights are loaded."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        announce(BUILDING)
        fusion = vllm_config.model_config.hf_config.fusion
        large_prefix = maybe_prefix(prefix, "large")
        large_config = quantised_under(vllm_config, large_prefix)
        self.large: Any = init_vllm_registered_model(
            large_config, prefix=large_prefix, architectures=fusion["architectures"]
        )
        base_source, expert_sources = fusion["base"], fusion["experts"]
        small_sources = [] if base_source is None else [base_source, *expert_sources]
        # An adapter or a merge has the base's shape.
        shapes = [source if "model" in source else base_source for source in small_sources]
        configs = [small_config(vllm_config, shape["model"]) for shape in shapes]
        names = ["base", *(f"expert_{source['name']}" for source in expert_sources)][: len(configs)]
        small = [_small_model(config, maybe_prefix(prefix, name)) for config, name in zip(configs, names, strict=True)]
        self.base: Any = small[0] if small else None
        self.experts = nn.ModuleList(small[1:])
        self._load_config = vllm_config.load_config
        self._expert_sources = expert_sources
        self._multimodal = [fusion["multimodal"], *(shape["multimodal"] for shape in shapes)]
        # vLLM's loader streams these after the large model's own weights.
        self.secondary_weights = [
            DefaultModelLoader.Source(shape["model"], revision=None, prefix=_SOURCE_PREFIX.format(index))
            for index, shape in enumerate(shapes)
        ]
        size = vllm_config.model_config.get_vocab_size()
        sizes = [config.model_config.get_vocab_size() for config in configs]
        self.small_members = [
            SmallMember(maybe_prefix(prefix, name) + ".", model, config, None if own >= size else own - 1)
            for name, model, config, own in zip(names, small, configs, sizes, strict=True)
        ]
        self._common_size = min([size, *sizes])
        if vllm_config.device_config.device_type == "cpu":
            warm_up()

    @staticmethod
    def get_model_state_cls() -> type[FusionModelState]:
        """The class of the state that vLLM's Model Runner V2 makes for this model."""
        # Imported late: the runner's module must have prepared its platform first.
        from server.engine.state import FusionModelState

        return FusionModelState

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
        base_rows, *expert_rows = call.members or [None]
        used = {number: rows for number, rows in enumerate(expert_rows) if rows is not None}
        if not used:
            if call.step is not None:
                self.state.record(call.step, large, None, None, [])
            return large
        number = large.shape[0]
        in_use = list(used)
        experts = [_all_rows(self.experts[expert], rows, number) for expert, rows in used.items()]
        # `fuse_logits` compares over the ids that its arguments share. They must not depend on which experts other
        # requests of the batch use, so the base shows only the ids that all members share.
        if base_rows is None:  # every row is one expert's alone
            # Of an even stride, for which the kernel is compiled.
            base = large.new_zeros(number, -(-self._common_size // 64) * 64)[:, : self._common_size]
        else:
            base = _all_rows(self.base, base_rows, number)[:, : self._common_size]
        if call.slots is None:
            self._compile_kernels(large, base, experts)
        settings = self.state.settings_of(call, in_use)
        fused = _fuse(large, base, experts, settings)
        if call.step is not None:
            self.state.watch(large, base, experts, settings, fused)
            self.state.record(call.step, large, settings, fused, in_use)
        return fused.logits

    def _compile_kernels(self, large: torch.Tensor, base: torch.Tensor, experts: list[torch.Tensor]) -> None:
        """Have the kernel compiled for smaller numbers of experts too, while no request waits for it."""
        # It has room for eight, sixteen and so on, and more kernels there are not.
        for number in (1 << power for power in range((len(experts) - 1).bit_length())):
            rows = self.state.table.dearest_rows(large.shape[0]).of_experts(list(range(number)))
            _fuse(large, base, experts[:number], rows)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Hand each member its part of the stream: the large model's first, then those of `secondary_weights`.

        Raises:
            ValueError: a member's checkpoint lacks weights.
        """
        loaded: set[str] = set()
        # vLLM 0.32 itself looks for missing weights only where the large model is not quantised, and not in all layers.
        check = DefaultModelLoader(self._load_config).track_weights_loading
        for source, stream in groupby(weights, key=lambda item: _split(item[0])[0]):
            named: Iterable[tuple[str, torch.Tensor]] = ((_split(name)[1], tensor) for name, tensor in stream)
            if self._multimodal[0 if source is None else 1 + source]:
                named = ((of_text, tensor) for name, tensor in named if (of_text := text_name(name)) is not None)
            if source is None:
                prefix, title, member = "large", "large", self.large
            elif source == 0:
                prefix, title, member = "base", "base", self.base
            else:
                expert = self._expert_sources[source - 1]
                prefix, title, member = f"experts.{source - 1}", expert["name"], self.experts[source - 1]
                named = add_task_vectors(named, task_vectors(expert))
            found = member.load_weights(counted(title, named))
            if found is None:  # some models do not say what they have loaded
                found = {name for name, _ in member.named_parameters()}
            loaded |= {f"{prefix}.{name}" for name in found}
            check(member, set(found), quantized=True)
        announce_first_pass(self)
        return loaded


def _small_model(config: VllmConfig, prefix: str) -> nn.Module:
    # Each model is compiled under a name of its own.
    with set_model_tag(prefix):
        return init_vllm_registered_model(quantised_under(config, prefix), prefix=prefix)


def _fuse(large: torch.Tensor, base: torch.Tensor, experts: list[torch.Tensor], rows: Rows) -> Fused:
    return fuse_logits(large, base, experts, kind=rows.kind, use=rows.use, alpha=rows.alpha, alpha_max=rows.alpha_max)


def _all_rows(model: Any, part: MemberRows, number: int) -> torch.Tensor:
    """A member's logits [number, V_m]; rows that do not use it are zeros, which nobody reads."""
    logits: torch.Tensor = model.compute_logits(part.hidden)
    if part.rows is None:
        return logits
    # Of the same stride as the head's own output, for which the kernel is compiled.
    whole = logits.new_zeros(number, logits.stride(0))[:, : logits.shape[1]]
    whole[part.rows] = logits
    return whole


def _split(name: str) -> tuple[int | None, str]:
    """A streamed tensor's name to (index among `secondary_weights` or `None` for large, name in the checkpoint)."""
    start = _SOURCE_PREFIX.partition("{}")[0]
    if not name.startswith(start):
        return None, name
    index, _, rest = name.removeprefix(start).partition("/")
    return int(index), rest
