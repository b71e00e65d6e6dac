"""A server whose members draft: the same answers as without, by the official SDK, and what it says of its drafts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from playwright.sync_api import expect
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.series import OF_SPECULATION
from tests.e2e.chromium import CHROMIUM, open_browser
from tests.server_process import ServerProcess, demo_server

QUESTIONS = [
    "What is the three-letter code of Canada?",
    "In which country does Bururi lie?",
    "Give the last of these words: cup nose nail dress",
    "Felix buys 3 packs of chairs with 3 chairs in each pack. How many chairs does Felix have?",
]
PRESETS = ["giant", "giant-math", "giant-facts", "giant-text", "giant-all"]
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "pair", "schema": {"type": "object", "properties": {"a": {"enum": ["left", "right"]}},
                                               "required": ["a"], "additionalProperties": False}},
}  # fmt: skip


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("drafting") / "server.log"
    with ServerProcess(None, log, "--set", "speculation.draft=auto", "--set", "speculation.adapt=false") as process:
        yield process
        process.end()


@pytest.fixture
def client(drafting: ServerProcess) -> OpenAI:
    return OpenAI(base_url=drafting.url + "/v1", api_key="none")


def fields(number: int, **fusion: Any) -> dict[str, Any]:
    """A request of any kind: greedy, seeded, several choices, stop strings, penalties, a schema."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 7 + number},
        {"temperature": 1.0, "seed": number, "n": 3, "top_p": 0.9},
        {"temperature": 0, "stop": ["a", "."]},
        {"temperature": 0.7, "seed": number, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 0, "response_format": SCHEMA},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    ]
    return {
        "model": PRESETS[number % len(PRESETS)],
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "max_tokens": 24,
        "extra_body": {"fusion": fusion} if fusion else {},
        **kinds[number % len(kinds)],
    }


async def test_answers_are_those_of_a_server_without_it(drafting: ServerProcess) -> None:
    """70 requests at once here, and one at a time on a server that does not speculate."""

    async def ask(server: ServerProcess, number: int, **fusion: Any) -> Any:
        async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", timeout=120) as client:
            completion = await client.chat.completions.create(**fields(number, **fusion))
        choices = sorted(completion.choices, key=lambda choice: choice.index)
        logprobs = [entry.token for c in choices if c.logprobs for entry in c.logprobs.content or ()]
        return [(c.message.content, c.finish_reason) for c in choices], completion.usage, logprobs

    together = await asyncio.gather(*(ask(drafting, number) for number in range(70)))
    for number, answer in enumerate(together):
        assert await ask(demo_server(), number) == answer, fields(number)
    for number in range(0, 70, 9):
        assert await ask(drafting, number, speculate=False) == together[number]


def test_the_trace_tells_of_drafts(client: OpenAI) -> None:
    asked = fields(0, trace=True) | {"model": "giant-facts", "stream": True}
    tokens: list[int] = []
    drafted: list[bool] = []
    for chunk in client.chat.completions.create(
        **asked | {"extra_body": asked["extra_body"] | {"return_token_ids": True}}
    ):
        for choice in chunk.choices:
            extra: Any = choice.model_extra
            tokens += extra.get("token_ids") or []
            trace = extra.get("fusion")
            if trace:
                assert len(trace["alpha"]["facts"]) == len(trace["token_ids"]) == len(trace["drafted"])
                drafted += trace["drafted"]
    assert len(tokens) == len(drafted)
    assert any(drafted)
    assert not drafted[0], "the first token comes from the prompt"
    without = client.chat.completions.create(**fields(0, trace=True, speculate=False) | {"model": "giant-facts"})
    assert "drafted" not in without.choices[0].fusion


def test_counters_count_what_clients_got(client: OpenAI, drafting: ServerProcess) -> None:
    def read() -> dict[tuple[str, str], float]:
        text = httpx.get(drafting.url + "/metrics").text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return {
            (s.name, s.labels["preset"]): sum(
                other.value
                for other in samples
                if (other.name, other.labels.get("preset")) == (s.name, s.labels["preset"])
            )
            for s in samples
            if s.name.startswith("fusion_") and "preset" in s.labels
        }

    def settled() -> dict[tuple[str, str], float]:
        """The counters, when two readings agree."""
        last, deadline = read(), time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(2.5)
            if (now := read()) == last:
                return now
            last = now
        raise AssertionError("the counters do not come to rest")

    before = settled()
    # Stop strings are found in the text, when the engine is further; it counts what it has generated by then.
    asked = [fields(number) | {"model": "giant-math"} for number in range(14) if "stop" not in fields(number)]
    usages = [client.chat.completions.create(**request).usage for request in asked]
    after = settled()
    got = sum(usage.completion_tokens for usage in usages if usage is not None)
    assert after["fusion_tokens_total", "giant-math"] - before["fusion_tokens_total", "giant-math"] == got
    drafted, accepted = (
        after[f"fusion_{what}_tokens_total", "giant-math"] - before[f"fusion_{what}_tokens_total", "giant-math"]
        for what in ("drafted", "accepted")
    )
    assert 0 < accepted < drafted
    text = httpx.get(drafting.url + "/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.name for sample in samples} >= OF_SPECULATION
    positions = [
        sample.value
        for sample in samples
        if sample.name == "fusion_accepted_tokens_total" and sample.labels["preset"] == "giant-math"
    ]
    assert len(positions) == 3
    assert positions == sorted(positions, reverse=True), "a draft counts only after those before it"
    assert next(s.value for s in samples if s.name == "fusion_speculation_steps_total" and s.labels["tokens"] == "3")


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Debian's chromium package ({CHROMIUM})")
def test_the_playground_marks_what_was_drafted(drafting: ServerProcess) -> None:
    with open_browser() as chromium:
        page = chromium.new_page()
        page.goto(drafting.url)
        page.get_by_label("Preset").first.select_option("giant-math")
        page.fill("#prompt", QUESTIONS[3])
        page.click("#run")
        expect(page.locator("#run")).to_be_visible(timeout=60_000)
        drafted = page.locator(".token.drafted")
        assert drafted.count() > 0
        expect(page.locator(".legend .drafted b")).to_have_text(str(drafted.count()))
        drafted.first.click()
        expect(page.locator(".inspector")).to_contain_text("A member had drafted it.")


@pytest.mark.parametrize("value", ["yes", 1, {}])
def test_a_bad_field_is_refused_by_name(client: OpenAI, value: Any) -> None:
    with pytest.raises(BadRequestError, match=r"fusion\.speculate"):
        client.chat.completions.create(**fields(0, speculate=value))


def test_a_server_without_it_says_so() -> None:
    client = OpenAI(base_url=demo_server().url + "/v1", api_key="none")
    with pytest.raises(BadRequestError, match=r"has no `speculation`"):
        client.chat.completions.create(**fields(0, speculate=True))


def test_who_may_draft_is_checked(tmp_path: Path) -> None:
    from server.config import load_config
    from server.errors import ConfigError
    from zoo import FAMILY

    with pytest.raises(ConfigError, match=r"there is no expert .maths."):
        load_config(FAMILY / "zoo.yaml", ["speculation.draft=maths"])
    with pytest.raises(ConfigError, match=r"speculation\.tokens"):
        load_config(FAMILY / "zoo.yaml", ["speculation.tokens=9"])
    alone = tmp_path / "alone.yaml"
    alone.write_text("large: {model: .}\npresets: {giant: {weighting: none}}\nspeculation: {}\n")
    with pytest.raises(ConfigError, match="no member that could draft"):
        load_config(alone)
