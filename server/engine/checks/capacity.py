"""How many tokens and requests fit into memory beside the weights, by the rules by which vLLM 0.32 sizes its cache."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from server.devices import Devices
from server.engine.checks import Report
from server.engine.checks.architecture import kv_dtype_bytes
from server.errors import ConfigError

GIB = 1 << 30
# What a worker takes beside weights, logits and cache: libraries, activations, on GPUs also CUDA graphs. Rough.
OVERHEAD = GIB
# What vLLM 0.32 sets for servers: on CPUs, and on cards of 70 GiB and more; others get 256.
DEFAULT_SEQUENCES = {"cpu": 128, "gpu": 1024}
DEFAULT_UTILIZATION = 0.92
BLOCK_SIZE = {"cpu": 128, "gpu": 16}


@dataclass(frozen=True)
class Capacity:
    """What fits on one device; with tensor parallelism each holds its share."""

    device: str
    budget: str
    """Where the cache's bytes come from, in words."""
    weight_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    requests: int
    """How many requests of the full context length run at once."""
    speed_idle: float
    """Tokens per second of one short request, as a share of the large model's alone; see `relative_speed`."""
    speed_full: float
    """The same, with the KV cache full."""
    tokens_idle: float | None
    """Tokens per second of one short request that reading memory allows; `None` where its bandwidth is not known."""
    tokens_full: float | None
    """The same of all requests together, with the KV cache full of requests of the full length."""


def measure_capacity(report: Report, devices: Devices | None = None) -> Capacity:
    """Say what fits on this machine, as it is now, or on `devices` that hold nothing else.

    Raises:
        ConfigError: not even one request of the full length fits, or memory that vLLM would reserve is not free.
    """
    engine = report.config.engine
    parallel = int(engine.get("tensor_parallel_size") or 1)
    weights = math.ceil(report.weight_bytes / parallel)
    number = kv_dtype_bytes(engine, report.dtype)
    per_token = sum(r.architecture.kv_bytes_per_token(number, parallel) for r in report.reports)
    if devices is None:
        from vllm.platforms import current_platform

        cpu = current_platform.is_cpu()
        device = "CPU" if cpu else current_platform.get_device_name()
        memory = _memory(cpu)
    else:
        cpu, device = False, str(devices)
        memory = devices.card.gib * GIB, devices.card.gib * GIB
    sequences = int(engine.get("max_num_seqs") or DEFAULT_SEQUENCES["cpu" if cpu else "gpu"])
    speculation = report.config.speculation
    logits = logit_bytes(report, sequences * (1 + (speculation.tokens if speculation else 0)))
    kv_bytes, budget = _cache_bytes(engine, weights, logits, cpu, *memory)
    block = int(engine.get("block_size") or BLOCK_SIZE["cpu" if cpu else "gpu"])
    tokens = max(0, kv_bytes // per_token // block * block)
    blocks_of_one = math.ceil(report.max_model_len / block) * block
    if tokens < blocks_of_one:
        hint = f"set engine.max_model_len to {tokens} or less" if tokens else "free memory, or serve smaller members"
        raise ConfigError(
            f"memory: {format_bytes(max(0, kv_bytes))} remain for the KV cache ({budget}), but one request of "
            f"{report.max_model_len} tokens takes {format_bytes(blocks_of_one * per_token)}; {hint}"
        )
    requests = tokens // blocks_of_one
    tokens_idle = tokens_full = None
    if devices is not None:
        bandwidth = devices.card.gb_per_s * 1e9
        tokens_idle = bandwidth / weights
        tokens_full = requests * bandwidth / (weights + requests * blocks_of_one * per_token)
    return Capacity(
        device,
        budget,
        weights,
        kv_bytes,
        per_token,
        tokens,
        requests,
        relative_speed(report, 0),
        relative_speed(report, tokens),
        tokens_idle,
        tokens_full,
    )


def logit_bytes(report: Report, rows: int) -> int:
    """Say what the logits of a step take on each device: every member's in the models' dtype, and the fused ones.

    rows x vocabulary x (members x bytes per number + 4), whatever the tensor parallel size: each device fuses whole
    rows.
    """
    number = 4 if report.dtype == "float32" else 2
    return rows * report.vocabulary * (len(report.reports) * number + 4)


def relative_speed(report: Report, cached_tokens: int) -> float:
    """Say which share of the large model's own decoding speed the fused model reaches at best.

    A step reads every member's weights once, and every member's cache of all running requests, and reading is what
    takes the time: (W_large + n K_large) / (W + n K), with the weights' bytes W, the cache's bytes per token K, and n
    tokens in the cache. Devices that share the members share both sides.
    """
    parallel = int(report.config.engine.get("tensor_parallel_size") or 1)
    number = kv_dtype_bytes(report.config.engine, report.dtype)
    read = [
        r.read_bytes / parallel + cached_tokens * r.architecture.kv_bytes_per_token(number, parallel)
        for r in report.reports
    ]
    return read[0] / sum(read)


def format_bytes(count: int) -> str:
    """Say bytes in the unit that leaves one to four digits before the point."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _cache_bytes(
    engine: dict[str, Any], weights: int, logits: int, cpu: bool, total: int, available: int
) -> tuple[int, str]:
    """Return the bytes that vLLM will give the KV cache of one device, and why."""
    # On CPU the environment wins over the engine's argument.
    space = os.environ.get("VLLM_CPU_KVCACHE_SPACE") if cpu else None
    fixed = int(space) * GIB if space else engine.get("kv_cache_memory_bytes")
    if fixed is not None:
        name = "VLLM_CPU_KVCACHE_SPACE" if space else "engine.kv_cache_memory_bytes"
        if fixed + weights > available:
            raise ConfigError(
                f"memory: {name} asks for {format_bytes(fixed)} and the weights take {format_bytes(weights)}, but "
                f"{format_bytes(available)} are free"
            )
        return fixed, name
    share = float(engine.get("gpu_memory_utilization") or DEFAULT_UTILIZATION)
    reserved = math.ceil(total * share)
    if reserved > available:
        works = math.floor(available / total * 100) / 100
        raise ConfigError(
            f"memory: engine.gpu_memory_utilization reserves {share:g} of {format_bytes(total)}, but "
            f"{format_bytes(available)} are free; {works:g} is the largest value that works"
        )
    rest = reserved - weights - logits - OVERHEAD
    less = f"less the weights, {format_bytes(logits)} of logits and about {format_bytes(OVERHEAD)} to work in"
    return rest, f"{share:g} of {format_bytes(total)}, {less}"


def _memory(cpu: bool) -> tuple[int, int]:
    """Return total and available bytes of the device, as vLLM counts them."""
    if cpu:
        from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

        node = get_memory_node_info(next(iter(get_visible_memory_node()), 0))
        return node.total_memory, node.available_memory
    import torch

    free, total = torch.cuda.mem_get_info()
    return total, free
