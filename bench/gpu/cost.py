"""How long a fusion should take on a card, from what its kernels are compiled to: a prediction, to be held to a card.

A launch takes the longest of three, and then what its last program does alone:

- memory: the bytes that it must move, by the bandwidth of the memory or of the L2 cache that has them;
- issue: the instructions of all its warps, one per scheduler and cycle;
- one program: its own instructions, and its waits for memory, however idle the card is.

Between two launches that wait for each other a card takes a moment more. The floor is what any kernel must move: each
member's logits once, and the fused ones once.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from bench.gpu.resources import Loop, Resources, compile_all, example
from fusion_kernels.triton.launch import BLOCK_IDS, CHUNK_IDS, COMPILED_WITH, WIDE_IDS

SHAPES = [(rows, vocabulary) for vocabulary in (32_000, 128_256, 152_064) for rows in (1, 16, 64, 256)]
WARPS = COMPILED_WITH["num_warps"]
LOGIT_BYTES, FUSED_BYTES = 2, 4
# Instructions of a warp for one sum over a program's lanes: five shuffles, five additions, the exchange between warps.
REDUCTION = 25
# Sums and maxima of a chunk: 8 peaks, 5 masses and 15 sums of the first sweep; four moments; one maximum.
REDUCTIONS = {"scan_kernel": 28, "advance_kernel": 4, "write_kernel": 1}
# What the last program of a row does alone is about this share of a kernel's instructions ...
CONCLUSION = {"scan_kernel": 1 / 3, "advance_kernel": 1 / 3, "write_kernel": 0.0}
# ... each of which waits for the one before; elsewhere a lone warp finds something to do every other cycle.
WAITING_CYCLES, LONE_CYCLES = 3.0, 2.0


class Card(NamedTuple):
    """What the model knows of a card; figures marked as assumed are of the right size, and not measured here."""

    name: str
    architecture: int
    multiprocessors: int
    ghz: float
    memory_tb_s: float
    l2_tb_s: float
    l2_mb: float
    memory_us: float
    """From a load to its data; assumed, as the next ones are."""
    l2_us: float
    launch_us: float
    """From the end of a launch to the beginning of the next one."""


H200 = Card("H200", 90, 132, 1.98, 4.3, 5.5, 50.0, 0.6, 0.25, 1.3)
"""Multiprocessors, clock and L2 from NVIDIA's data sheet (67 TFLOPS in float32), memory as a copy measured it."""


class Step(NamedTuple):
    """One launch, in microseconds."""

    kernel: str
    memory: float
    issue: float
    one_program: float
    conclusion: float

    @property
    def us(self) -> float:
        """What it takes, without the launch."""
        return max(self.memory, self.issue, self.one_program) + self.conclusion


class Prediction(NamedTuple):
    """A fusion of one expert in which every row searches, and ends after one Newton step."""

    rows: int
    vocabulary: int
    steps: list[Step]
    launches: float
    floor: float

    @property
    def us(self) -> float:
        """All together."""
        return sum(step.us for step in self.steps) + self.launches


def predict(rows: int, vocabulary: int, kernels: dict[str, Resources], card: Card = H200) -> Prediction:
    """The time of `kl` with one expert in bfloat16.

    Args:
        rows: B.
        vocabulary: V of all members.
        kernels: by name, as `kernels_of` gives them.
        card: whose time.
    """
    ids = rows * vocabulary
    inputs, outputs = 3 * ids * LOGIT_BYTES, ids * FUSED_BYTES
    again = inputs / card.l2_tb_s if inputs < card.l2_mb * 1e6 else inputs / card.memory_tb_s
    written = max(outputs / card.memory_tb_s, again + outputs / card.l2_tb_s)
    traffic = {"scan_kernel": inputs / card.memory_tb_s, "advance_kernel": again, "write_kernel": written}
    steps = [_step(kernels[name], moved / 1e6, rows, vocabulary, card) for name, moved in traffic.items()]
    # The second `advance`, `finish` and the cleared counters find nothing to do.
    launches = (len(steps) + 3) * card.launch_us
    return Prediction(rows, vocabulary, steps, launches, (inputs + outputs) / card.memory_tb_s / 1e6)


@cache
def kernels_of(card: Card = H200) -> dict[str, Resources]:
    """The kernels for one expert, compiled for a card."""
    return {kernel.kernel: kernel for kernel in compile_all(card.architecture, example())}


def work_of(kernel: Resources) -> tuple[float, int]:
    """A chunk's instructions for each of a program's warps, and how often it waits for memory.

    Raises:
        ValueError: the kernel has other loops than those that were looked for, with another version of Triton perhaps.
    """
    threads = 32 * WARPS
    wide, block = CHUNK_IDS / WIDE_IDS, CHUNK_IDS / BLOCK_IDS
    if kernel.kernel == "scan_kernel":
        tops = _loop(kernel, loads=3, exponentials=0)
        look = _loop(kernel, exponentials=4 * BLOCK_IDS // threads)
        return wide * tops.all + block * look.all + REDUCTION * REDUCTIONS[kernel.kernel], int(wide)
    if kernel.kernel == "advance_kernel":
        moments = _loop(kernel, loads=3, exponentials=WIDE_IDS // threads)
        return wide * moments.all + REDUCTION * REDUCTIONS[kernel.kernel], int(wide)
    # The loop holds a branch for every slot, of which one is taken.
    fused = _loop(kernel, loads=17, stores=2)
    taken = fused.all * 3 / fused.loads
    return wide * taken + REDUCTION * REDUCTIONS[kernel.kernel], int(wide)


def _loop(kernel: Resources, **counts: int) -> Loop:
    for loop in kernel.loops:
        if all(getattr(loop, name) == count for name, count in counts.items()):
            return loop
    raise ValueError(f"{kernel.kernel} has no loop with {counts}: {kernel.loops}")


def table(predictions: list[Prediction]) -> str:
    """Predictions in Markdown."""
    lines = [
        "| rows | ids | scan | advance | write | launches | predicted us | floor us | times the floor |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for found in predictions:
        steps = " | ".join(f"{step.us:.1f}" for step in found.steps)
        ratio = found.us / found.floor
        lines.append(
            f"| {found.rows} | {found.vocabulary:,} | {steps} | {found.launches:.1f} | **{found.us:.1f}** | "
            f"{found.floor:.2f} | {ratio:.1f} |"
        )
    return "\n".join(lines)


def _step(kernel: Resources, memory: float, rows: int, vocabulary: int, card: Card) -> Step:
    instructions, waits = work_of(kernel)
    cycles_per_us = card.ghz * 1000
    programs = rows * -(-vocabulary // CHUNK_IDS)
    # The busiest multiprocessor decides.
    busiest = -(-programs // card.multiprocessors) if programs < kernel.programs * card.multiprocessors else 0
    load = busiest or programs / card.multiprocessors
    issue = load * WARPS * instructions / 4 / cycles_per_us
    latency = card.memory_us if kernel.kernel == "scan_kernel" else card.l2_us
    one = instructions * LONE_CYCLES * WARPS / 4 / cycles_per_us + waits * latency
    conclusion = kernel.instructions * CONCLUSION[kernel.kernel] * WAITING_CYCLES / cycles_per_us
    return Step(kernel.kernel, memory, issue, one, conclusion)
