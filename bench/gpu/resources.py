"""What Triton compiles the fusion's kernels to, for cards that need not be here.

The compiler's own tools, which come with Triton, tell how much of a multiprocessor a program takes, and what a step of
each of its loops is made of.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fusion_kernels.batch import Batch, Fused
from fusion_kernels.triton.launch import COMPILED_WITH, Launch, launches

# Shared memory of one program, in bytes, by compute capability (CUDA C++ Programming Guide, "Technical Specifications
# per Compute Capability"); all have 65,536 registers and room for 2,048 threads per multiprocessor.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
REGISTERS, THREADS = 65_536, 2_048
THREADS_PER_PROGRAM = 32 * COMPILED_WITH["num_warps"]
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int8: "i8",
}


class Loop(NamedTuple):
    """The instructions of a loop's step, for one warp."""

    all: int
    loads: int
    stores: int
    exponentials: int


class Resources(NamedTuple):
    """What one program of a kernel needs."""

    kernel: str
    architecture: int
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread that found no register."""
    shared: int
    """Bytes of shared memory."""
    instructions: int
    """Of the whole kernel."""
    loops: tuple[Loop, ...]
    """Those that hold no other loop, in their order."""

    @property
    def programs(self) -> int:
        """How many of them a multiprocessor holds."""
        # Registers are given to warps, by 256.
        warp = -(-self.registers * 32 // 256) * 256
        return min(REGISTERS // (warp * COMPILED_WITH["num_warps"]), THREADS // THREADS_PER_PROGRAM)


def compile_all(architecture: int, batch: Batch) -> list[Resources]:
    """The kernels of a fusion, each once, for a compute capability such as 90."""
    kernels: dict[str, Resources] = {}
    for launch in launches(batch, Fused.room_for(batch)):
        name = launch.kernel.__name__
        if name not in kernels:
            kernels[name] = _resources(architecture, launch)
    return list(kernels.values())


def example(number: int = 1, rows: int = 1, vocabulary: int = 128_256, dtype: torch.dtype = torch.bfloat16) -> Batch:
    """A fusion of `number` experts; its logits are never read."""
    members = [torch.empty(rows, vocabulary, dtype=dtype) for _ in range(2 + number)]
    return Batch(
        members[0],
        members[1:2] * number,
        members[2:],
        torch.zeros(rows, dtype=torch.int8),
        torch.ones(rows, number, dtype=torch.bool),
        torch.ones(rows, number),
        torch.ones(rows),
    )


def signature(launch: Launch) -> tuple[dict[str, Any], dict[str, Any]]:
    """The types of a launch's arguments as Triton writes them, and its compile-time arguments."""
    types: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            types[parameter.name] = tuple(map(_type, value)) if isinstance(value, tuple) else _type(value)
    return types, constants


def _type(value: Any) -> str:
    return f"*{_TYPES[value.dtype]}" if isinstance(value, torch.Tensor) else "i32"


def _resources(architecture: int, launch: Launch) -> Resources:
    types, constants = signature(launch)
    # What the launch itself would take for granted: fresh memory, and what tuples hold, are multiples of 16.
    known: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        kind = types[parameter.name]
        if isinstance(kind, tuple):
            known |= {(index, place): [["tt.divisibility", 16]] for place in range(len(kind))}
        elif kind.startswith("*") and not parameter.do_not_specialize_on_alignment:
            known[index,] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(launch.kernel, types, constants, known),
        target=GPUTarget("cuda", architecture, 32),
        options=launch.options,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        usage = _said_by(knobs.nvidia.cuobjdump.path, "-res-usage", file)
        code = _said_by(knobs.nvidia.nvdisasm.path, "-c", file)
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    instructions, loops = _read(code)
    return Resources(
        launch.kernel.__name__,
        architecture,
        found["REG"],
        found["STACK"] + found["LOCAL"],
        int(compiled.metadata.shared),
        instructions,
        tuple(loops),
    )


def _said_by(tool: str, option: str, file: Path) -> str:
    return subprocess.run([tool, option, str(file)], capture_output=True, text=True, check=True).stdout


def _read(code: str) -> tuple[int, Iterator[Loop]]:
    """The number of a program's instructions, and its innermost loops."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    spans = [
        (labels[jump[1]], end)
        for end, instruction in enumerate(instructions)
        if (jump := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction)) and labels.get(jump[1], end + 1) < end
    ]
    inner = [
        (start, end)
        for start, end in spans
        if not any(start <= first and last <= end and (first, last) != (start, end) for first, last in spans)
    ]
    return len(instructions), (_loop(instructions[start : end + 1]) for start, end in inner)


def _loop(body: list[str]) -> Loop:
    def count(pattern: str) -> int:
        return sum(bool(re.search(pattern, instruction)) for instruction in body)

    return Loop(len(body), count(r"\bLDG\b"), count(r"\bSTG\b"), count(r"MUFU\.EX2"))
