"""Quantised members that this CPU cannot compute with are told before vLLM's processes end over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm.distributed import parallel_state

from tests.families.quantise import FORMATS
from tests.models import make_model
from tests.server.family import check, fault

BFLOAT16 = "engine.dtype=bfloat16"


def quantise(family: Path, name: str) -> None:
    make_model(family / "red", intermediate_size=256)
    FORMATS[name](family / "red")


@pytest.mark.parametrize("name", ["int8", "int4", "AWQ", "GPTQ", "FP8 by row"])
def test_formats_that_run(family: Path, name: str) -> None:
    quantise(family, name)
    assert check(family, BFLOAT16).reports[2].member.quantisation is not None
    assert parallel_state._TP is None


def test_what_needs_half_the_bits(family: Path) -> None:
    quantise(family, "GPTQ")
    assert fault(family).startswith(
        "experts.red.model: it is quantised (gptq), and engine.dtype is float32; bfloat16 is right (torch."
    )
    quantise(family, "int4")
    assert "bfloat16 is right" in fault(family)


def test_fp8_that_the_cpu_kernels_lack(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    quantise(family, "FP8")
    assert fault(family, BFLOAT16).startswith(
        "experts.red.model: it is quantised (fp8), and vLLM cannot compute with it on this CPU: its CPU kernels lack "
        "static_scaled_fp8_quant; serve the checkpoint as it was before, or one in"
    )
    quantise(family, "FP8 by block")
    assert "on this CPU: CPUFp8W8A8BlockScaledMMKernel requires AMX tile support" in fault(family, BFLOAT16)
