"""From a configuration to a running engine."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from vllm import envs
from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
from vllm.usage.usage_lib import UsageContext

from server.config import Config
from server.config.speculation import SpeculationConfig
from server.engine import plugin
from server.engine.client import FusionEngine
from server.engine.members import Members
from server.engine.pairs import Pairs
from server.engine.routing.router import Router
from server.engine.settings import BASE
from server.engine.structures.pinned import pinned
from server.engine.text_part import text_part
from server.errors import ConfigError
from server.logs import loading_shows_progress

_MANY_REQUESTS = 1 << 20
"""More than any engine runs at once."""


def start_engine(config: Config, members: Members) -> FusionEngine:
    """Load all members and start the engine's processes; call inside the event loop that will use it.

    Raises:
        ConfigError: an engine argument asks for what the fused model cannot do.
    """
    # The default on GPUs; on CPUs vLLM 0.32 still picks the runner before it (`server.engine.cpu_runner`).
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    plugin.register()  # vLLM has called it before if this process had an engine, perhaps with another runner
    args = engine_args(config, members)
    vllm_config = args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    check_engine_config(vllm_config, members)
    _prepare_for_all(vllm_config, members)
    engine = FusionEngine.from_vllm_config(
        vllm_config, usage_context=UsageContext.OPENAI_API_SERVER, enable_log_requests=args.enable_log_requests
    )
    assert isinstance(engine, FusionEngine)
    return engine


def engine_args(config: Config, members: Members) -> AsyncEngineArgs:
    """vLLM's engine arguments: those of the configuration, and those that make the model the composite."""
    arguments: dict[str, Any] = dict(config.engine)
    arguments["structured_outputs_config"] = pinned(arguments.get("structured_outputs_config"))
    # vLLM 0.32's `auto` takes Mistral's own files (consolidated*.safetensors) where there are any, under other names.
    if arguments.get("load_format", "auto") == "auto":
        arguments["load_format"] = "hf"
    arguments.setdefault("use_tqdm_on_load", loading_shows_progress())
    structured = arguments.get("structured_outputs_config")
    if isinstance(structured, dict):
        # vLLM 0.32 makes an object of the mapping only after it has set `reasoning_parser` on it.
        arguments["structured_outputs_config"] = StructuredOutputsConfig(**structured)
    if config.speculation is not None:
        arguments |= _speculation(config.speculation, members)
    return AsyncEngineArgs(
        model=str(members.large.folder),
        served_model_name=list(config.named_presets),
        hf_overrides=partial(composite_config, members.large.folder, fusion_config(config, members)),
        worker_extension_cls="server.engine.extension.FusionWorkerExtension",
        **arguments,
    )


def _speculation(speculation: SpeculationConfig, members: Members) -> dict[str, Any]:
    """The engine arguments by which vLLM drafts through the members (`server.engine.speculation.worker`)."""
    settings: dict[str, Any] = {
        "method": "draft_model",
        # It wants to see a model of the large one's vocabulary, and loads none.
        "model": str(members.large.folder),
        "num_speculative_tokens": speculation.tokens,
    }
    if speculation.adapt:
        # Every number once, so that graphs are captured for it. Which one a step takes, our scheduler says.
        settings["num_speculative_tokens_per_batch_size"] = [
            *((1 + number, 1 + number, number) for number in range(speculation.tokens)),
            (1 + speculation.tokens, _MANY_REQUESTS, speculation.tokens),
        ]
    return {
        "speculative_config": settings,
        "worker_cls": "server.engine.speculation.worker.SpeculatingWorker",
        "scheduler_cls": "server.engine.speculation.scheduler.PacedScheduler",
        # Asynchronously, every running request would get rows for drafts, whether anything drafts for it or not.
        "async_scheduling": False,
    }


def check_engine_config(vllm_config: VllmConfig, members: Members) -> None:
    """Refuse what only shows in the whole configuration and would go wrong in silence, or late.

    Raises:
        ConfigError: members beside the large one would stay without weights, or without KV cache.
    """
    if len(members.all) == 1:
        return
    if vllm_config.kv_transfer_config is not None:
        raise ConfigError("engine: a KV connector would move a step's KV cache before the members have read it")
    if not envs.VLLM_USE_LAYERNAME:
        # An adapter may load the base's compiled code, which would hold the names of the base's layers.
        raise ConfigError(
            "VLLM_USE_LAYERNAME=0: members of one architecture share compiled code, which must not name layers"
        )
    loader = get_model_loader(vllm_config.load_config)
    if not isinstance(loader, DefaultModelLoader | DummyModelLoader):
        raise ConfigError(
            f"engine.load_format: '{vllm_config.load_config.load_format}' loads the large model alone; base and "
            "experts need 'auto', 'safetensors' or 'pt'"
        )


def _prepare_for_all(vllm_config: VllmConfig, members: Members) -> None:
    """Have vLLM 0.32 set up a process for all members, where it looks at the large model alone."""
    scheduler = vllm_config.scheduler_config
    if len(members.all) > 1 and scheduler.scheduler_cls is None:
        name = "AsyncFusionScheduler" if scheduler.async_scheduling else "FusionScheduler"
        scheduler.scheduler_cls = f"server.engine.scheduling.{name}"
    if len(members.all) > 1 and vllm_config.parallel_config.tensor_parallel_size > 1:
        # The fusion of all-reduce and norm takes one workspace for the process, of the size of the first model.
        vllm_config.compilation_config.pass_config.fuse_allreduce_rms = False
    if any(member.is_sparse for member in members.all) and not vllm_config.model_config.is_moe:
        # Expert-parallel groups, which a mixture of experts needs even with one rank, are made by this number.
        vllm_config.model_config.model_arch_config.num_experts = 1
        vllm_config.parallel_config.is_moe_model = True


def composite_config(large: Path, fusion: dict[str, Any], hf_config: PreTrainedConfig) -> PreTrainedConfig:
    """Make the large model's configuration the composite model's; vLLM calls it in each of its processes."""
    text = text_part(hf_config, large)
    text.update({"architectures": [plugin.ARCHITECTURE], "fusion": fusion})
    return text


def fusion_config(config: Config, members: Members) -> dict[str, Any]:
    """What the composite model reads from its configuration: where the other members come from, and what to count."""
    prefixes = {number: f"expert_{member.name}" for number, member in members.numbered.items()} | {BASE: "base"}
    pairs = Pairs(config)
    shared = {number for number, member in members.numbered.items() if member.shares_weights}
    twins = {twin.number for twin in members.twins}
    sources = {
        number: {"name": prefixes[number], "number": number, "title": member.name, **member.source}
        for number, member in members.numbered.items()
        if number not in twins
    }
    return {
        "architectures": members.large.hf_config.architectures,
        "multimodal": members.large.multimodal,
        "members": [source for number, source in sources.items() if number not in shared],
        "twins": [
            *(source | {"of": BASE} for number, source in sources.items() if number in shared),
            *(
                {"name": f"twin_{twin.number}", "number": twin.number, "of": twin.of, "title": twin.member.name}
                for twin in members.twins
            ),
        ],
        "experts": [
            {"name": expert.name, "ends": list(expert.end_ids), "parts": [part.name for part in expert.mixture]}
            for expert in members.experts
        ],
        "most_parts": max((len(expert.mixture) for expert in members.experts), default=0),
        "pairs": [[list(pairs.own(t)), list(pairs.shared(t))] for t in range(len(members.experts))],
        "presets": len(config.presets),
        "routers": [{"file": file, "classes": list(Router.load(Path(file)).classes)} for file in config.routers],
        "spare_rank": 0 if config.adapters is None else config.adapters.max_rank,
    }
