"""The worker's log of traces: each request gets its own rows, and its likeliest tokens only if it asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm.v1.worker.cpu.shm  # noqa: F401 (as vLLM's CPU worker does, before the runner's modules)

from fusion_kernels import Fused, Weighting
from server.engine import trace
from server.engine.settings import FusionSettings
from server.engine.slots import Slot, SlotTable
from server.engine.step import Step
from server.engine.trace import TOP_TOKENS, TraceLog

VOCABULARY = 20


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> TraceLog:
    """Of four requests, one asks for nothing, one for a trace, two for full ones."""
    monkeypatch.setattr(trace, "get_tensor_model_parallel_rank", lambda: 0)
    table = SlotTable(4, 1, torch.device("cpu"))
    for index, (name, top) in enumerate([(None, False), ("a", True), ("b", False), ("c", True)]):
        table.add(index, Slot(FusionSettings(Weighting.KL, (0,), trace=name, trace_top=top), 1))
    table.flush()
    return TraceLog(table)


@pytest.mark.parametrize("fuses", [True, False])
def test_likeliest_tokens_are_their_own_rows(log: TraceLog, fuses: bool) -> None:
    torch.manual_seed(0)
    order = [3, 2, 1, 0]
    large, logits = torch.randn(4, VOCABULARY, dtype=torch.bfloat16), torch.randn(4, VOCABULARY)
    alpha, pairs = torch.rand(4, 1), torch.rand(4, 2)
    fused = Fused(logits, alpha, pairs, pairs, torch.zeros(4, dtype=torch.int8)) if fuses else None
    batch: Any = SimpleNamespace(
        positions=torch.zeros(4, dtype=torch.int64),
        input_ids=torch.arange(4),
        logits_indices=torch.arange(4),
    )
    log.record(Step(batch, np.array(order), np.ones(4, dtype=bool)), large, fused, [0] if fuses else [])
    for name, row in (("a", 2), ("b", 1), ("c", 0)):
        (found,) = log.take(name, last=True)
        assert found.fed == row
        assert found.alpha == (alpha[row].tolist() if fuses else [0.0])
        if name == "b":
            assert found.large_top is None
            assert found.fused_top is None
            continue
        for top, wanted in ((found.large_top, large[row]), (found.fused_top, (logits if fuses else large)[row])):
            assert top is not None
            values, ids = wanted.float().softmax(-1).topk(TOP_TOKENS)
            assert [token for token, _ in top] == ids.tolist()
            assert [p for _, p in top] == pytest.approx(values.tolist())
    assert log.kept == (0, 0)
