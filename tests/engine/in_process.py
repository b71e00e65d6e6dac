"""An engine inside this process, so that a test can look into its steps: run as a process of its own.

    python -m tests.engine.in_process SCENARIO FOLDER

It generates for a fixed mix of requests, once plainly and once under the scenario's conditions, compares the two, and
prints "same". FOLDER holds the family of `tests.models.make_family`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

EXPERTS = 2
OPTIONS = ["engine.max_num_seqs=6", "engine.max_num_batched_tokens=48", "engine.enforce_eager=true"]


def engine(folder: Path) -> Any:
    """vLLM's synchronous engine with the composite model."""
    os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM

    from server.config import load_config
    from server.engine.launch import engine_args
    from server.engine.members import resolve_members

    config = load_config(folder / "fusion.yaml", OPTIONS)
    args = engine_args(config, resolve_members(config))
    return LLM(
        model=args.model,
        hf_overrides=args.hf_overrides,
        worker_extension_cls=args.worker_extension_cls,
        enable_prefix_caching=False,
        **config.engine,
    )


def requests() -> tuple[list[Any], list[Any]]:
    """Prompts and parameters: every weighting, one expert and both, greedy and seeded, some with prompt logprobs."""
    from vllm import SamplingParams

    from fusion_kernels import Weighting
    from server.engine.settings import FusionSettings

    kinds = list(Weighting)
    prompts, params = [], []
    for number in range(18):
        kind = kinds[number % len(kinds)]
        experts = {Weighting.NONE: (), Weighting.ALONE: (number % EXPERTS,)}.get(kind, ((0,), (1,), (0, 1))[number % 3])
        made = SamplingParams(
            temperature=0.8 if number % 4 == 3 else 0,
            seed=number,
            max_tokens=8 + number % 5,
            ignore_eos=True,
            prompt_logprobs=0 if number % 5 == 0 else None,
            detokenize=False,
        )
        FusionSettings(kind, experts, (0.8,) * len(experts) if kind is Weighting.STATIC else ()).attach(made)
        prompts.append({"prompt_token_ids": [3 + (number * 37 + i * 11) % 500 for i in range(5 + number * 5)]})
        params.append(made)
    return prompts, params


def answers(llm: Any) -> list[Any]:
    """Tokens and rounded prompt logprobs of all requests."""
    prompts, params = requests()
    found = []
    for output in llm.generate(prompts, params, use_tqdm=False):
        logprobs = [
            round(next(iter(entry.values())).logprob, 4) for entry in output.prompt_logprobs or () if entry is not None
        ]
        found.append((list(output.outputs[0].token_ids), logprobs))
    return found


def runner(llm: Any) -> Any:
    """The model runner of the engine's only worker."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


@contextlib.contextmanager
def shared_buffer(llm: Any) -> Iterator[None]:
    """Every member returns the same memory, as models in one CUDA graph pool may."""
    from server.engine.member import SmallMember

    plain, buffer = SmallMember.run, torch.full((4096, 512), float("nan"))

    def run(self: Any, *args: Any) -> torch.Tensor:
        states = plain(self, *args)
        buffer[: states.shape[0], : states.shape[1]] = states
        return buffer[: states.shape[0], : states.shape[1]]

    SmallMember.run = run  # type: ignore[method-assign, assignment]
    yield
    SmallMember.run = plain  # type: ignore[method-assign]


class FakeGraphs:
    """vLLM's `CudaGraphManager` where there is no GPU: a replay calls the captured function again.

    That function reads the member's input buffers alone, as a graph would, so wrong padding or a buffer that was not
    refilled shows.
    """

    replays = 0

    def __init__(self, config: Any, device: Any, mode: Any, decode_query_len: int) -> None:
        self._captured: dict[Any, Callable[[Any], None]] = {}
        self._addresses: dict[Any, list[int]] = {}

    def needs_capture(self) -> bool:
        return True

    def capture(self, create: Any, progress_bar_desc: str) -> None:
        from vllm.config.compilation import CUDAGraphMode
        from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

        for size in (6, 4, 1):
            graph = BatchExecutionDescriptor(CUDAGraphMode.FULL, size, size, uniform_token_count=1)
            create(graph, warmup=True)(CUDAGraphMode.NONE)
            self._captured[graph] = create(graph, warmup=False)

    def dispatch(self, num_reqs: int, num_tokens: int, uniform: int, loras: int) -> Any:
        return min((graph for graph in self._captured if graph.num_tokens >= num_tokens), key=lambda g: g.num_tokens)

    def run_fullgraph(self, graph: Any) -> None:
        from vllm.config.compilation import CUDAGraphMode

        FakeGraphs.replays += 1
        self._captured[graph](CUDAGraphMode.NONE)


@contextlib.contextmanager
def graphs(llm: Any) -> Iterator[None]:
    """The members run decode steps by their graphs."""
    from vllm.config.compilation import CUDAGraphMode

    from server.engine import member_graphs

    model_runner = runner(llm)
    compilation = model_runner.vllm_config.compilation_config
    compilation.cudagraph_mode, compilation.max_cudagraph_capture_size = CUDAGraphMode.FULL_DECODE_ONLY, 6
    member_graphs.CudaGraphManager = FakeGraphs  # type: ignore[attr-defined, assignment]
    model_runner.model_state.capture_inner_cudagraphs(
        model_runner.input_buffers, model_runner.block_tables, model_runner.attn_groups, model_runner.kv_cache_config
    )
    yield
    assert FakeGraphs.replays > 20, FakeGraphs.replays


@contextlib.contextmanager
def everyone(llm: Any) -> Iterator[None]:
    """Every member runs for every request, whether it uses it or not."""
    from server.engine.slots import SlotTable

    plain = SlotTable.add

    def add(self: Any, index: int, slot: Any, block_size: int = 1) -> None:
        plain(self, index, slot, block_size)
        self.members_run[index] = True

    SlotTable.add = add  # type: ignore[method-assign]
    yield
    SlotTable.add = plain  # type: ignore[method-assign]


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where a tensor's value is read on the host, which on a GPU waits for all that is under way."""

    READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(self.READS):
            raise AssertionError(f"{name} reads a tensor on the host")
        if name.startswith("aten.index") and any(
            index is not None and index.dtype == torch.bool for index in args[1] if isinstance(args[1], list | tuple)
        ):
            raise AssertionError(f"{name} by a mask: its size is read on the host")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_host_reads(llm: Any) -> Iterator[None]:
    """All that the composite and its state do in a step, with every operation watched."""
    from server.engine.composite import LogitFusionForCausalLM
    from server.engine.state import FusionModelState

    with NoHostReads():  # type: ignore[no-untyped-call]
        for read in (
            lambda: bool(torch.ones(1)),
            lambda: torch.ones(2).nonzero(),
            lambda: torch.ones(2)[torch.ones(2) > 0],
        ):
            try:
                read()
            except AssertionError:
                continue
            raise RuntimeError("a read on the host goes unseen")
    watched: list[str] = []

    def watch(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            watched.append(name)
            with NoHostReads():  # type: ignore[no-untyped-call]
                return plain(self, *args, **kwargs)

        setattr(owner, name, method)

    watch(FusionModelState, "prepare_inputs")
    watch(FusionModelState, "apply_staged_writes")
    watch(LogitFusionForCausalLM, "compute_logits")
    yield
    assert {"prepare_inputs", "apply_staged_writes", "compute_logits"} <= set(watched)


SCENARIOS = {
    "shared-buffer": shared_buffer,
    "graphs": graphs,
    "everyone": everyone,
    "no-host-reads": no_host_reads,
}


def main() -> None:
    """Run the scenario."""
    name, folder = sys.argv[1:]
    llm = engine(Path(folder))
    expected = answers(llm)
    with SCENARIOS[name](llm):
        found = answers(llm)
    different = [number for number, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
    assert not different, f"requests {different}: {[(expected[i], found[i]) for i in different[:2]]}"
    print("same", flush=True)
    os._exit(0)  # the engine's threads keep the process


if __name__ == "__main__":
    main()
