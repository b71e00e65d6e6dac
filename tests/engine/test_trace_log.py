"""The worker's log of traces: each request gets its own rows, and what the members thought only if it asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm.v1.worker.cpu.shm  # noqa: F401 (as vLLM's CPU worker does, before the runner's modules)

from fusion_kernels import Fused, Weighting
from server.engine import trace
from server.engine.lens import TOP_TOKENS
from server.engine.settings import BASE, FUSED, LARGE, FusionSettings
from server.engine.slots import Slot, SlotTable
from server.engine.step import Step
from server.engine.trace import TraceLog

VOCABULARY, SMALLER = 20, 16
EXPERT = 1


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
def test_what_members_thought_is_of_their_own_rows(log: TraceLog, fuses: bool) -> None:
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
    members = {BASE: torch.randn(4, VOCABULARY), EXPERT: torch.randn(4, SMALLER)}
    sides: Any = SimpleNamespace(member=members.__getitem__) if fuses else None
    log.record(Step(batch, np.array(order), np.ones(4, dtype=bool)), large, fused, [0] if fuses else [], sides)
    kept = {LARGE: large.clone(), **members, FUSED: logits.clone()}
    # A structured output forbids tokens in place before one is chosen; the last row's is none of the expert's.
    (logits if fuses else large)[:, 3:] = -torch.inf
    said = torch.tensor([[0, SMALLER + 1], [0, 4], [0, 2], [0, 1]])
    log.choose(said)
    for name, row in (("a", 2), ("b", 1), ("c", 0)):
        (found,) = log.take(name, last=True)
        assert found.fed == row
        assert found.alpha == (alpha[row].tolist() if fuses else [0.0])
        if name == "b":
            assert found.lens is None
            continue
        assert found.lens is not None
        thoughts = {thought.member: thought for thought in found.lens}
        assert thoughts.keys() == (kept.keys() if fuses else {LARGE, FUSED})
        token = int(said[order[row], 1])
        for member, thought in thoughts.items():
            probabilities = kept[member if fuses else LARGE][row].float().softmax(-1)
            values, ids = probabilities.topk(TOP_TOKENS)
            assert [token for token, _ in thought.top] == ids.tolist()
            assert [p for _, p in thought.top] == pytest.approx(values.tolist())
            chosen = float(probabilities[token]) if token < len(probabilities) else 0.0
            assert thought.chosen == pytest.approx(chosen)
    assert log.kept == (0, 0)
