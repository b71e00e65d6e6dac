"""The composite model: large, base and experts in one engine, answering with fused logits.

Every member reads the same tokens in the same step. Each keeps attention layers of its own under its own prefix, so
vLLM gives all of them room in one paged KV cache and schedules them as one model. Their hidden states travel side by
side in one tensor, from `forward` to `compute_logits`, where each member's head turns its part into logits and
`fuse_logits` weighs them by what each request asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.transformers_utils.config import get_config, get_hf_text_config

from fusion_kernels import fuse_logits, warm_up
from server.engine.aggregates import Aggregates
from server.engine.batch import TAG_COLUMNS, batch_state
from server.engine.phases import BUILDING, announce, announce_first_pass, counted
from server.engine.trace import TraceLog
from server.engine.weights import add_task_vectors, task_vectors

if TYPE_CHECKING:
    from vllm.sequence import IntermediateTensors

# Set before every tensor name of a member's checkpoint, so that one stream of weights can carry all members.
_SOURCE_PREFIX = "fusion_member_{}/"


class LogitFusionForCausalLM(nn.Module):
    """A large model steered by experts: logits = large + sum_t alpha_t (expert_t - base).

    Built by vLLM from the large model's configuration, in which `fusion` holds the other members:
    `{"architectures": [...], "base": source, "experts": [{"name": ..., **source}, ...], "presets": number}`; without
    experts the base is `None`. A source is `{"model": folder}`, or for an expert `{"adapter": folder}` or
    `{"merge": [[weight, source], ...]}`.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        announce(BUILDING)
        fusion = vllm_config.model_config.hf_config.fusion
        state = batch_state(vllm_config)
        assert state is not None
        self._batch = state
        self.trace_log = TraceLog(state)
        self.aggregates = Aggregates(state, fusion["presets"])
        self.large: Any = init_vllm_registered_model(
            vllm_config, prefix=maybe_prefix(prefix, "large"), architectures=fusion["architectures"]
        )
        base_source, expert_sources = fusion["base"], fusion["experts"]
        small_sources = [] if base_source is None else [base_source, *expert_sources]
        # An adapter or a merge has the base's shape.
        shapes = [source if "model" in source else base_source for source in small_sources]
        configs = [_member_config(vllm_config, shape) for shape in shapes]
        names = ["base", *(f"expert_{source['name']}" for source in expert_sources)][: len(configs)]
        small = [
            init_vllm_registered_model(config, prefix=maybe_prefix(prefix, name))
            for config, name in zip(configs, names, strict=True)
        ]
        self.base: Any = small[0] if small else None
        self.experts = nn.ModuleList(small[1:])
        self._expert_sources = expert_sources
        # vLLM's loader streams these after the large model's own weights.
        self.secondary_weights = [
            DefaultModelLoader.Source(shape["model"], revision=None, prefix=_SOURCE_PREFIX.format(place))
            for place, shape in enumerate(shapes)
        ]
        # A prompt of raw ids, or an id sampled from the large model's padding, may lie past a shorter vocabulary.
        size = vllm_config.model_config.get_vocab_size()
        sizes = [config.model_config.get_vocab_size() for config in configs]
        self._last_ids = [None, *(None if own >= size else own - 1 for own in sizes)]
        self._common_size = min([size, *sizes])
        self._widths: list[int] | None = None
        warm_up()

    @property
    def _members(self) -> list[Any]:
        return [self.large] if self.base is None else [self.large, self.base, *self.experts]

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
        """Hidden states of all members and the rows' tags, side by side: [num_tokens, sum of widths + 2].

        The large model's alone, [num_tokens, its width], where there is nothing else and nobody asks for a trace.
        """
        tags = self._batch.begin_step(_query_start_loc(), input_ids, positions)
        if self.base is None and not self._batch.tracing:
            self._widths = None
            states: torch.Tensor = self.large(input_ids, positions)
            return states
        hidden = [
            member(input_ids if last is None else input_ids.clamp(max=last), positions)
            for member, last in zip(self._members, self._last_ids, strict=True)
        ]
        self._widths = [states.shape[-1] for states in hidden]
        return torch.cat([*hidden, tags.to(hidden[0].dtype)], dim=-1)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Fused logits [N, V] of any N rows of `forward`'s output; `None` on ranks that hold none.

        Float32 where any running request fuses; the large model's own logits, in their dtype, where none does.
        """
        batch = self._batch
        if self._widths is None:
            alone: torch.Tensor | None = self.large.compute_logits(hidden_states)
            return alone
        large_states, *small_states, tags = torch.split(hidden_states, [*self._widths, TAG_COLUMNS], dim=-1)
        in_use = list(range(batch.num_experts)) if batch.profiling else batch.experts_in_use
        large: torch.Tensor | None = self.large.compute_logits(large_states)
        if not in_use:
            if large is not None and batch.tracing and not batch.profiling:
                places = batch.places(tags)
                self.trace_log.record(batch.owners(places), places, large, None, [])
            return large
        base: torch.Tensor | None = self.base.compute_logits(small_states[0])
        members = self._members[2:]
        experts = [members[expert].compute_logits(small_states[1 + expert]) for expert in in_use]
        if large is None or base is None:  # tensor parallel gathers the logits on the first rank alone
            return None
        # `fuse_logits` compares over the ids that its arguments share. They must not depend on which experts other
        # requests of the batch use, so the base shows only the ids that all members share.
        base = base[:, : self._common_size]
        if not batch.profiling:
            places = batch.places(tags)
            owners = batch.owners(places)
        rows = batch.profiling_rows(large.shape[0]) if batch.profiling else batch.rows(owners)
        columns = slice(None) if len(in_use) == batch.num_experts else in_use
        use = rows.use[:, columns]
        fused = fuse_logits(
            large,
            base,
            experts,
            kind=rows.kind,
            use=use,
            alpha=rows.alpha[:, columns],
            alpha_max=rows.alpha_max,
        )
        if not batch.profiling:
            self.aggregates.record(owners, places, use, fused, tuple(in_use))
            if batch.tracing:
                self.trace_log.record(owners, places, large, fused, in_use)
        return fused.logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Hand each member its part of the stream: the large model's first, then those of `secondary_weights`."""
        loaded: set[str] = set()
        for source, stream in groupby(weights, key=lambda item: _split(item[0])[0]):
            named: Iterable[tuple[str, torch.Tensor]] = ((_split(name)[1], tensor) for name, tensor in stream)
            if source is None:
                prefix, title, member = "large", "large", self.large
            elif source == 0:
                prefix, title, member = "base", "base", self.base
            else:
                expert = self._expert_sources[source - 1]
                prefix, title, member = f"experts.{source - 1}", expert["name"], self._members[source + 1]
                named = add_task_vectors(named, task_vectors(expert))
            loaded |= {f"{prefix}.{name}" for name in member.load_weights(counted(title, named))}
        announce_first_pass(self)
        return loaded


def _member_config(vllm_config: VllmConfig, source: dict[str, Any]) -> VllmConfig:
    """The engine's configuration with a member's architecture and quantisation in place of the large model's."""
    hf_config = get_config(source["model"], trust_remote_code=vllm_config.model_config.trust_remote_code)
    config = vllm_config.with_hf_config(hf_config, architectures=hf_config.architectures)
    # vLLM 0.32 leaves the large model's text configuration in place, and with it the large model's vocabulary.
    config.model_config.hf_text_config = get_hf_text_config(hf_config)
    config.model_config.model_arch_config = config.model_config.get_model_arch_config()
    config.model_config.model = source["model"]
    quantization = getattr(hf_config, "quantization_config", None)
    config.model_config.quantization = quantization["quant_method"] if quantization else None
    # vLLM's attention layers take the window of a model whose layers are all alike from here; the large model's own
    # is none of the member's.
    config.cache_config = copy(config.cache_config)
    config.cache_config.sliding_window = _uniform_window(hf_config)
    config.quant_config = VllmConfig.get_quantization_config(config.model_config, vllm_config.load_config)
    return config


def _uniform_window(hf_config: Any) -> int | None:
    """The window of a model that has one in every layer; one with windows in some names them layer by layer."""
    layer_types = getattr(hf_config, "layer_types", None)
    if layer_types is not None and any(kind != "sliding_attention" for kind in layer_types):
        return None
    window: int | None = getattr(hf_config, "sliding_window", None)
    return window or None


def _split(name: str) -> tuple[int | None, str]:
    """A streamed tensor's name to (place among `secondary_weights` or `None` for large, name in the checkpoint)."""
    start = _SOURCE_PREFIX.partition("{}")[0]
    if not name.startswith(start):
        return None, name
    place, _, rest = name.removeprefix(start).partition("/")
    return int(place), rest


def _query_start_loc() -> torch.Tensor | None:
    """First token of each request in this step, [num_requests + 1]; `None` while vLLM profiles."""
    metadata: Any = get_forward_context().attn_metadata
    if not metadata:
        return None
    # One entry per attention layer; the layout of the batch is the same in all.
    starts: torch.Tensor = next(iter(metadata.values())).query_start_loc
    return starts
