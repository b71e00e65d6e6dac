"""Every sampling parameter acts on the fused logits: each token is replayed from the reference's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch
from openai import NotFoundError, OpenAI
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from tests.hf_loop import HFLoop, Settings
from tests.noise import draw
from tests.server_process import ServerProcess

KL_GRID = Settings("kl-grid", ("red", "blue"))
STATIC = Settings("static", ("red", "blue"), (1.2, -0.5))
TEXT = "A list of things that nobody has counted so far"
TIE = 1e-4

Edit = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""What a parameter does to one position's logits, given the tokens generated before it."""


def ask(client: OpenAI, prompt: list[int], settings: Settings, **params: Any) -> Any:
    extra = {"fusion": settings.field(), "return_token_ids": True, "ignore_eos": True} | params.pop("extra", {})
    body: dict[str, Any] = {"model": "giant-red", "prompt": prompt, "max_tokens": 12, "temperature": 0} | params
    return client.completions.create(**body, extra_body=extra)


def replay(
    oracle: HFLoop, prompt: list[int], tokens: list[int], settings: Settings, edit: Edit, seed: int | None = None
) -> None:
    """Check that every token is the highest of the edited logits, or with a seed the highest under its noise."""
    logits = oracle.along(prompt, tokens, settings).logits
    for place, token in enumerate(tokens):
        edited = edit(logits[place].clone(), tokens[:place])
        raised = edited.clone()
        raised[token] += TIE
        for candidate in (edited, raised):
            best = int(candidate.argmax()) if seed is None else draw(candidate, seed, len(prompt) + place - 1)
            if best == token:
                break
        else:
            raise AssertionError(f"token {place} is {token}; the reference's is {best}")


@pytest.fixture
def prompt(oracle: HFLoop) -> list[int]:
    ids: list[int] = oracle.tokenizer(TEXT).input_ids
    return ids


@pytest.fixture(params=[KL_GRID, STATIC], ids=["kl-grid", "static"])
def settings(request: pytest.FixtureRequest) -> Settings:
    found: Settings = request.param
    return found


@pytest.fixture
def greedy(client: OpenAI, prompt: list[int], settings: Settings) -> list[int]:
    """The greedy answer without any further parameter."""
    tokens: list[int] = ask(client, prompt, settings).choices[0].token_ids
    return tokens


def masked(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    logits[ids] = -torch.inf
    return logits


def test_logit_bias(client: OpenAI, oracle: HFLoop, prompt: list[int], settings: Settings, greedy: list[int]) -> None:
    bias = {greedy[0]: -3.0, 40: 2.5, 41: 1.5}
    tokens = ask(client, prompt, settings, logit_bias={str(k): v for k, v in bias.items()}).choices[0].token_ids
    added = torch.zeros(512)
    added[list(bias)] = torch.tensor(list(bias.values()))
    replay(oracle, prompt, tokens, settings, lambda logits, _: logits + added)
    assert tokens != greedy


def test_bad_words(client: OpenAI, oracle: HFLoop, prompt: list[int], settings: Settings, greedy: list[int]) -> None:
    # A word that is one token, and of the ids that a word can be written as.
    words = [token for token in greedy if oracle.tokenizer.decode([token]).isalpha()]
    text = oracle.tokenizer.decode(words[:1])
    tokens = ask(client, prompt, settings, extra={"bad_words": [text]}).choices[0].token_ids
    assert words[0] not in tokens
    replay(oracle, prompt, tokens, settings, lambda logits, _: masked(logits, words[:1]))


def test_allowed_token_ids(client: OpenAI, oracle: HFLoop, prompt: list[int], settings: Settings) -> None:
    allowed = list(range(300, 330))
    tokens = ask(client, prompt, settings, extra={"allowed_token_ids": allowed}).choices[0].token_ids
    others = [token for token in range(512) if token not in allowed]
    replay(oracle, prompt, tokens, settings, lambda logits, _: masked(logits, others))


def test_min_tokens_and_stop_token(
    client: OpenAI, oracle: HFLoop, prompt: list[int], settings: Settings, greedy: list[int]
) -> None:
    stop = greedy[2]
    answer = ask(client, prompt, settings, extra={"stop_token_ids": [stop]}).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.token_ids == greedy[: greedy.index(stop) + 1]
    tokens = ask(client, prompt, settings, extra={"stop_token_ids": [stop], "min_tokens": 6}).choices[0].token_ids
    assert len(tokens) >= 6
    replay(oracle, prompt, tokens, settings, lambda logits, done: masked(logits, [stop] if len(done) < 6 else []))


def test_penalties(client: OpenAI, oracle: HFLoop, prompt: list[int], settings: Settings) -> None:
    tokens = (
        ask(
            client,
            prompt,
            settings,
            max_tokens=24,
            presence_penalty=0.6,
            frequency_penalty=0.9,
            extra={"repetition_penalty": 1.3},
        )
        .choices[0]
        .token_ids
    )

    def penalise(logits: torch.Tensor, done: list[int]) -> torch.Tensor:
        seen = sorted({*prompt, *done})
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 1.3, logits[seen] * 1.3)
        for token, count in Counter(done).items():
            logits[token] -= 0.9 * count + 0.6
        return logits

    replay(oracle, prompt, tokens, settings, penalise)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.2, "min_p": 0.2},
        {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=lambda params: "-".join(params),
)
def test_seeded_sampling(
    client: OpenAI, oracle: HFLoop, prompt: list[int], settings: Settings, params: dict[str, float]
) -> None:
    extra = {key: params[key] for key in ("top_k", "min_p") if key in params}
    rest = {key: value for key, value in params.items() if key not in extra}
    answer = ask(client, prompt, settings, n=3, seed=11, **rest, extra=extra)

    def cut(logits: torch.Tensor, _: list[int]) -> torch.Tensor:
        logits = logits / params["temperature"]
        probabilities = logits.softmax(-1)
        logits[probabilities < params.get("min_p", 0) * probabilities.max()] = -torch.inf
        k, p = torch.tensor([int(params.get("top_k", 512))]), torch.tensor([params.get("top_p", 1.0)])
        return apply_top_k_top_p(logits[None], k, p)[0]

    for choice in answer.choices:
        replay(oracle, prompt, choice.token_ids, settings, cut, seed=11 + choice.index)


def test_logprobs_are_the_fused_distributions(
    client: OpenAI, oracle: HFLoop, prompt: list[int], settings: Settings
) -> None:
    choice = ask(client, prompt, settings, logprobs=4, extra={"return_tokens_as_token_ids": True}).choices[0]
    expected = oracle.along(prompt, choice.token_ids, settings).logits.log_softmax(-1)
    for place, (token, top) in enumerate(zip(choice.token_ids, choice.logprobs.top_logprobs, strict=True)):
        best = expected[place].topk(4)
        found = {int(name.removeprefix("token_id:")): value for name, value in top.items()}
        assert set(best.indices.tolist()) <= set(found)
        for token_id, value in found.items():
            assert value == pytest.approx(float(expected[place, token_id]), abs=2e-4)
        assert choice.logprobs.token_logprobs[place] == pytest.approx(float(expected[place, token]), abs=2e-4)


@pytest.mark.parametrize("weighting", ["none", "static", "kl", "kl-grid", "alone"])
def test_echoed_logprobs_are_those_of_generating(client: OpenAI, prompt: list[int], weighting: str) -> None:
    alpha = (0.8,) if weighting == "static" else ()
    settings = Settings(weighting, ("red",) if weighting != "none" else (), alpha)
    params: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 40, "logprobs": 0}
    generated = ask(client, prompt, settings, **params).choices[0]
    echoed = ask(client, prompt + generated.token_ids, settings, echo=True, logprobs=0, max_tokens=0).choices[0]
    got = torch.tensor(echoed.logprobs.token_logprobs[len(prompt) :])
    torch.testing.assert_close(got, torch.tensor(generated.logprobs.token_logprobs), atol=1e-4, rtol=0)


def test_a_grammar_masks_the_fused_logits(
    client: OpenAI, oracle: HFLoop, prompt: list[int], settings: Settings
) -> None:
    answer = ask(client, prompt, settings, extra={"structured_outputs": {"regex": "[a-z]{5}"}, "ignore_eos": False})
    tokens = [token for token in answer.choices[0].token_ids if token > 2]

    def fits(logits: torch.Tensor, done: list[int]) -> torch.Tensor:
        room = 5 - len(oracle.tokenizer.decode(done))
        words = [oracle.tokenizer.decode([token]) for token in range(512)]
        wrong = [
            token
            for token, word in enumerate(words)
            if not (word.isascii() and word.isalpha() and word.islower() and len(word) <= room)
        ]
        return masked(logits, wrong)

    assert len(answer.choices[0].text) == 5
    replay(oracle, prompt, tokens, settings, fits)


@pytest.mark.parametrize(
    ("structure", "valid"),
    [
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"regex": "[0-9]{3}-[a-z]{2}"}, lambda text: text[:3].isdigit() and text[3] == "-" and len(text) == 6),
        ({"grammar": 'root ::= "a" | "b" "c"'}, lambda text: text in ("a", "bc")),
        ({"json": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}}, lambda text: json.loads(text) != 0),
    ],
    ids=["choice", "regex", "grammar", "json"],
)
def test_structures(
    client: OpenAI, prompt: list[int], settings: Settings, structure: dict[str, Any], valid: Callable[[str], bool]
) -> None:
    extra = {"structured_outputs": structure, "ignore_eos": False}
    answer = ask(client, prompt, settings, n=4, temperature=1.0, seed=3, max_tokens=120, extra=extra)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert all(valid(choice.text) for choice in answer.choices)


def test_cache_salt_separates_prefixes(client: OpenAI, server: ServerProcess) -> None:
    prompt = list(range(100, 250))  # longer than one block of the cache

    def hits(salt: str) -> float:
        before = prefix_hits(server)
        ask(client, prompt, STATIC, max_tokens=1, extra={"cache_salt": salt})
        return prefix_hits(server) - before

    assert hits("first") == 0
    assert hits("first") > 0
    assert hits("second") == 0


def prefix_hits(server: ServerProcess) -> float:
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


def test_prefixes_are_shared_between_weightings(client: OpenAI, oracle: HFLoop) -> None:
    """Every member runs in every step, so a prefix that another weighting has read serves as well."""
    prompt = list(range(60, 210))
    for settings in (Settings("none"), STATIC, KL_GRID, Settings("alone", ("blue",))):
        tokens = ask(client, prompt, settings, max_tokens=4).choices[0].token_ids
        replay(oracle, prompt, tokens, settings, lambda logits, _: logits)


def test_adapters_of_vllms_own_api_are_refused(client: OpenAI, server: ServerProcess) -> None:
    with pytest.raises(NotFoundError, match="there is no preset 'some-adapter'"):
        client.completions.create(model="some-adapter", prompt="Hello", max_tokens=1)
    body = {"lora_name": "some-adapter", "lora_path": "/adapters/some"}
    assert httpx.post(server.url + "/v1/load_lora_adapter", json=body).status_code == 404
