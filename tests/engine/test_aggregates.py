"""The counters: every generated token once, under its preset, whatever the engine did on the way."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from fusion_kernels import Fused, Weighting
from fusion_kernels.weighting import BASE, FIRST_EXPERT
from server.engine.aggregates import ALPHA_BUCKETS, KL_BUCKETS, MAX_PENDING_STEPS, Aggregates, Counts
from server.engine.batch import BatchState
from server.engine.settings import FusionSettings
from tests.engine.driver import draw_cases, send_all
from tests.engine.engines import counter, running

SLOTS, PRESETS, EXPERTS = 5, 3, 2
CPU = torch.device("cpu")


class Tally:
    """The same counters in plain Python, one token at a time."""

    def __init__(self) -> None:
        self.counts: Counts = Aggregates(BatchState(SLOTS, 64, EXPERTS, CPU), PRESETS).read()

    def add(self, settings: FusionSettings, alpha: dict[int, float], kl: list[float], broken: int) -> None:
        preset = settings.preset
        self.counts["tokens"][preset][settings.weighting] += 1
        if broken:
            self.counts["broken"][preset][broken] += 1
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
    weighting = rng.choice([kind for kind in Weighting if kind is not Weighting.KL_JOINT])
    number = {Weighting.NONE: 0, Weighting.ALONE: 1}.get(weighting, rng.randint(1, EXPERTS))
    return FusionSettings(weighting, tuple(sorted(rng.sample(range(EXPERTS), number))), preset=rng.randrange(PRESETS))


def test_random_steps_are_counted_as_one_by_one() -> None:
    rng = random.Random(0)
    batch = BatchState(SLOTS, 64, EXPERTS, CPU)
    aggregates, tally = Aggregates(batch, PRESETS), Tally()
    # Settings, the first position that gives a new token, and the output so far.
    requests: list[tuple[FusionSettings, int, list[int]]] = []
    for step in range(MAX_PENDING_STEPS + 100):
        if step % 7 == 0:
            requests = []
            added = []
            for index in range(SLOTS):
                settings, prompt, output = draw(rng), [1] * rng.randint(1, 4), [1] * rng.choice([0, 0, 3])
                params = SamplingParams(temperature=0)
                settings.attach(params)
                added.append((index, params, prompt, output))
                requests.append((settings, len(prompt) + len(output) - 1, output))
            batch.update(BatchUpdate(SLOTS, removed=[], added=added, moved=[]))
        positions = torch.tensor([rng.randrange(8) for _ in requests])
        starts = torch.arange(SLOTS + 1, dtype=torch.int32)
        places = batch.places(batch.begin_step(starts, torch.zeros(SLOTS, dtype=torch.int64), positions).float())
        owners = batch.owners(places)
        in_use = tuple(batch.experts_in_use)
        columns = len(in_use)
        alpha = torch.tensor([[rng.choice([*ALPHA_BUCKETS, -0.4, 0.6, 99.0]) for _ in in_use] for _ in requests])
        kl = torch.tensor([[rng.choice([*KL_BUCKETS, 0.0, 0.2, 50.0]) for _ in range(2)] for _ in requests])
        broken = torch.zeros(SLOTS, dtype=torch.int8)
        for row, (settings, _, _) in enumerate(requests):
            if settings.experts and rng.random() < 0.2:
                broken[row] = rng.choice([BASE, *(FIRST_EXPERT + in_use.index(t) for t in settings.experts)])
        if columns:
            fused = Fused(torch.zeros(SLOTS, 4), alpha, torch.zeros(SLOTS, 2), kl, broken)
            aggregates.record(owners, places, batch.rows(owners).use[:, list(in_use)], fused, in_use)
        for row, (settings, first, output) in enumerate(requests):
            if int(positions[row]) >= first:
                output.append(1)
                number = int(broken[row])
                member = FIRST_EXPERT + in_use[number - FIRST_EXPERT] if number >= FIRST_EXPERT else number
                weights = {t: float(alpha[row, in_use.index(t)]) for t in settings.experts}
                tally.add(settings, weights, kl[row].tolist(), member)
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


def test_more_rows_than_requests_are_no_tokens() -> None:
    batch = BatchState(SLOTS, 64, EXPERTS, CPU)
    aggregates, number = Aggregates(batch, PRESETS), SLOTS + 1
    rows = torch.arange(number)
    batch.begin_step(torch.tensor([0, number]), rows, rows)
    weights, divergences = torch.ones(number, EXPERTS), torch.ones(number, 2)
    fused = Fused(torch.zeros(number, 4), weights, divergences, divergences, torch.zeros(number, dtype=torch.int8))
    owners = torch.zeros(number, dtype=torch.int64)
    aggregates.record(owners, rows, torch.ones(number, EXPERTS, dtype=torch.bool), fused, (0, 1))
    counts = aggregates.read()
    assert not any(map(any, counts["kl_sum"]))
    assert not any(map(any, counts["alpha_sum"]))


def test_tokens_are_counted_wherever_their_request_moves() -> None:
    batch = BatchState(SLOTS, 64, EXPERTS, CPU)
    aggregates = Aggregates(batch, PRESETS)
    outputs: list[list[int]] = [[], [], [7, 7], []]  # the third comes back after it was preempted
    added = []
    for index, output in enumerate(outputs):
        params = SamplingParams(temperature=0)
        FusionSettings(preset=index % PRESETS).attach(params)
        added.append((index, params, [1], output))
    batch.update(BatchUpdate(4, removed=[], added=added, moved=[]))
    for output in outputs:
        output += [1, 1, 1]
    # The first leaves and the last takes its place; the other two change places.
    moved = [(3, 0, MoveDirectionality.UNIDIRECTIONAL), (1, 2, MoveDirectionality.SWAP)]
    batch.update(BatchUpdate(3, removed=[0], added=[], moved=moved))
    for output in outputs[1:]:
        output.append(1)
    # A new request takes the place of one that ended.
    params = SamplingParams(temperature=0)
    FusionSettings(preset=2).attach(params)
    batch.update(BatchUpdate(3, removed=[], added=[(0, params, [1], fresh := [])], moved=[]))
    fresh.append(1)
    tokens = [row[Weighting.NONE] for row in aggregates.read()["tokens"]]
    assert tokens == [3 + 4, 4, 4 + 1]


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
