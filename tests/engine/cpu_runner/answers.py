"""One engine of plain vLLM on the large demo model, in a process of its own: prints its answers as JSON.

VLLM_USE_V2_MODEL_RUNNER=1 python -m tests.engine.cpu_runner.answers [DRAFT MODEL]
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from zoo import FAMILY

MODELS = FAMILY / "models"

PROMPTS = [
    "What is the three-letter code of Canada? The",
    "Tom has 5 apples and buys 7 more. How many",
    "The capital",
    # Longer than a step, so that it is read in several.
    "Anna has 3 pens, Ben has 4 pens, Carl has 5 pens and Dora has 6 pens. " * 4 + "How many pens",
]


def settings() -> dict[str, Any]:
    """What is asked of every prompt."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    drawn: dict[str, Any] = {"temperature": 0.8, "seed": 3, "max_tokens": 12}
    number = StructuredOutputsParams(regex="[0-9]{3}")
    return {
        "greedy": SamplingParams(**greedy),
        "penalties": SamplingParams(
            **greedy, ignore_eos=True, frequency_penalty=0.8, presence_penalty=0.5, repetition_penalty=1.5
        ),
        "bias": SamplingParams(**greedy, logit_bias={100: 20.0, 101: 19.5}),
        "bad words": SamplingParams(**greedy, bad_words=["the", " code", " is"], min_tokens=8),
        "allowed": SamplingParams(**greedy, allowed_token_ids=list(range(100, 140))),
        "grammar": SamplingParams(**greedy, structured_outputs=number),
        "logprobs": SamplingParams(**greedy, logprobs=3, prompt_logprobs=2),
        "drawn": SamplingParams(**drawn),
        "drawn again": SamplingParams(**drawn),
        "drawn with a grammar": SamplingParams(**drawn, structured_outputs=number),
        "drawn from the likely": SamplingParams(**drawn, top_k=20, top_p=0.9, min_p=0.02),
    }


def main(draft: str | None) -> None:
    from vllm import LLM

    llm = LLM(
        model=str(MODELS / "large"),
        dtype="float32",
        max_model_len=256,
        max_num_seqs=3,
        max_num_batched_tokens=64,
        kv_cache_memory_bytes=2**27,
        enforce_eager=True,
        speculative_config=draft and {"method": "draft_model", "model": draft, "num_speculative_tokens": 3},
    )
    answers: dict[str, Any] = {}
    for name, params in settings().items():
        # V1 dies of a seed where a prompt is read in several steps: "CPU Generator does not use offset".
        if params.seed is not None and os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0":
            continue
        # vLLM 0.32 refuses both beside speculation.
        if draft and (params.min_p or params.logit_bias):
            continue
        outputs: Any = llm.generate(PROMPTS, params, use_tqdm=False)
        answers[name] = [list(output.outputs[0].token_ids) for output in outputs]
        if params.logprobs:
            answers["logprob values"] = [
                [[token.logprob for token in place.values()] for place in output.outputs[0].logprobs or []]
                for output in outputs
            ]
    print("ANSWERS " + json.dumps(answers), flush=True)
    # What follows in an ordinary exit is not under test.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
