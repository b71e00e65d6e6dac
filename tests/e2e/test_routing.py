"""Presets whose prompt chooses the experts, over HTTP: each answer is that of the chosen experts, named outright."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import yaml
from openai import AsyncOpenAI, OpenAI
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer
from typer.testing import CliRunner

from logit_fusion.cli import app
from server.engine.routing.router import Router
from tests.models import make_adapter, make_family
from tests.server_process import ServerProcess
from training.routing import Example, states

MAX_TOKENS = 12
WORDS = ["tree", "lamp", "river", "stone", "seven", "green", "under", "paper", "north", "quiet"]
KNOWN = 60
KINDS = ("red", "blue", "none")
PRESETS: dict[str, dict[str, Any]] = {
    "auto": {"experts": ["red", "blue"], "weighting": "kl", "route": "router.safetensors"},
    "auto-two": {
        "experts": ["red", "blue"],
        "weighting": "static",
        "alpha": {"red": 0.7, "blue": 1.3},
        "route": "router.safetensors",
        "top": "all",
    },
    "auto-alone": {"experts": ["red", "blue"], "weighting": "alone", "route": "router.safetensors"},
    "auto-red": {"experts": ["red"], "weighting": "kl", "route": "router.safetensors"},
    "auto-mix": {"experts": ["twin"], "weighting": "kl", "route": "router.safetensors", "top": "all"},
    "both": {"experts": ["red", "blue"], "weighting": "kl"},
    "giant": {"weighting": "none"},
}
# Chunks of prompts, few blocks (requests are preempted), prefixes that are found again.
TIGHT = {
    "max_model_len": 512,
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "block_size": 32,
    "num_gpu_blocks_override": 40,
}


def prompts(number: int, seed: int = 0) -> list[str]:
    """Some short, some of several chunks, many that begin alike."""
    rng = random.Random(seed)
    starts = [" ".join(rng.choices(WORDS, k=25)) for _ in range(3)]
    return [
        f"{rng.choice(starts) if rng.random() < 0.6 else ''} {' '.join(rng.choices(WORDS, k=rng.randint(1, 9)))} {n}"
        for n in range(number)
    ]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random family, and a router that knows each of some prompts by heart."""
    config = make_family(tmp_path_factory.mktemp("routing"))
    settings = yaml.safe_load(config.read_text())
    for seed, name in enumerate(("red", "blue"), start=2):
        make_adapter(config.parent / f"{name}-lora", config.parent / "base", seed=seed)
        make_adapter(config.parent / f"twin-{name}", config.parent / "red", seed=seed)
    lines = [{"prompt": prompt, "expert": KINDS[n % 3]} for n, prompt in enumerate(prompts(KNOWN))]
    (config.parent / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = CliRunner().invoke(app, _fit(config, "--held-out", str(config.parent / "examples.jsonl")))
    assert said.exit_code == 0, said.output
    settings["presets"] = PRESETS
    parts = {name: f"./twin-{name}" for name in ("red", "blue")}
    settings["experts"]["twin"] = {"model": "./red", "parts": parts}
    settings["engine"] |= TIGHT
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    return config


def _fit(config: Path, *options: str) -> list[str]:
    files = ["--examples", str(config.parent / "examples.jsonl"), "--out", str(config.parent / "router.safetensors")]
    return ["route", "fit", "--config", str(config), *files, "--threshold", "0.4", *options]


ADAPTERS = [f"--set=experts.{name}={{adapter: {name}-lora}}" for name in ("red", "blue")]
DRAFTING = ["--set", "speculation.draft=auto", "--set", "speculation.adapt=false"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param([], id="plain", marks=pytest.mark.long),
        pytest.param([*ADAPTERS, *DRAFTING], id="adapters-drafting"),
        pytest.param([*ADAPTERS, "--set=engine.tensor_parallel_size=2"], id="two-workers", marks=pytest.mark.long),
    ],
)
def server(family: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with ServerProcess(family, family.parent / "server.log", *request.param) as process:
        yield process
        process.end()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def router(family: Path) -> Router:
    return Router.load(family.parent / "router.safetensors")


@pytest.fixture(scope="module")
def decided(family: Path, router: Router) -> dict[str, np.ndarray]:
    """By prompt, the router's probabilities, of the base's states in Transformers."""
    tokenizer = AutoTokenizer.from_pretrained(family.parent / "large")
    asked = [*prompts(KNOWN), *prompts(20, seed=1)]
    found = states(family.parent / "base", tokenizer, [Example(prompt=p, expert="none") for p in asked], lambda _: None)
    return dict(zip(asked, router.probabilities(torch.from_numpy(found)).numpy(), strict=True))


def body(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, "logprobs": True} | more


def tokens(choice: Any) -> list[str]:
    return [entry.token for entry in choice.logprobs.content]


async def answers(server: ServerProcess, requests: list[dict[str, Any]]) -> list[Any]:
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        fields = ("fusion", "ignore_eos")
        return await asyncio.gather(
            *(
                client.chat.completions.create(
                    **{key: value for key, value in each.items() if key not in fields},
                    extra_body={key: each[key] for key in fields if key in each},
                )
                for each in requests
            )
        )


@pytest.mark.parametrize(("model", "top"), [("auto", 1), ("auto-two", None), ("auto-alone", 1), ("auto-red", 1)])
async def test_the_answer_is_that_of_the_chosen_experts(
    server: ServerProcess, router: Router, decided: dict[str, np.ndarray], model: str, top: int | None
) -> None:
    """Under load, in chunks, with preemption and prefixes that others left; each choice as the file says."""
    preset = PRESETS[model]
    asked = list(decided)
    random.Random(model).shuffle(asked)
    routed = await answers(server, [body(model, prompt) for prompt in asked])
    plain, chosen = [], []
    for prompt, answer in zip(asked, routed, strict=True):
        route = answer.choices[0].fusion_route
        expected = router.choose(decided[prompt], preset["experts"], top)
        assert route["experts"] == expected
        assert np.allclose([route["probabilities"][name] for name in router.classes], decided[prompt], atol=1e-3)
        chosen.append(expected)
        alpha = preset.get("alpha")
        named: dict[str, Any] = {"experts": expected, "weighting": preset["weighting"]}
        if alpha:
            named["alpha"] = {name: alpha[name] for name in expected}
        named = named if expected else {"weighting": "none"}
        plain.append(body("both", prompt, fusion=named))
    assert len({tuple(each) for each in chosen}) >= 2
    for prompt, got, want in zip(asked, routed, await answers(server, plain), strict=True):
        assert tokens(got.choices[0]) == tokens(want.choices[0]), prompt


async def test_a_mixture_is_what_the_router_makes_of_the_prompt(
    server: ServerProcess, router: Router, decided: dict[str, np.ndarray]
) -> None:
    """Each request has shares of its own, in one batch, and naming them gives the same answer."""
    asked = list(decided)
    routed = await answers(server, [body("auto-mix", prompt) for prompt in asked])
    named, shares = [], set()
    for prompt, answer in zip(asked, routed, strict=True):
        route, known = answer.choices[0].fusion_route, dict(zip(router.classes, decided[prompt], strict=True))
        chosen = router.choose(decided[prompt], ["red", "blue"], None)
        assert route["experts"] == (["twin"] if chosen else [])
        if not chosen:
            named.append(body("giant", prompt))
            continue
        whole = sum(known[name] for name in chosen)
        assert route["parts"]["twin"] == pytest.approx({name: known[name] / whole for name in chosen}, abs=1e-3)
        shares.add(tuple(sorted(route["parts"]["twin"].items())))
        fusion = {"experts": ["twin"], "weighting": "kl", "parts": route["parts"]}
        named.append(body("giant", prompt, fusion=fusion))
    assert len(shares) > 5
    for prompt, got, want in zip(asked, routed, await answers(server, named), strict=True):
        assert tokens(got.choices[0]) == tokens(want.choices[0]), prompt


def test_an_answer_for_later_is_counted_too(client: OpenAI, server: ServerProcess) -> None:
    before = routed_to(server, "auto", "red")
    answer = client.responses.create(model="auto", input=prompts(1)[0], max_output_tokens=4, background=True)
    while client.responses.retrieve(answer.id).status in ("queued", "in_progress"):
        time.sleep(0.05)
    assert routed_to(server, "auto", "red") == before + 1


async def test_a_conversation_goes_on_with_another_expert(
    server: ServerProcess, router: Router, decided: dict[str, np.ndarray]
) -> None:
    """What a chosen expert left in the prefix cache is not taken for what another one needs."""
    first = [prompt for prompt in decided if router.choose(decided[prompt], ["red", "blue"], 1)][:24]
    began = await answers(server, [body("auto", prompt, max_tokens=40, ignore_eos=True) for prompt in first])
    requests = []
    for prompt, answer, other in zip(first, began, reversed(list(decided)), strict=False):
        said = {"role": "assistant", "content": answer.choices[0].message.content}
        messages = [{"role": "user", "content": prompt}, said, {"role": "user", "content": other}]
        requests.append({**body("auto", ""), "messages": messages})
    routed = await answers(server, requests)
    named = []
    changed = 0
    for prompt, answer, request in zip(first, routed, requests, strict=True):
        experts = answer.choices[0].fusion_route["experts"]
        changed += experts != router.choose(decided[prompt], ["red", "blue"], 1)
        fusion = {"experts": experts, "weighting": "kl"} if experts else {"weighting": "none"}
        named.append(request | {"model": "both", "fusion": fusion})
    assert changed, "no conversation changed its expert"
    for got, want in zip(routed, await answers(server, named), strict=True):
        assert tokens(got.choices[0]) == tokens(want.choices[0])


def test_streams_and_other_protocols_tell_what_was_chosen(client: OpenAI, server: ServerProcess) -> None:
    prompt = prompts(1)[0]
    whole = client.chat.completions.create(**body("auto", prompt))
    route = whole.choices[0].fusion_route
    assert route["experts"] == ["red"]
    events = list(client.chat.completions.create(**body("auto", prompt), stream=True))
    told = [event.choices[0].fusion_route for event in events if hasattr(event.choices[0], "fusion_route")]
    assert told == [route]
    streamed = [token for event in events if event.choices[0].logprobs for token in tokens(event.choices[0])]
    assert streamed == tokens(whole.choices[0])
    answer = httpx.post(f"{server.url}/v1/responses", json={"model": "auto", "input": prompt, "max_output_tokens": 4})
    assert answer.json()["fusion_route"]["experts"] == ["red"]
    several = client.completions.create(model="auto", prompt=[prompt, "tree lamp"], n=2, max_tokens=3, seed=1)
    assert all("probabilities" in choice.fusion_route for choice in several.choices)  # type: ignore[attr-defined]
    assert several.choices[0].fusion_route == several.choices[1].fusion_route  # type: ignore[attr-defined]
    message = {"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": prompt}]}
    assert httpx.post(f"{server.url}/v1/messages", json=message).json()["fusion_route"]["experts"] == ["red"]


def test_the_trace_has_all_experts_and_the_chosen_one_moves(client: OpenAI) -> None:
    answer = client.chat.completions.create(**body("auto", prompts(2)[1]), extra_body={"fusion": {"trace": "full"}})
    choice: Any = answer.choices[0]
    assert choice.fusion_route["experts"] == ["blue"]
    assert set(choice.fusion["alpha"]) == {"red", "blue"}
    assert not any(choice.fusion["alpha"]["red"])
    assert any(choice.fusion["alpha"]["blue"])
    assert choice.fusion["lens"]["blue"][0]["top"]


def test_a_request_overrides_the_router(client: OpenAI) -> None:
    answer: Any = client.chat.completions.create(
        **body("auto", prompts(1)[0]), extra_body={"fusion": {"experts": ["blue"], "trace": True}}
    )
    assert not hasattr(answer.choices[0], "fusion_route")
    assert set(answer.choices[0].fusion["alpha"]) == {"blue"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt_logprobs": 1}, "prompt_logprobs: a router chooses experts when the prompt has been read"),
        ({"fusion": {"prompts": {"red": {"with": "x"}}}}, "fusion.prompts: the experts that a router chooses read"),
        ({"fusion": {"weighting": "none", "experts": ["red"]}}, "runs the large model only"),
        ({"fusion": {"parts": {"twin": {"red": 1}}}}, "fusion.parts: the preset's router chooses them"),
        (
            {"fusion": {"experts": ["red"], "parts": {"twin": {"red": 1.0}}}},
            "fusion.parts.twin: no expert of the request is a mixture of that name; none of them is",
        ),
        ({"fusion": {"experts": ["twin"], "parts": {"twin": {"rad": 1.0}}}}, "fusion.parts.twin: it has no part 'rad'"),
        ({"fusion": {"experts": ["twin"], "parts": {"twin": {"red": 1.5}}}}, "fusion.parts.twin.red"),
    ],
)
def test_what_a_router_cannot_do_is_refused(client: OpenAI, more: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**body("auto", "tree"), extra_body=more)


def test_a_routed_preset_is_evaluated(server: ServerProcess, tmp_path: Path) -> None:
    """Given answers are scored under what the router chooses for their prompts, as if that had been named."""
    lines = [{"question": prompt, "answer": " tree"} for prompt in prompts(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = {"data": "data.jsonl", "prompt": "{question}", "answer": "{answer}", "chat": True}
    suite = {
        "tasks": {"given": {**task, "metric": "nll"}, "said": {**task, "metric": "exact", "max_tokens": 4}},
        "settings": {
            "auto": {"weighting": "kl", "route": "auto"},
            "red": {"weighting": "kl"},
            "none": {"weighting": "none"},
        },
        "tables": {"All": {"experts": ["red"]}},
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    options = ["--suite", str(tmp_path / "suite.yaml"), "--url", server.url, "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, ["eval", *options])
    assert said.exit_code == 0, said.output
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    values = {
        (each["task"], each["fusion"].get("route", each["fusion"]["weighting"]), each["example"]): each["value"]
        for each in records
    }
    assert len(values) == 2 * 3 * 6
    # The first prompt is for red, the third for none.
    assert values["given", "auto", 0] == pytest.approx(values["given", "kl", 0], abs=1e-3)
    assert values["given", "auto", 2] == pytest.approx(values["given", "none", 2], abs=1e-3)
    assert values["given", "auto", 1] != pytest.approx(values["given", "kl", 1], abs=1e-3)


def test_metrics_count_what_was_chosen(client: OpenAI, server: ServerProcess) -> None:
    before = routed_to(server, "auto", "red")
    client.chat.completions.create(**body("auto", prompts(1)[0]))
    assert routed_to(server, "auto", "red") == before + 1


def routed_to(server: ServerProcess, preset: str, expert: str) -> float:
    """How many prompts of a preset went to an expert."""
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == "fusion_routed_total"]
    return sum(sample.value for sample in samples if sample.labels == {"preset": preset, "expert": expert})
