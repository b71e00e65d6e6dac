"""Presets that split and presets with a shadow, over HTTP: who answers, what is counted, and that it is right."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from server.api.split import draw
from tests.deploy.series import OF_ROLLOUT
from tests.e2e.conftest import SPLIT, Configured

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me something."}]
SECONDS = 30.0


@pytest.fixture(scope="module")
def client(configured: Configured) -> OpenAI:
    return OpenAI(base_url=configured.server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def async_client(configured: Configured) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=configured.server.url + "/v1", api_key="none", max_retries=0)


def scrape(configured: Configured) -> dict[tuple[str, ...], float]:
    """The counters, by name, preset, and the value of their other label."""
    header = {"Authorization": f"Bearer {configured.metrics_key}"}
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for family in text_string_to_metric_families(httpx.get(configured.metrics_url, headers=header).text):
        for sample in family.samples:
            name = sample.name.removeprefix("fusion_")
            if name.startswith(("split_", "shadow_", "tokens_")) and "le" not in sample.labels:
                others = [value for label, value in sample.labels.items() if label != "preset"]
                found[name, sample.labels["preset"], *others] = sample.value
    return found


def settle(configured: Configured, client: OpenAI) -> None:
    """Return when the tokens that were generated before this call have been counted: one more of a series is."""
    series = ("tokens_total", "giant-all", "none")
    before, deadline = scrape(configured)[series], time.monotonic() + SECONDS
    client.completions.create(model="giant-all", prompt="a", max_tokens=1, extra_body={"fusion": {"weighting": "none"}})
    while scrape(configured)[series] == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Growth:
    """What the counters grew by since it was made."""

    def __init__(self, configured: Configured) -> None:
        self._configured, self._before = configured, scrape(configured)

    def __call__(self, *series: str) -> float:
        return scrape(self._configured)[series] - self._before[series]

    def heard(self, preset: str) -> float:
        """The answers that were scored or skipped."""
        now = scrape(self._configured)
        return sum(now[key] - self._before[key] for key in now if key[0] in OF_ANSWERS and key[1] == preset)

    def wait(self, preset: str, answers: int) -> None:
        deadline = time.monotonic() + SECONDS
        while self.heard(preset) < answers:
            assert time.monotonic() < deadline, f"{self.heard(preset)} of {answers} answers were scored or skipped"
            time.sleep(0.1)
        assert self.heard(preset) == answers


OF_ANSWERS = ("shadow_answers_total", "shadow_skipped_total")


def ask(client: OpenAI, model: str, **more: Any) -> Any:
    extra = {"return_token_ids": True, "ignore_eos": True} | more.pop("extra_body", {})
    fields: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 10, "temperature": 0} | more
    return client.chat.completions.create(model=model, extra_body=extra, **fields)


def streamed(events: list[Any]) -> list[int]:
    """The tokens of a stream of one choice."""
    return [token for event in events for token in getattr(event.choices[0], "token_ids", None) or ()]


class TestSplit:
    def test_each_user_has_one_arm_in_every_protocol(self, configured: Configured, client: OpenAI) -> None:
        url = configured.server.url
        seen = set()
        for user in map(str, range(6)):
            arm = draw("ab", SPLIT, f"user anybody {user}")
            seen.add(arm)
            chat = ask(client, "ab", user=user, max_tokens=2)
            text: Any = client.completions.create(model="ab", prompt="a", user=user, max_tokens=2)
            said: Any = client.responses.create(model="ab", input="a", max_output_tokens=2, safety_identifier=user)
            message = {"model": "ab", "max_tokens": 2, "messages": MESSAGES, "metadata": {"user_id": user}}
            anthropic = httpx.post(url + "/v1/messages", json=message).json()
            batch = {"model": "ab", "max_tokens": 2, "messages": [MESSAGES, MESSAGES], "prompt_cache_key": user}
            several = httpx.post(url + "/v1/chat/completions/batch", json=batch).json()
            assert (chat.fusion_arm, text.fusion_arm, said.fusion_arm) == (arm, arm, arm)
            assert (anthropic["fusion_arm"], several["fusion_arm"]) == (arm, arm)
            assert {chat.model, text.model, said.model, anthropic["model"], several["model"]} == {"ab"}
        assert seen == set(SPLIT)

    def test_an_arm_answers_as_if_it_had_been_named(self, client: OpenAI) -> None:
        for user in ("0", "4"):  # one of either arm
            more: dict[str, Any] = {"user": user, "extra_body": {"fusion": {"trace": True}}}
            split = ask(client, "ab", **more)
            named = ask(client, split.fusion_arm, **more)
            assert split.choices[0].token_ids == named.choices[0].token_ids
            assert split.choices[0].fusion == named.choices[0].fusion
            assert not hasattr(named, "fusion_arm")
        drawn = {"temperature": 1.0, "seed": 3, "n": 3, "user": "1"}
        split = ask(client, "ab", **drawn)
        named = ask(client, split.fusion_arm, **drawn)
        assert [each.token_ids for each in split.choices] == [each.token_ids for each in named.choices]

    def test_a_stream_says_it_once(self, configured: Configured, client: OpenAI) -> None:
        whole = ask(client, "ab", user="5")
        events = list(ask(client, "ab", user="5", stream=True))
        assert [event.fusion_arm for event in events if hasattr(event, "fusion_arm")] == [whole.fusion_arm]
        assert events[0].fusion_arm
        assert streamed(events) == whole.choices[0].token_ids
        body = {"model": "ab", "max_tokens": 3, "messages": MESSAGES, "stream": True, "metadata": {"user_id": "5"}}
        text = httpx.post(configured.server.url + "/v1/messages", json=body).text
        assert text.count(f'"fusion_arm":"{whole.fusion_arm}"') == 1
        assert text.index("fusion_arm") < text.index("content_block_start")

    async def test_many_users_and_what_is_counted(self, configured: Configured, async_client: AsyncOpenAI) -> None:
        grown = Growth(configured)
        users = [f"many-{number}" for number in range(60)]
        create = async_client.chat.completions.create
        answers: list[Any] = await asyncio.gather(
            *(create(model="ab", messages=MESSAGES, user=user, max_tokens=1) for user in users)
        )
        expected = Counter(draw("ab", SPLIT, f"user anybody {user}") for user in users)
        assert Counter(answer.fusion_arm for answer in answers) == expected
        for arm, number in expected.items():
            assert 0 < number < len(users)
            assert grown("split_requests_total", "ab", arm) == number
            assert grown("split_tokens_total", "ab", arm) == number
            assert grown("split_request_seconds_count", "ab", arm) == number

    async def test_without_a_user_it_is_drawn(self, async_client: AsyncOpenAI) -> None:
        create = async_client.completions.create
        answers: list[Any] = await asyncio.gather(*(create(model="ab", prompt=[4, 5], max_tokens=1) for _ in range(60)))
        assert {answer.fusion_arm for answer in answers} == set(SPLIT)

    def test_a_request_lies_over_its_arm(self, client: OpenAI) -> None:
        fusion = {"fusion": {"experts": ["blue"], "weighting": "kl", "trace": True}}
        answer = ask(client, "ab", user="1", extra_body=fusion)
        assert answer.choices[0].fusion["alpha"].keys() == {"blue"}

    def test_clients_see_a_model(self, configured: Configured, client: OpenAI) -> None:
        names = [model.id for model in client.models.list()]
        assert {"ab", "watched", "mirror"} <= set(names)
        presets = httpx.get(configured.server.url + "/v1/fusion/experts").json()["presets"]
        assert presets["ab"] == presets["giant-red"] | {"split": SPLIT}
        assert presets["watched"] == presets["giant-red"]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"user": 5}, "user"),
            ({"safety_identifier": ["a"]}, "safety_identifier"),
            ({"max_tokens": -1}, "max_tokens"),
        ],
    )
    def test_bad_input(self, client: OpenAI, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, "ab", extra_body=fields)
        assert caught.value.param == param


def likeliest(client: OpenAI, model: str, prompt: list[int], answer: list[int]) -> list[int]:
    """The token that `model` would choose in each place of an answer, each asked for by itself."""
    prompts = [[*prompt, *answer[:number]] for number in range(len(answer))]
    extra = {"return_token_ids": True}
    found: Any = client.completions.create(model=model, prompt=prompts, max_tokens=1, temperature=0, extra_body=extra)
    return [choice.token_ids[0] for choice in found.choices]


class TestShadow:
    @pytest.mark.parametrize("more", [{}, {"temperature": 1.0, "seed": 7, "n": 2}, {"stream": True}])
    def test_it_counts_what_asking_would_tell(
        self, configured: Configured, client: OpenAI, more: dict[str, Any]
    ) -> None:
        grown = Growth(configured)
        said = ask(client, "watched", **more)
        if "stream" in more:
            events = list(said)
            prompt = events[0].prompt_token_ids
            answers = [streamed(events)]
        else:
            assert said.model == "watched"
            assert not hasattr(said, "fusion_arm")
            prompt, answers = said.prompt_token_ids, [choice.token_ids for choice in said.choices]
        differing = 0
        for answer in answers:
            red = likeliest(client, "giant-red", prompt, answer)
            blue = likeliest(client, "giant-blue", prompt, answer)
            assert (red == answer) == ("temperature" not in more)
            differing += sum(one != other for one, other in zip(red, blue, strict=True))
        grown.wait("watched", len(answers))
        assert grown("shadow_answers_total", "watched") == len(answers)
        assert grown("shadow_tokens_total", "watched") == 10 * len(answers)
        assert grown("shadow_differing_tokens_total", "watched") == differing
        assert differing > 0

    def test_what_it_answers_is_the_preset_s_own(self, configured: Configured, client: OpenAI) -> None:
        settle(configured, client)
        grown = Growth(configured)
        watched, named = ask(client, "watched"), ask(client, "giant-red")
        assert watched.choices[0].token_ids == named.choices[0].token_ids
        grown.wait("watched", 1)
        settle(configured, client)
        assert not any(key[1] == "watched" for key in scrape(configured) if key[0] == "tokens_total")
        assert grown("tokens_total", "giant-red", "kl") == 20, "reading generates nothing that is counted"

    def test_log_probabilities(self, configured: Configured, client: OpenAI) -> None:
        grown = Growth(configured)
        said = ask(client, "watched", logprobs=True)
        ids = [*said.prompt_token_ids, *said.choices[0].token_ids]
        grown.wait("watched", 1)
        for side, preset in (("answer", "giant-red"), ("beside", "giant-blue")):
            read: Any = client.completions.create(
                model=preset, prompt=ids, max_tokens=1, extra_body={"prompt_logprobs": 0}
            )
            places = list(zip(ids, read.choices[0].prompt_logprobs, strict=True))[-10:]
            expected = -sum(place[str(token)]["logprob"] for token, place in places)
            assert grown("shadow_nats_total", "watched", side) == pytest.approx(expected, abs=1e-3)

    def test_beside_itself_nothing_differs(self, configured: Configured, client: OpenAI) -> None:
        grown = Growth(configured)
        ask(client, "mirror", n=3, temperature=1.0, max_tokens=24)
        grown.wait("mirror", 3)
        assert grown("shadow_tokens_total", "mirror") == 72
        assert grown("shadow_differing_tokens_total", "mirror") == 0
        assert grown("shadow_nats_total", "mirror", "answer") == pytest.approx(
            grown("shadow_nats_total", "mirror", "beside")
        )

    async def test_many_at_once(self, configured: Configured, async_client: AsyncOpenAI) -> None:
        """More than it reads: the answers are the preset's own, and each is scored or counted as skipped."""
        grown = Growth(configured)
        prompts = [f"Number {number}" for number in range(40)]

        async def tokens(model: str, prompt: str) -> list[int]:
            extra = {"return_token_ids": True, "ignore_eos": True}
            answer: Any = await async_client.completions.create(
                model=model, prompt=prompt, max_tokens=8, temperature=0, extra_body=extra
            )
            return answer.choices[0].token_ids  # type: ignore[no-any-return]

        watched = await asyncio.gather(*(tokens("watched", prompt) for prompt in prompts))
        assert watched == await asyncio.gather(*(tokens("giant-red", prompt) for prompt in prompts))
        grown.wait("watched", len(prompts))
        assert grown("shadow_answers_total", "watched") > 0
        assert grown("shadow_skipped_total", "watched", "failed") == 0

    def test_what_is_not_scored(self, configured: Configured, client: OpenAI) -> None:
        grown = Growth(configured)
        ask(client, "watched", extra_body={"fusion": {"experts": ["blue"]}})
        list(ask(client, "watched", extra_body={"fusion": {"alpha_max": 1.0}}, stream=True))
        with ask(client, "watched", stream=True, max_tokens=None) as stream:
            next(iter(stream))  # and the client goes away
        grown.wait("watched", 3)
        assert grown("shadow_skipped_total", "watched", "request") == 2
        assert grown("shadow_skipped_total", "watched", "unfinished") == 1
        ask(client, "watched", max_tokens=3)
        grown.wait("watched", 4)
        assert grown("shadow_answers_total", "watched") == 1

    def test_an_answer_that_fills_the_context(self, configured: Configured, client: OpenAI) -> None:
        """Its last token has no place in a prompt, and is left out."""
        grown = Growth(configured)
        said = ask(client, "watched", max_tokens=None)
        assert said.usage.total_tokens == 256
        grown.wait("watched", 1)
        assert grown("shadow_tokens_total", "watched") == said.usage.completion_tokens - 1

    def test_a_share(self, configured: Configured, client: OpenAI) -> None:
        grown = Growth(configured)
        for _ in range(3):
            ask(client, "watched-seldom", max_tokens=2)
        ask(client, "watched", max_tokens=2)
        grown.wait("watched", 1)
        assert grown.heard("watched-seldom") == 0


def test_every_series_of_the_dashboard_is_there(configured: Configured) -> None:
    assert {name for name, *_ in scrape(configured)} >= {name.removeprefix("fusion_") for name in OF_ROLLOUT}
