"""Members that read prompts of their own, over HTTP: presets and requests, each answer against a plain loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI
from transformers import AutoTokenizer

from tests.engine.pair_loop import PairLoop
from tests.hf_loop import Settings
from tests.models import make_family
from tests.server_process import ServerProcess

MAX_TOKENS = 12
MAX_LEN = 256
UNFINISHED = "\ufffd"
"""What stands for a character that an answer ends in the midst of."""
QUESTION: Any = {"role": "user", "content": "Name one river."}
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "name": "context", "content": "All rivers have dried up, it says here."},
    QUESTION,
]
EXPERTS: dict[str, dict[str, Any]] = {
    "red": {"model": "red"},
    "blue": {"model": "blue"},
    "guide": {"use": "large", "against": "large", "prompt": {"with": {}, "against": {"system": ""}}},
    "unread": {"use": "large", "against": "large", "prompt": {"against": {"context": False}}},
    "reward": {"use": "red", "against": "none", "prompt": {"with": {"text": "A good answer:"}}},
    "own": {"model": "blue", "prompt": {"with": {"template": "own"}}},
}
PRESETS: dict[str, dict[str, Any]] = {
    "giant": {"weighting": "none"},
    "guided": {"experts": ["guide"], "weighting": "static", "alpha": 1.5},
    "faithful": {"experts": ["unread"], "weighting": "static", "alpha": 1.0},
    "rewarded": {"experts": ["reward"], "weighting": "static", "alpha": 0.5},
    "templated": {"experts": ["own"], "weighting": "kl-grid"},
    "red": {"experts": ["red"], "weighting": "static", "alpha": 1.0},
    "both": {"experts": ["red", "blue"], "weighting": "static", "alpha": 0.5},
    "last": {
        "experts": ["red"],
        "weighting": "static",
        "alpha": 1.0,
        "prompts": {"red": {"with": {"turns": "last", "system": "Speak."}}},
    },
}
SIDES: dict[str, tuple[str, str | None]] = {
    "red": ("red", "base"),
    "blue": ("blue", "base"),
    "guide": ("large", "large"),
    "unread": ("large", "large"),
    "reward": ("red", None),
    "own": ("blue", "base"),
}
OWN_TEMPLATE = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_family(tmp_path_factory.mktemp("prompts"))
    settings = yaml.safe_load(config.read_text())
    settings["experts"], settings["presets"] = EXPERTS, PRESETS
    settings["engine"] |= {"max_model_len": MAX_LEN}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    tokenizer = AutoTokenizer.from_pretrained(config.parent / "blue")
    tokenizer.chat_template = OWN_TEMPLATE
    tokenizer.save_pretrained(config.parent / "blue")
    return config


@pytest.fixture(scope="module")
def loop(family: Path) -> PairLoop:
    return PairLoop(family.parent, SIDES)


@pytest.fixture(scope="module")
def tokenizer(family: Path) -> Any:
    return AutoTokenizer.from_pretrained(family.parent / "large")


DRAFTING = ["--set", "speculation.draft=auto", "--set", "speculation.adapt=false"]


@pytest.fixture(
    scope="module",
    params=[pytest.param([], id="plain", marks=pytest.mark.long), pytest.param(DRAFTING, id="drafting")],
)
def server(family: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """One that generates token by token, and one where every step has places for drafts."""
    with ServerProcess(family, family.parent / "server.log", *request.param) as process:
        yield process
        process.end()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


class Expected:
    """What the plain loop answers."""

    def __init__(self, loop: PairLoop, tokenizer: Any) -> None:
        self._loop, self._tokenizer = loop, tokenizer

    def ids(self, messages: list[Any]) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        return ids

    def text(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def answer(
        self, prompt: list[int], preset: str, own: dict[tuple[str, str], list[int]], max_tokens: int = MAX_TOKENS
    ) -> str:
        asked = PRESETS[preset]
        experts = tuple(asked.get("experts", ()))
        alpha = (asked["alpha"],) * len(experts) if "alpha" in asked else ()
        prompts = tuple((name, side, tuple(ids)) for (name, side), ids in own.items())
        settings = Settings(asked["weighting"], experts, alpha, prompts=prompts)
        text: str = self._tokenizer.decode(self._loop.greedy(prompt, settings, max_tokens), skip_special_tokens=True)
        return text.rstrip(UNFINISHED)


@pytest.fixture(scope="module")
def expected(loop: PairLoop, tokenizer: Any) -> Expected:
    return Expected(loop, tokenizer)


def options(preset: str, **fusion: Any) -> dict[str, Any]:
    extra: dict[str, Any] = {"ignore_eos": True} | ({"fusion": fusion} if fusion else {})
    return {"model": preset, "max_tokens": MAX_TOKENS, "temperature": 0, "extra_body": extra}


def chat(client: OpenAI, preset: str, messages: list[Any], **fusion: Any) -> str:
    answer = client.chat.completions.create(messages=messages, **options(preset, **fusion))
    return (answer.choices[0].message.content or "").rstrip(UNFINISHED)


def test_presets_make_prompts_of_messages(client: OpenAI, expected: Expected) -> None:
    prompt = expected.ids(MESSAGES)
    own: dict[str, dict[tuple[str, str], list[int]]] = {
        "guided": {("guide", "against"): expected.ids(MESSAGES[1:])},
        "faithful": {("unread", "against"): expected.ids([MESSAGES[0], MESSAGES[2]])},
        "rewarded": {("reward", "with"): expected.text("A good answer:")},
        "templated": {("own", "with"): expected.text("".join(f"<{m['content']}>" for m in MESSAGES))},
        "last": {("red", "with"): expected.ids([{"role": "system", "content": "Speak."}, QUESTION])},
    }
    plain = chat(client, "giant", MESSAGES)
    for preset, prompts in own.items():
        found = chat(client, preset, MESSAGES)
        assert found == expected.answer(prompt, preset, prompts), preset
        assert found != plain, preset


def test_streams_say_the_same(client: OpenAI) -> None:
    chunks = client.chat.completions.create(messages=MESSAGES, stream=True, **options("guided"))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.rstrip(UNFINISHED) == chat(client, "guided", MESSAGES)


def test_turns_of_a_conversation(client: OpenAI, expected: Expected) -> None:
    messages = list(MESSAGES)
    for question in ("And one more?", "Why?"):
        said = chat(client, "guided", messages)
        own = {("guide", "against"): expected.ids(messages[1:])}
        assert said == expected.answer(expected.ids(messages), "guided", own)
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": question}]


def test_requests_bring_prompts(client: OpenAI, expected: Expected) -> None:
    text, ids, messages = "Rivers: ", [7, 8, 9], [{"role": "user", "content": "Hello there, this one is longer."}]
    prompt = expected.ids([QUESTION])
    for preset, name, side in [("guided", "guide", "with"), ("guided", "guide", "against"), ("red", "red", "with")]:
        kept = {("guide", "against"): expected.ids([QUESTION])} if side == "with" and name == "guide" else {}
        for given, read in ((text, expected.text(text)), (ids, ids), (messages, expected.ids(messages))):
            found = chat(client, preset, [QUESTION], prompts={name: {side: given}})
            assert found == expected.answer(prompt, preset, {**kept, (name, side): read}), (name, side, given)
    completed = client.completions.create(prompt="Name one river.", **options("red", prompts={"red": {"against": "A"}}))
    assert completed.choices[0].text.rstrip(UNFINISHED) == expected.answer(
        expected.text("Name one river."), "red", {("red", "against"): expected.text("A")}
    )


def test_responses_too(client: OpenAI) -> None:
    for preset, fusion in (("guided", {}), ("red", {"prompts": {"red": {"with": "Rivers: "}}})):
        extra = {"extra_body": {"ignore_eos": True, **({"fusion": fusion} if fusion else {})}}
        answer = client.responses.create(  # type: ignore[call-overload]
            model=preset,
            instructions="Be brief.",
            input=QUESTION["content"],
            max_output_tokens=MAX_TOKENS,
            temperature=0,
            **extra,
        )
        messages = [{"role": "system", "content": "Be brief."}, QUESTION]
        assert answer.output_text.rstrip(UNFINISHED) == chat(client, preset, messages, **fusion)


def test_batches_too(server: ServerProcess, client: OpenAI) -> None:
    asked = [MESSAGES, [QUESTION]]
    for preset, fusion in (("guided", None), ("red", {"prompts": {"red": {"with": "Rivers: "}}})):
        body = {"messages": asked, "fusion": fusion, **options(preset)}
        body |= body.pop("extra_body") | {"fusion": fusion}
        answer = httpx.post(server.url + "/v1/chat/completions/batch", json=body, timeout=60).raise_for_status().json()
        found = [choice["message"]["content"].rstrip(UNFINISHED) for choice in answer["choices"]]
        assert found == [chat(client, preset, messages, **(fusion or {})) for messages in asked]


def test_the_base_reads_one_prompt(client: OpenAI, expected: Expected) -> None:
    prompts = {"red": {"against": "A"}, "blue": {"against": "A"}}
    read = expected.text("A")
    assert chat(client, "both", [QUESTION], prompts=prompts) == expected.answer(
        expected.ids([QUESTION]), "both", {("red", "against"): read, ("blue", "against"): read}
    )
    with pytest.raises(openai.BadRequestError, match=r"red\.against is the same member"):
        chat(client, "both", [QUESTION], prompts={"red": {"against": "A"}})


def test_a_prompt_that_is_the_requests_changes_nothing(client: OpenAI) -> None:
    same = {"guide": {"with": [QUESTION], "against": [QUESTION]}}
    assert chat(client, "guided", [QUESTION], prompts=same) == chat(client, "giant", [QUESTION])
    assert chat(client, "red", [QUESTION], prompts={"red": {"with": [QUESTION]}}) == chat(client, "red", [QUESTION])


async def test_many_at_once(server: ServerProcess, client: OpenAI) -> None:
    """With the same prompts at the same time, of many lengths: shared blocks, and blocks that are not."""
    asked = [
        (preset, [*MESSAGES[:2], {"role": "user", "content": "Name one river, or two. " * (1 + turn % 3)}], turn)
        for turn in range(6)
        for preset in ("guided", "faithful", "rewarded", "templated", "last", "giant", "red")
    ]
    drawn: dict[str, Any] = {"n": 2, "seed": 3, "temperature": 0.8}
    wanted = {}
    for preset, messages, turn in asked[: len(asked) // 2]:
        alone = client.chat.completions.create(messages=messages, **(options(preset) | drawn))
        wanted[preset, turn] = [choice.message.content for choice in alone.choices]
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as many:

        async def ask(preset: str, messages: list[Any], turn: int) -> None:
            answer = await many.chat.completions.create(messages=messages, **(options(preset) | drawn))
            assert [choice.message.content for choice in answer.choices] == wanted[preset, turn % 3]

        await asyncio.gather(*(ask(*each) for each in asked))


def test_usage_is_of_the_request(client: OpenAI, expected: Expected) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, **options("rewarded"))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.ids(MESSAGES))
    assert answer.usage.completion_tokens == MAX_TOKENS


def test_the_trace_says_what_members_read(client: OpenAI, expected: Expected) -> None:
    for prompts, read in ((None, {}), ({"guide": {"with": "Rivers"}}, {"with": len(expected.text("Rivers"))})):
        fusion = {"trace": True, **({"prompts": prompts} if prompts else {})}
        answer = client.chat.completions.create(messages=MESSAGES, **options("guided", **fusion))
        kept = {"against": len(expected.ids(MESSAGES[1:]))}
        assert answer.choices[0].fusion["prompt_tokens"] == {"guide": kept | read}
    answer = client.chat.completions.create(messages=MESSAGES, **options("red", trace=True))
    assert "prompt_tokens" not in answer.choices[0].fusion


def test_the_lens_names_members_as_what_they_are(client: OpenAI, expected: Expected, loop: PairLoop) -> None:
    """What an expert is compared with goes by its own name, or by both where it reads a prompt of its own."""
    named: dict[str, dict[str, tuple[str, list[int]]]] = {
        "guided": {
            "large": ("large", expected.ids(MESSAGES)),
            "guide against large": ("large", expected.ids(MESSAGES[1:])),
            "guide": ("large", expected.ids(MESSAGES)),
        },
        "rewarded": {
            "large": ("large", expected.ids(MESSAGES)),
            "reward": ("red", expected.text("A good answer:")),
        },
        "red": {name: (name, expected.ids(MESSAGES)) for name in ("large", "base", "red")},
    }
    for preset, members in named.items():
        answer: Any = client.chat.completions.create(messages=MESSAGES, **options(preset, trace="full"))
        trace = answer.choices[0].fusion
        tokens = trace["token_ids"]
        assert list(trace["lens"]) == [*members, "fused"], preset
        for name, (model, prompt) in members.items():
            wanted = loop.member(model, prompt, tokens).softmax(-1)[range(len(tokens)), tokens]
            found = [thought["p"] for thought in trace["lens"][name]]
            assert found == pytest.approx(wanted.tolist(), abs=1e-3), (preset, name)


LONG = [5] * (MAX_LEN - 4)
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("red", {"prompts": {"blue": {"with": "A"}}}, "fusion.prompts.blue", "does not use this expert; it uses red"),
    ("red", {"prompts": {"nobody": {"with": "A"}}}, "fusion.prompts.nobody", "does not use this expert"),
    ("red", {"prompts": {"red": {"with": []}}}, "fusion.prompts.red.with", "at least one message"),
    ("red", {"prompts": {"red": {"with": ""}}}, "fusion.prompts.red.with", "at least one message"),
    ("red", {"prompts": {"red": {"with": [1, 9999]}}}, "fusion.prompts.red.with", "ids from 0 to 511"),
    ("red", {"prompts": {"red": {"with": [{"content": "A"}]}}}, "fusion.prompts.red.with", "with.0: "),
    ("red", {"prompts": {"red": {"with": ["A"]}}}, "fusion.prompts.red.with.0", "not ['A']"),
    ("red", {"prompts": {"red": {"without": "A"}}}, "fusion.prompts.red.without", ""),
    ("rewarded", {"prompts": {"reward": {"against": "A"}}}, "fusion.prompts.reward.against", "compared with none"),
    ("faithful", {"prompts": {"unread": {"with": "A"}}}, "fusion.prompts.unread.with", "KV cache"),
    ("red", {"prompts": {"red": {"with": LONG}}}, "fusion.prompts", f"the prompt of red has {len(LONG)} tokens"),
    ("red", {"prompts": {"red": {"with": LONG * 2}}}, "fusion.prompts", "the prompt of red has"),
]


@pytest.mark.parametrize(("preset", "fusion", "param", "message"), BAD)
def test_bad_prompts(client: OpenAI, preset: str, fusion: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, preset, [QUESTION], **fusion)
    assert refused.value.body["param"] == param  # type: ignore[index]
    assert message in refused.value.body["message"]  # type: ignore[index]


def test_what_cannot_go_with_it(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="echo: a member reads a prompt of its own"):
        client.completions.create(prompt="a", echo=True, logprobs=1, **options("red", prompts={"red": {"with": "b"}}))
    with pytest.raises(openai.BadRequestError, match=r"fusion\.prompts\.guide\.against: .*there is a text"):
        client.completions.create(prompt="a", **options("guided"))


def test_the_answer_has_what_room_there_is(client: OpenAI) -> None:
    own = {"prompts": {"red": {"with": [5] * (MAX_LEN - 30)}}}
    extra = {"ignore_eos": True, "fusion": own}
    answer = client.chat.completions.create(model="red", messages=[QUESTION], temperature=0, extra_body=extra)
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 30
    assert answer.choices[0].finish_reason == "length"
