"""All that there is to know of the fusion on this machine's card, in at most ten minutes.

    make gpu-check            # or: python -m bench.gpu.check [--seconds 600] [--without-card]

Writes one Markdown report and one JSON file under bench/results/gpu/, named by the card and the versions. Parts that
this machine cannot do say so: without vLLM there is nothing to say of the engine, and without a card only what the
kernels are compiled to and how long they should take (`--without-card`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton

from bench.gpu.cost import H200, kernels_of, predict, table
from bench.gpu.cost import SHAPES as PREDICTED
from bench.gpu.resources import SHARED_LIMITS, compile_all, example

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
ROOT = Path(__file__).parents[2]
NO_CARD = 2


@dataclass
class Report:
    """What each part found, as Markdown and as data."""

    seconds: float
    card: str
    began: float = field(default_factory=time.monotonic)
    texts: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    @property
    def file(self) -> Path:
        """Where it is written."""
        name = f"{self.card}-torch-{torch.__version__}-triton-{triton.__version__}"
        return RESULTS / (re.sub(r"[^A-Za-z0-9.]+", "-", name) + ".md")

    @property
    def left(self) -> float:
        """Seconds until the time is over."""
        return self.seconds - (time.monotonic() - self.began)

    def part(self, title: str, work: Callable[[], tuple[str, Any]]) -> None:
        """Do one part; what it raises is its result, and the others go on."""
        print(f"{title} ...", flush=True)
        begun = time.monotonic()
        if self.left <= 0:
            text, data = "not done: the time was over", None
        else:
            try:
                text, data = work()
            except Exception as error:
                traceback.print_exc()
                text, data, self.failed = f"**failed**: {type(error).__name__}: {error}", None, True
        took = time.monotonic() - begun
        self.texts.append(f"## {title}\n{text}\n\n({took:.0f} s)")
        self.data[title] = {"text": text, "data": data, "seconds": round(took, 1)}
        print(text, flush=True)
        self.store()

    def store(self) -> None:
        """Write what there is so far: a machine may be taken away in the middle."""
        versions = {"torch": torch.__version__, "triton": triton.__version__, "python": sys.version.split()[0]}
        if importlib.util.find_spec("vllm") is not None:
            versions["vllm"] = importlib.import_module("vllm").__version__
        title = "# The fusion's kernels without a card" if self.card == "none" else f"# The fusion on {self.card}"
        said = ", ".join(f"{package} {number}" for package, number in versions.items())
        head = f"{title}\n\n{said}. Written by `python -m bench.gpu.check`."
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n\n".join([head, *self.texts]) + "\n")
        found = {"card": self.card, "versions": versions, "parts": self.data}
        self.file.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> int:
    """Do all parts, write the report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--without-card", action="store_true")
    options = parser.parse_args()
    if not options.without_card and not torch.cuda.is_available():
        print("No NVIDIA card here: only what needs none can be told, with --without-card.")
        return NO_CARD
    name = "none" if options.without_card else torch.cuda.get_device_name()
    report = Report(options.seconds, name)
    report.part("What the kernels are compiled to", compiled)
    report.part("What they should take on an H200: a prediction", predicted)
    if not options.without_card:
        report.part("Times", measured)
        report.part("The kernels against the reference", lambda: proven(report.left / 2))
        for title, command, environment in ENGINE:
            report.part(title, lambda c=command, e=environment: engine(c, e, report.left))  # type: ignore[misc]
    print(f"stored in {report.file.relative_to(ROOT)}")
    return int(report.failed)


def compiled() -> tuple[str, Any]:
    """Registers, spills and shared memory on each architecture, and how many programs a multiprocessor holds."""
    rows = [kernel for architecture in SHARED_LIMITS for kernel in compile_all(architecture, example())]
    lines = [
        "| kernel | compute capability | registers | spilled bytes | shared bytes | programs per multiprocessor |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.kernel} | {row.architecture / 10} | {row.registers} | {row.spilled} | {row.shared} | {row.programs} |"
        for row in rows
    ]
    return "\n".join(lines), [row._asdict() for row in rows]


def predicted() -> tuple[str, Any]:
    """The cost model's table."""
    found = [predict(*shape, kernels_of()) for shape in PREDICTED]
    return table(found), [{"rows": one.rows, "vocabulary": one.vocabulary, "us": one.us} for one in found]


def proven(seconds: float) -> tuple[str, Any]:
    """The kernels against the float64 reference."""
    from bench.gpu.native import prove

    return prove(seconds), None


def measured() -> tuple[str, Any]:
    """Times beside the prediction, the floor and the paper's loop."""
    from bench.gpu.native import measure

    try:
        predictions = [predict(*shape, kernels_of(), H200) for shape in PREDICTED]
    except ValueError:  # which the part about the prediction reports
        predictions = []
    rows = list(measure(predictions))
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---:|" * len(columns)]
    lines += ["| " + " | ".join(f"{row[column]:,.1f}" for column in columns) + " |" for row in rows]
    return "\n".join(lines), rows


PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long"]
ENGINE: list[tuple[str, list[str], dict[str, str]]] = [
    ("The large model alone beside plain vLLM", ["-m", "bench.gpu.engine"], {}),
    (
        "Fused tokens against the reference, members with shorter vocabularies among them",
        [*PYTEST, "tests/engine/test_random_batches.py", "tests/engine/test_members.py"],
        {},
    ),
    (
        "A step without waiting for the host",
        [*PYTEST, "tests/engine/test_random_batches.py", "-k", "chunks"],
        {"VLLM_GPU_SYNC_CHECK": "error"},
    ),
    ("Memory against what `check` says", ["-m", "bench.gpu.memory"], {}),
    ("Throughput, without graphs", ["-m", "bench.throughput", "--rounds", "1"], {}),
    ("Throughput, piecewise graphs", ["-m", "bench.throughput", "--rounds", "1", "--graphs", "PIECEWISE"], {}),
    ("Throughput, full graphs", ["-m", "bench.throughput", "--rounds", "1", "--graphs", "FULL_AND_PIECEWISE"], {}),
]
"""What the engine is asked, each in a process of its own."""


def engine(command: list[str], environment: dict[str, str], seconds: float) -> tuple[str, Any]:
    """One of `ENGINE`.

    Raises:
        RuntimeError: it failed.
        TimeoutExpired: it took longer than the time that was left.
    """
    if importlib.util.find_spec("vllm") is None:
        return "not done: vLLM is not installed here", None
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    said = "\n".join(done.stdout.splitlines()[-20:])
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}\n\n{said}\n{done.stderr[-1500:]}")
    return f"```text\n{said}\n```", None


if __name__ == "__main__":
    sys.exit(main())
