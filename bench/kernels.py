"""Times `fuse_logits` against the paper's loop in eager torch and against the floor, one read and one write of memory.

    python -m bench.kernels            # a table, bench/results/kernels-<device>.csv and .png

Every figure of a line comes from one run with the candidates taking turns, the best of many rounds counting. The floor
is (bytes of the inputs once + bytes of the output once) / (copy bandwidth measured in the same run).
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.results_file import store
from fusion_kernels import Fused, Weighting, fuse_logits, warm_up

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
ROWS, VOCABULARY = (256, 32_000) if DEVICE == "cuda" else (16, 32_000)
SECONDS = 0.6
GRID = [k / 10 for k in range(21)]

Run = Callable[[], object]


@dataclass
class Case:
    """Random logits of B rows, V ids and T experts that look like a model's: a bell with a few tokens far above it."""

    rows: int
    vocabulary: int
    number: int
    dtype: torch.dtype = DTYPE

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (self.rows, self.vocabulary)

        def logits(scale: float) -> Tensor:
            values = torch.randn(shape, generator=generator) * scale
            peaks = torch.randint(0, self.vocabulary, (self.rows, 4), generator=generator)
            return values.scatter_add(1, peaks, torch.rand(self.rows, 4, generator=generator) * 4 * scale)

        self.large, self.base = logits(3.0).to(DEVICE, self.dtype), logits(3.0).to(DEVICE, self.dtype)
        self.experts = [(self.base.float() + logits(1.0).to(DEVICE)).to(self.dtype) for _ in range(self.number)]

    def fuse(self, kind: Weighting) -> Run:
        kinds = torch.full((self.rows,), int(kind), dtype=torch.int8, device=DEVICE)
        use = torch.ones(self.rows, self.number, dtype=torch.bool, device=DEVICE)
        alpha, alpha_max = (
            torch.ones(self.rows, self.number, device=DEVICE),
            torch.full((self.rows,), 2.0, device=DEVICE),
        )

        def run() -> Fused:
            members = (self.large, self.base, self.experts)
            return fuse_logits(*members, kind=kinds, use=use, alpha=alpha, alpha_max=alpha_max)

        return run

    def loop(self) -> Run:
        return lambda: paper_loop(self.large, self.base, self.experts)

    def copy(self) -> Run:
        """Read once and write once as many bytes as the fusion must."""
        size = sum(m.numel() * m.element_size() for m in [self.large, self.base, *self.experts])
        moved = size + self.large.numel() * 4
        source = torch.ones(moved // 8, device=DEVICE)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)


def paper_loop(large: Tensor, base: Tensor, experts: list[Tensor]) -> Tensor:
    """Algorithm 1 as one would write it in torch: 21 T candidates, each with a softmax over the vocabulary."""
    log_p, log_q = large.float().log_softmax(-1), base.float().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    deltas, targets = [], []
    for expert in experts:
        log_q_t = expert.float().log_softmax(-1)
        targets.append(((log_q_t.exp() * (log_q_t - log_q)).sum(-1), (q * (log_q - log_q_t)).sum(-1)))
        deltas.append(expert.float() - base.float())
    best = torch.full((len(large),), torch.inf, device=large.device)
    fused = large.float()
    for delta in deltas:
        for alpha in GRID:
            logits = large.float() + alpha * delta
            log_fused = logits.log_softmax(-1)
            f, g = (log_fused.exp() * (log_fused - log_p)).sum(-1), (p * (log_p - log_fused)).sum(-1)
            loss = torch.stack([(f - a).square() + (g - b).square() for a, b in targets]).sum(0)
            lower = loss < best
            best = torch.where(lower, loss, best)
            fused = torch.where(lower[:, None], logits, fused)
    return fused


def matmul() -> Run:
    """What an engine does in between: torch's own threads are left spinning, and other data is in the cache."""
    left, right = torch.randn(16, 1024, device=DEVICE), torch.randn(1024, 4096, device=DEVICE)
    return lambda: left @ right


def seconds(run: Run) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(runs: dict[str, Run], between: Run | None = None) -> dict[str, float]:
    """Best milliseconds of each, taking turns for `SECONDS` per candidate after a warm-up round."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()
    begin = time.perf_counter()
    while time.perf_counter() - begin < SECONDS * len(runs):
        for name, run in runs.items():
            if between is not None:
                between()
            best[name] = min(best[name], seconds(run) * 1000)
    return best


def line(part: str, case: Case, kind: str, took: dict[str, float], name: str) -> dict[str, object]:
    floor = took["copy"]
    return {
        "part": part,
        "device": DEVICE,
        "threads": torch.get_num_threads(),
        "kind": kind,
        "rows": case.rows,
        "vocabulary": case.vocabulary,
        "experts": case.number,
        "dtype": str(case.dtype).removeprefix("torch."),
        "ms": round(took[name], 4),
        "floor_ms": round(floor, 4),
        "times_floor": round(took[name] / floor, 2),
        "loop_ms": round(took["loop"], 3) if "loop" in took else "",
        "faster_than_loop": round(took["loop"] / took[name], 1) if "loop" in took else "",
    }


def by_kind(case: Case, part: str, between: Run | None = None) -> list[dict[str, object]]:
    """All kinds beside the loop and the floor."""
    runs = {kind.name.lower(): case.fuse(kind) for kind in Weighting}
    took = measure(runs | {"loop": case.loop(), "copy": case.copy()}, between)
    return [line(part, case, name, took, name) for name in runs] + [line(part, case, "paper loop", took, "loop")]


def compiled_loop(case: Case) -> dict[str, object]:
    """torch.compile of the loop, the other way to make it fast without a kernel of one's own."""
    compiled = torch.compile(paper_loop, dynamic=False)
    run = {"compiled": lambda: compiled(case.large, case.base, case.experts), "kl": case.fuse(Weighting.KL)}
    took = measure(run | {"loop": case.loop(), "copy": case.copy()})
    return line("compiled", case, "torch.compile of the paper loop", took, "compiled")


def scaling() -> list[dict[str, object]]:
    """Cost of `kl` against rows, vocabulary and experts, one at a time."""
    factor = ROWS // 16
    shapes = [("rows", rows * factor, VOCABULARY, 1) for rows in (1, 2, 4, 8, 16, 32, 64)]
    shapes += [("vocabulary", ROWS, size, 1) for size in (8_000, 16_000, 32_000, 64_000, 128_256, 152_064, 262_144)]
    shapes += [("experts", ROWS, VOCABULARY, number) for number in (1, 2, 4, 8)]
    lines = []
    for part, rows, vocabulary, number in shapes:
        case = Case(rows, vocabulary, number)
        took = measure({"kl": case.fuse(Weighting.KL), "copy": case.copy()})
        lines.append(line(part, case, "kl", took, "kl"))
    return lines


def plot(lines: list[dict[str, object]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    for axis, part in zip(axes, ("rows", "vocabulary", "experts"), strict=True):
        chosen = [entry for entry in lines if entry["part"] == part]
        x = [float(str(entry[part])) for entry in chosen]
        axis.plot(x, [float(str(entry["times_floor"])) for entry in chosen], "o-", label="time / floor")
        axis.set(xlabel=part, ylabel="time / floor", ylim=(0, None))
        other = axis.twinx()
        other.plot(x, [float(str(entry["ms"])) for entry in chosen], "s--", color="tab:orange")
        other.set(ylabel="ms", ylim=(0, None))
    figure.suptitle(f"kl on {DEVICE}: solid, times the floor (read once + write once); dashed, milliseconds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def show(lines: list[dict[str, object]]) -> None:
    columns = ["part", "kind", "rows", "vocabulary", "experts", "dtype", "ms", "times_floor", "faster_than_loop"]
    print("  ".join(f"{name:>16}" for name in columns))
    for entry in lines:
        print("  ".join(f"{entry[name]!s:>16.31}" for name in columns), flush=True)


def keep_memory() -> None:
    """Have glibc keep freed memory: mapping it anew for each tensor would cost the loop several times its arithmetic.

    vLLM's own advice for CPUs, to preload tcmalloc, has the same effect.
    """
    trim_threshold, mmap_threshold, mebibyte = -1, -3, 2**20
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 32 * mebibyte)
    libc.mallopt(trim_threshold, 1024 * mebibyte)


def main() -> None:
    if DEVICE == "cpu":
        keep_memory()
    warm_up()
    main_case = Case(ROWS, VOCABULARY, 1)
    lines = by_kind(main_case, "kinds")
    lines += by_kind(main_case, "kinds, in between matmuls", matmul())
    lines += by_kind(Case(ROWS, VOCABULARY, 1, torch.bfloat16), "kinds")
    if DEVICE == "cuda":
        for shape in [(256, 32_000, 4), (64, 152_064, 1), (64, 152_064, 4)]:
            lines += by_kind(Case(*shape), "kinds")
    lines.append(compiled_loop(main_case))
    lines += scaling()
    show(lines)
    plot(lines, store(f"kernels-{DEVICE}", lines).with_suffix(".png"))


if __name__ == "__main__":
    main()
