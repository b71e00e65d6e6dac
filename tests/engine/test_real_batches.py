"""Random requests to a real language model, presets mixed in one batch, each against the reference in a plain loop."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.sampling_params import RequestOutputKind

from bench.beliefs import beliefs
from bench.steering import CONFIG, SYSTEMS
from server.config import load_config
from server.engine.gguf import converted
from server.engine.pairs import Pairs
from tests.engine.driver import Case, send_all
from tests.engine.engines import counter, running
from tests.engine.judge import Verdict, judge
from tests.engine.pair_loop import PairLoop
from tests.hf_loop import Settings
from zoo.smollm2 import gguf_file

EXPERTS = ["guide", "faithful"]
REQUESTS = 50
# The reference takes seconds over a row of `kl` in a vocabulary of 49,152: few requests, and short answers.
KL_EVERY, KL_TOKENS = 16, 2
# Chunks of prompts, and room for less than half of what eight requests may need: vLLM must preempt.
TIGHT = ["engine.block_size=32", "engine.max_model_len=256", "engine.max_num_batched_tokens=64"]
TIGHT += ["engine.max_num_seqs=8", "engine.num_gpu_blocks_override=24"]


def draw(number: int, seed: int, tokenizer: Any) -> list[Case]:
    """Questions with and without documents and system messages, answered by every preset, greedily and sampled."""
    rng = random.Random(seed)
    facts, arrives, cases = beliefs(), 0.0, []

    def ids(messages: list[dict[str, str]]) -> list[int]:
        found: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return found

    for place in range(number):
        fact = rng.choice(facts)
        system = [{"role": "system", "content": rng.choice(SYSTEMS).text}] if rng.random() < 0.7 else []
        document = [{"role": "user", "content": fact.contradicting}] if rng.random() < 0.7 else []
        question = [{"role": "user", "content": fact.question}]
        without = {"guide": ids([*document, *question]), "faithful": ids([*system, *question])}
        is_kl = place % KL_EVERY == KL_EVERY // 2
        used: tuple[str, ...] = (
            ("faithful",) if is_kl else rng.choice([(), *[(name,) for name in EXPERTS], tuple(EXPERTS)])
        )
        weighting = "kl" if is_kl else "static" if used else "none"
        settings = Settings(
            weighting,
            used,
            tuple(rng.choice([-0.5, 0.5, 1.0, 2.0]) for _ in used) if weighting == "static" else (),
            prompts=tuple((name, "against", tuple(without[name])) for name in used),
        )
        params: dict[str, Any] = {"temperature": 0, "max_tokens": rng.randint(4, 40), "logprobs": rng.choice([None, 0])}
        params["output_kind"] = rng.choice([RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])
        if rng.random() < 0.3 and not is_kl:
            params |= {"temperature": 0.8, "seed": rng.randrange(2**31), "n": rng.choice([1, 2]), "top_p": 0.9}
            params["top_k"] = rng.choice([0, 50])
        if is_kl:
            params["max_tokens"] = KL_TOKENS
        arrives += rng.expovariate(10)
        cases.append(Case(ids([*system, *document, *question]), settings, params, rng.random() < 0.25, arrives))
    return cases


@pytest.mark.long
async def test_every_request_is_the_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM2", str(gguf_file()))
    (tmp_path / "large").symlink_to(converted("large", gguf_file()))
    oracle = PairLoop(tmp_path, dict.fromkeys(EXPERTS, ("large", "large")))
    cases = draw(REQUESTS, 1, AutoTokenizer.from_pretrained(tmp_path / "large"))
    async with running(CONFIG, *TIGHT) as engine:
        preempted, hits = counter("vllm:num_preemptions"), counter("vllm:prefix_cache_hits")
        answers = await asyncio.wait_for(send_all(engine, cases, EXPERTS, Pairs(load_config(CONFIG, TIGHT))), 300)
        preempted, hits = counter("vllm:num_preemptions") - preempted, counter("vllm:prefix_cache_hits") - hits
    verdict = Verdict()
    for case, answer in zip(cases, answers, strict=True):
        assert answer is not None
        verdict += judge(oracle, case, answer)
    own = sum(bool(case.settings.prompts) for case in cases)
    print(f"{verdict}, {own} with own prompts, {preempted:g} preemptions, {hits:g} tokens found")
    assert preempted, "the cache is small enough to preempt"
    assert hits
    assert verdict.ties <= verdict.tokens // 500
