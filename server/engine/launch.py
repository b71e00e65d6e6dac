"""From a configuration to a running engine."""

from __future__ import annotations

import os
from typing import Any

from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

from server.config import Config
from server.engine.client import FusionEngine
from server.engine.members import Members
from server.engine.plugin import ARCHITECTURE
from server.logs import loading_shows_progress


def start_engine(config: Config, members: Members) -> FusionEngine:
    """Load all members and start the engine's processes; call inside the event loop that will use it."""
    # vLLM 0.32 picks Model Runner V2 on GPUs by default; it keeps no logits processors that see the batch change.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    args = engine_args(config, members)
    vllm_config = args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    engine = FusionEngine.from_vllm_config(
        vllm_config, usage_context=UsageContext.OPENAI_API_SERVER, enable_log_requests=args.enable_log_requests
    )
    assert isinstance(engine, FusionEngine)
    return engine


def engine_args(config: Config, members: Members) -> AsyncEngineArgs:
    """vLLM's engine arguments: those of the configuration, and those that make the model the composite."""
    arguments: dict[str, Any] = dict(config.engine)
    arguments.setdefault("use_tqdm_on_load", loading_shows_progress())
    structured = arguments.get("structured_outputs_config")
    if isinstance(structured, dict):
        # vLLM 0.32 makes an object of the mapping only after it has set `reasoning_parser` on it.
        arguments["structured_outputs_config"] = StructuredOutputsConfig(**structured)
    if current_platform.is_cuda_alike():
        # Only the members' own layers go into CUDA graphs. A full graph would also freeze the composite's look at
        # the batch's layout, which nobody has tried yet.
        arguments.setdefault("compilation_config", {"cudagraph_mode": "PIECEWISE"})
    if current_platform.is_cpu():
        arguments.setdefault("worker_cls", "server.engine.cpu_worker.FusionCPUWorker")
    return AsyncEngineArgs(
        model=str(members.large.folder),
        served_model_name=list(config.presets),
        hf_overrides={"architectures": [ARCHITECTURE], "fusion": fusion_config(config, members)},
        worker_extension_cls="server.engine.extension.FusionWorkerExtension",
        **arguments,
    )


def fusion_config(config: Config, members: Members) -> dict[str, Any]:
    """What the composite model reads from its configuration: where the other members come from, and what to count."""
    return {
        "architectures": members.large.hf_config.architectures,
        "base": members.base and members.base.source,
        "experts": [{"name": expert.name, **expert.source} for expert in members.experts],
        "presets": len(config.presets),
    }
