"""A member whose weights turned to NaN: the large model answers alone where it is needed, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from tests.e2e.traffic import settle
from tests.hf_loop import HFLoop, Settings
from tests.models import make_family
from tests.server_process import ServerProcess

MAX_TOKENS = 6
ALL_WEIGHTINGS = [
    Settings("static", ("red",), (1.0,)),
    Settings("kl", ("red",)),
    Settings("kl-grid", ("red",)),
    Settings("alone", ("red",)),
    Settings("static", ("red", "blue"), (0.5, 0.5)),
    Settings("kl-grid", ("blue", "red")),
]
OF_BLUE = [Settings("static", ("blue",), (1.0,)), Settings("kl-grid", ("blue",)), Settings("alone", ("blue",))]
LARGE = Settings("none")


class Broken(NamedTuple):
    """A server one of whose members is broken, and how requests fall out there."""

    member: str
    server: ServerProcess
    fall_back: list[Settings]
    sound: list[Settings]


@pytest.fixture(scope="module", params=["red", pytest.param("base", marks=pytest.mark.long)])
def broken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    member: str = request.param
    folder = tmp_path_factory.mktemp(f"broken-{member}")
    config = make_family(folder)
    file = folder / member / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"].fill_(torch.nan)
    save_file(weights, file, metadata={"format": "pt"})
    with ServerProcess(config, folder / "server.log") as server:
        if member == "red":
            yield Broken(member, server, ALL_WEIGHTINGS, [*OF_BLUE, LARGE])
        else:
            # An expert alone needs no base.
            needs_base = [settings for settings in ALL_WEIGHTINGS + OF_BLUE if settings.weighting != "alone"]
            yield Broken(member, server, needs_base, [Settings("alone", ("red",)), OF_BLUE[2], LARGE])


def failures(server: ServerProcess) -> dict[tuple[str, str], float]:
    """fusion_solver_failures_total by preset and member, with all that was generated before this call."""
    settle(server)
    families = text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
    return {
        (sample.labels["preset"], sample.labels["member"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "fusion_solver_failures_total"
    }


async def test_only_those_who_need_it_get_the_large_model_alone(broken: Broken, oracle: HFLoop) -> None:
    client = AsyncOpenAI(base_url=broken.server.url + "/v1", api_key="none", max_retries=2)
    before = failures(broken.server)
    cases = [(f"Tell number {i}", settings) for i, settings in enumerate((broken.fall_back + broken.sound) * 3)]
    fell_back = [settings in broken.fall_back for _, settings in cases]
    prompts = [oracle.tokenizer(text).input_ids for text, _ in cases]

    async def send(prompt: list[int], settings: Settings) -> Any:
        fields = {"fusion": settings.field(trace=True), "return_token_ids": True, "ignore_eos": True}
        return await client.completions.create(
            model="giant-red", prompt=prompt, max_tokens=MAX_TOKENS, temperature=0, extra_body=fields
        )

    answers = await asyncio.gather(*(send(prompt, case[1]) for prompt, case in zip(prompts, cases, strict=True)))
    for answer, prompt, (_, settings), fell in zip(answers, prompts, cases, fell_back, strict=True):
        expected, _ = oracle.greedy(prompt, LARGE if fell else settings, MAX_TOKENS)
        choice = answer.choices[0]
        assert choice.token_ids == expected, settings
        assert choice.fusion["fallback"] == [fell] * MAX_TOKENS
        if fell:
            assert all(weights == [0.0] * MAX_TOKENS for weights in choice.fusion["alpha"].values())
    after = failures(broken.server)
    grown = {key: after[key] - before.get(key, 0.0) for key in after if after[key] != before.get(key, 0.0)}
    assert grown == {("giant-red", broken.member): MAX_TOKENS * sum(fell_back)}


def test_the_log_says_it_once(broken: Broken) -> None:
    body = {"model": "giant-red", "prompt": "a", "max_tokens": 2}
    assert httpx.post(broken.server.url + "/v1/completions", json=body).status_code == 200
    failures(broken.server)
    name = "the base" if broken.member == "base" else "expert 'red'"
    assert broken.server.log.read_text().count(f"The logits of {name} hold NaN") == 1
    assert "Traceback" not in broken.server.log.read_text()
