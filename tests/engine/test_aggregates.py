"""The counters: every generated token once, under its preset, whatever the engine did on the way."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm.v1.worker.cpu.shm  # noqa: F401 (as vLLM's CPU worker does, before the runner's modules)

from fusion_kernels import Fused, Weighting
from fusion_kernels.batch import broken_against, broken_expert
from server.engine.aggregates import ALPHA_BUCKETS, KL_BUCKETS, MAX_PENDING_STEPS, Aggregates, Counts
from server.engine.settings import FusionSettings
from server.engine.slots import Slot, SlotTable
from server.engine.step import Step
from tests.engine.driver import draw_cases, send_all
from tests.engine.engines import counter, running

SLOTS, PRESETS, EXPERTS = 5, 3, 2
CPU = torch.device("cpu")


class Tally:
    """The same counters in plain Python, one token at a time."""

    def __init__(self) -> None:
        self.counts: Counts = Aggregates(SlotTable(SLOTS, EXPERTS, CPU), PRESETS).read()

    def add(
        self, settings: FusionSettings, alpha: dict[int, float], kl: list[float], broken: tuple[int, int] | None
    ) -> None:
        """`broken` is an expert, and 1 where what it is compared with is broken."""
        preset = settings.preset
        self.counts["tokens"][preset][settings.weighting] += 1
        if broken is not None:
            self.counts["broken"][preset][broken[0]][broken[1]] += 1
            return
        for expert in settings.experts:
            self.counts["alpha"][preset][expert][bucket(ALPHA_BUCKETS, alpha[expert])] += 1
            self.counts["alpha_sum"][preset][expert] += alpha[expert]
        if settings.weighting in (Weighting.STATIC, Weighting.KL, Weighting.KL_GRID, Weighting.KL_SAFE):
            for direction, value in enumerate(kl):
                self.counts["kl"][preset][direction][bucket(KL_BUCKETS, value)] += 1
                self.counts["kl_sum"][preset][direction] += value


def bucket(bounds: tuple[float, ...], value: float) -> int:
    """The first bucket whose bound, a float32 as the values are, reaches the value."""
    reaching = (i for i, bound in enumerate(torch.tensor(bounds, dtype=torch.float32).tolist()) if value <= bound)
    return next(reaching, len(bounds))


def draw(rng: random.Random) -> FusionSettings:
    weighting = rng.choice(list(Weighting))
    number = {Weighting.NONE: 0, Weighting.ALONE: 1}.get(weighting, rng.randint(1, EXPERTS))
    return FusionSettings(weighting, tuple(sorted(rng.sample(range(EXPERTS), number))), preset=rng.randrange(PRESETS))


def step(slots: list[int], generates: list[bool]) -> Step:
    """Rows of these slots; the counters ask for nothing else of a step's batch."""
    batch: Any = None
    return Step(batch, np.array(slots), np.array(generates))


def test_random_steps_are_counted_as_one_by_one() -> None:
    rng = random.Random(0)
    table = SlotTable(SLOTS, EXPERTS, CPU)
    aggregates, tally = Aggregates(table, PRESETS), Tally()
    for number in range(MAX_PENDING_STEPS + 100):
        if number % 7 == 0:
            requests = [draw(rng) for _ in range(SLOTS)]
            for index, settings in enumerate(requests):
                table.add(index, Slot(settings, 1))
            table.flush()
        order = rng.sample(range(SLOTS), SLOTS)
        generates = [rng.random() < 0.8 for _ in order]
        in_use = sorted({expert for settings in requests for expert in settings.experts})
        alpha = torch.tensor([[rng.choice([*ALPHA_BUCKETS, -0.4, 0.6, 99.0]) for _ in in_use] for _ in order])
        kl = torch.tensor([[rng.choice([*KL_BUCKETS, 0.0, 0.2, 50.0]) for _ in range(2)] for _ in order])
        broken = torch.zeros(SLOTS, dtype=torch.int8)
        culprits: dict[int, tuple[int, int]] = {}
        for row, index in enumerate(order):
            if (experts := requests[index].experts) and rng.random() < 0.2:
                culprit, side = culprits[row] = rng.choice(experts), rng.randrange(2)
                broken[row] = (broken_expert, broken_against)[side](in_use.index(culprit))
        rows = table.rows(torch.tensor(order))
        if in_use:
            fused = Fused(torch.zeros(SLOTS, 4), alpha, torch.zeros(SLOTS, 2), kl, broken)
            aggregates.record(step(order, generates), rows.of_experts(in_use).use, fused, in_use)
        else:
            aggregates.record(step(order, generates), None, None, [])
        for row, index in enumerate(order):
            if not generates[row]:
                continue
            settings = requests[index]
            weights = {t: float(alpha[row, in_use.index(t)]) for t in settings.experts}
            tally.add(settings, weights, kl[row].tolist(), culprits.get(row))
    for index in range(SLOTS):
        table.remove(index)
    found = aggregates.read()
    assert sum(map(sum, found["tokens"])) > 500
    expected = tally.counts
    assert found["tokens"] == expected["tokens"]
    assert found["broken"] == expected["broken"]
    assert found["alpha"] == expected["alpha"]
    assert found["kl"] == expected["kl"]
    for sums, wanted in ((found["alpha_sum"], expected["alpha_sum"]), (found["kl_sum"], expected["kl_sum"])):
        torch.testing.assert_close(torch.tensor(sums), torch.tensor(wanted), atol=1e-3, rtol=1e-6)
    assert aggregates.read() == found, "reading changes nothing"


def test_a_chunk_of_a_prompt_is_no_token() -> None:
    table = SlotTable(SLOTS, EXPERTS, CPU)
    table.add(0, Slot(FusionSettings(Weighting.KL, (0, 1)), 9))
    aggregates, ones = Aggregates(table, PRESETS), torch.ones(1, 2)
    fused = Fused(torch.zeros(1, 4), ones, ones, ones, torch.zeros(1, dtype=torch.int8))
    aggregates.record(step([0], [False]), ones.bool(), fused, [0, 1])
    table.remove(0)
    counts = aggregates.read()
    assert not sum(map(sum, counts["tokens"]))
    assert not sum(map(sum, counts["kl_sum"])) + sum(map(sum, counts["alpha_sum"]))


def test_tokens_stay_counted_when_their_slot_is_taken_by_another() -> None:
    table = SlotTable(SLOTS, EXPERTS, CPU)
    aggregates = Aggregates(table, PRESETS)
    for preset in (0, 1, 2, 2):
        table.add(3, Slot(FusionSettings(preset=preset), 1))
        aggregates.record(step([3, 3], [True, True]), None, None, [])
        table.remove(3)
    assert [row[Weighting.NONE] for row in aggregates.read()["tokens"]] == [2, 2, 4]


def test_a_row_that_nobody_gets_is_taken_back() -> None:
    """With asynchronous scheduling a request that has ended runs once more; others in that step have not."""
    table = SlotTable(SLOTS, EXPERTS, CPU)
    aggregates = Aggregates(table, PRESETS)
    for index in range(2):
        table.add(index, Slot(FusionSettings(Weighting.KL, (0, 1), preset=index), 1))
        aggregates.begin(index, 3)
    ones = torch.ones(2, 2)
    fused = Fused(torch.zeros(2, 4), ones, ones, ones, torch.zeros(2, dtype=torch.int8))
    for _ in range(3):
        aggregates.record(step([1, 0], [True, True]), ones.bool(), fused, [0, 1])
    assert aggregates.reached_limit(0)
    assert sum(map(sum, aggregates.read()["tokens"])) == 2, "the newest steps may still change"
    aggregates.retract(0)
    for index in range(2):
        table.remove(index)
    counts = aggregates.read()
    assert [row[Weighting.KL] for row in counts["tokens"]] == [2, 3, 0]
    assert [sum(buckets) for buckets in (counts["alpha"][0][0], counts["kl"][0][0])] == [2, 2]
    assert counts["alpha_sum"][1][0] == 3.0


async def test_an_engine_that_preempts_counts_each_token_once(family: Path) -> None:
    cases = draw_cases(24, 3, ["red", "blue"], longest_prompt=100, longest_answer=56)
    cases = [replace(case, patience=None, arrives=0.0) for case in cases]
    tight = ["engine.block_size=32", "engine.max_model_len=160", "engine.num_gpu_blocks_override=12"]
    async with running(family, *tight, "engine.max_num_batched_tokens=32") as engine:
        generated, preempted = counter("vllm:generation_tokens"), counter("vllm:num_preemptions")
        answers = await asyncio.wait_for(send_all(engine, cases, ["red", "blue"]), 300)
        generated = counter("vllm:generation_tokens") - generated
        assert counter("vllm:num_preemptions") > preempted, "the cache is small enough to preempt"
        counts: Counts = (await engine.collective_rpc("read_fusion_counts"))[0]
    answered = [sum(map(len, answer.tokens)) for answer in answers if answer is not None]
    for kind in Weighting:
        name = kind.name.lower().replace("_", "-")
        expected = sum(n for case, n in zip(cases, answered, strict=True) if case.settings.weighting == name)
        assert sum(row[kind] for row in counts["tokens"]) == expected, name
    assert sum(map(sum, counts["tokens"])) == generated
