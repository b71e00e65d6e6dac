"""When a text is read for its preset's shadow, and when not: over the real gate, with an engine that only waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from vllm.logprobs import FlatLogprobs, Logprob

from server.admission import Gate, Policy, Ticket
from server.api import shadow
from server.api.requests import FusionChatCompletionRequest
from server.api.shadow import PENDING, Shadows
from server.auth import ANYBODY
from server.config import Config
from server.engine.place import Text

CONFIG = Config.model_validate(
    {
        "large": {"model": "someone/large"},
        "presets": {
            "giant": {"weighting": "none"},
            "watched": {"shadow": {"answer": "giant", "beside": "giant"}},
            "seldom": {"shadow": {"answer": "giant", "beside": "giant", "share": 0.25}},
        },
    }
)
TEXT = Text([1, 2, 3], [4, 5])


class Engine:
    """Says of every token that it is the likeliest but one, after a while."""

    errored = False
    model_config = SimpleNamespace(max_model_len=64)

    def __init__(self) -> None:
        self.running = self.most = 0
        self.prompts: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.broken = False

    async def generate(self, prompt: dict[str, Any], params: Any, name: str, priority: int) -> AsyncIterator[Any]:
        self.prompts.append(prompt)
        self.times.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.002)
        self.running -= 1
        if self.broken:
            raise RuntimeError("broken")
        found = FlatLogprobs()
        found.append(None)
        for token in prompt["prompt_token_ids"][1:]:
            found.append({token: Logprob(-2.0, 2), token + 1: Logprob(-1.0, 1)})
        yield SimpleNamespace(prompt_logprobs=found)


class Bench:
    """The shadows over a gate of `places`, and what they count."""

    def __init__(self, places: int = 8) -> None:
        self.registry = CollectorRegistry()
        policy = Policy(places, 1e6, 8, 30.0, 10.0)
        self.gate, self.engine = Gate(policy, self.registry), Engine()
        admission: Any = SimpleNamespace(gate=self.gate, weight=lambda settings: 1.5)
        engine: Any = self.engine
        self.shadows = Shadows(engine, admission, CONFIG, self.registry)

    def answer(self, texts: list[Text | None], preset: str = "watched", **fields: Any) -> None:
        """A request whose sequences ended so."""
        messages = [{"role": "user", "content": "a"}]
        request = FusionChatCompletionRequest.model_validate({"messages": messages, "cache_salt": "hers"} | fields)
        listening = self.shadows.listen(preset, ANYBODY, request)
        assert listening is not None
        hear, end = listening
        for text in texts:
            seat: Any = SimpleNamespace(text=text)
            hear(seat)
        end()

    def __call__(self, name: str, preset: str = "watched", **labels: str) -> float:
        return self.registry.get_sample_value(f"fusion_shadow_{name}_total", {"preset": preset, **labels}) or 0.0

    async def settle(self, answers: int) -> None:
        async with asyncio.timeout(10):
            while self.heard < answers:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)
        assert self.gate.idle or self.gate.policy.running

    @property
    def heard(self) -> float:
        return self("answers") + sum(self("skipped", reason=reason) for reason in shadow.REASONS)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(shadow, "PATIENCE_SECONDS", 0.05)


async def test_what_is_counted() -> None:
    bench = Bench()
    bench.answer([TEXT])
    await bench.settle(1)
    assert (bench("answers"), bench("tokens"), bench("differing_tokens")) == (1, 2, 0)
    assert bench("nats", side="answer") == bench("nats", side="beside") == 4.0
    assert bench.engine.prompts == [{"prompt_token_ids": [1, 2, 3, 4, 5], "cache_salt": "hers"}] * 2
    assert bench.gate.idle


async def test_one_is_read_at_a_time_and_few_wait() -> None:
    bench = Bench()
    for _ in range(3):
        bench.answer([TEXT] * PENDING)
    await bench.settle(3 * PENDING)
    assert bench.engine.most == 1
    assert bench("answers") == PENDING
    assert bench("skipped", reason="busy") == 2 * PENDING
    bench.answer([TEXT])
    await bench.settle(3 * PENDING + 1)
    assert bench("answers") == PENDING + 1


async def test_a_busy_server_is_left_alone() -> None:
    """With all places but the last eighth taken; what waits for one is not delayed."""
    bench = Bench(places=8)
    held = [Ticket("somebody") for _ in range(7)]
    for ticket in held:
        await bench.gate.enter(ticket)
    bench.answer([TEXT, TEXT])
    await bench.settle(2)
    assert bench("skipped", reason="busy") == 2
    assert not bench.engine.prompts
    for ticket in held:
        bench.gate.leave(ticket)
    assert bench.gate.idle
    bench.answer([TEXT])
    await bench.settle(3)
    assert bench("answers") == 1


async def test_it_rests_where_others_run() -> None:
    """Four times as long as it read; not on a server that has nothing else to do."""
    bench = Bench()
    kept = Ticket("somebody")
    await bench.gate.enter(kept)
    bench.answer([TEXT] * 4)
    await bench.settle(4)
    beside = bench.engine.times[-1] - bench.engine.times[0]
    bench.gate.leave(kept)
    bench.answer([TEXT] * 4)
    await bench.settle(8)
    alone = bench.engine.times[-1] - bench.engine.times[8]
    # Three rests of four times two readings of 2 ms each.
    assert beside >= 0.048
    assert alone < beside


async def test_a_server_with_one_place_reads_when_it_is_free() -> None:
    bench = Bench(places=1)
    bench.answer([TEXT])
    await bench.settle(1)
    assert bench("answers") == 1


async def test_it_charges_no_client() -> None:
    bench = Bench()
    before = bench.gate.policy._finish.copy()
    kept = Ticket("another", tokens=1.0)  # or the accounts would be forgotten
    await bench.gate.enter(kept)
    bench.answer([TEXT])
    await bench.settle(1)
    assert bench.gate.policy._finish.get(ANYBODY.name, 0.0) < 1e-6 + max(before.values(), default=0.0)
    bench.gate.leave(kept)


async def test_none_while_the_server_drains() -> None:
    bench = Bench()
    bench.gate.drain()
    bench.answer([TEXT])
    await bench.settle(1)
    assert bench("skipped", reason="busy") == 1
    assert not bench.engine.prompts


async def test_what_cannot_be_compared() -> None:
    bench = Bench()
    bench.answer([TEXT], fusion={"alpha_max": 1.0})
    bench.answer([TEXT], use_beam_search=True)
    bench.answer([None, TEXT])
    bench.answer([TEXT], fusion={"trace": True})
    await bench.settle(5)
    assert bench("skipped", reason="request") == 2
    assert bench("skipped", reason="unfinished") == 1
    assert bench("answers") == 2


async def test_a_failure_is_one_answers(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.engine.broken = True
    # Another test may have set the level of all loggers.
    with caplog.at_level(logging.WARNING, "server.api.shadow"):
        bench.answer([TEXT])
        await bench.settle(1)
    assert bench("skipped", reason="failed") == 1
    assert bench.gate.idle, "its place is free again"
    assert "An answer of 'watched' could not be scored: broken" in caplog.text
    bench.engine.broken = False
    bench.answer([TEXT])
    await bench.settle(2)
    assert bench("answers") == 1


async def test_a_share_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "PENDING", 1_000)
    bench = Bench()
    bench.answer([None] * 4_000, preset="seldom")
    assert bench("skipped", "seldom", reason="unfinished") == pytest.approx(1_000, abs=140)


async def test_a_long_answer_is_cut_to_the_context() -> None:
    bench = Bench()
    bench.answer([Text([1] * 60, [2] * 4)])
    await bench.settle(1)
    assert bench("tokens") == 3
    assert len(bench.engine.prompts[0]["prompt_token_ids"]) == 63
