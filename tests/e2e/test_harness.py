"""`lm_eval` against the running server: log-likelihoods of answers, as computed from the reference offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hf_loop import HFLoop, Settings
from tests.server_process import ServerProcess

HERE = Path(__file__).parent
SAMPLE = HERE / "mmlu_sample.jsonl"
TASK = f"""\
task: mmlu_sample
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{SAMPLE}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
# The preset giant-blue: static, alpha 1.
SETTINGS = Settings("static", ("blue",), (1.0,))


def test_log_likelihoods_agree_with_the_reference(
    server: ServerProcess, family: Path, oracle: HFLoop, tmp_path: Path
) -> None:
    lm_eval: Any = pytest.importorskip("lm_eval")
    tasks: Any = pytest.importorskip("lm_eval.tasks")
    (tmp_path / "mmlu_sample.yaml").write_text(TASK)
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "giant-blue",
            "base_url": server.url + "/v1/completions",
            "tokenizer": str(family.parent / "large"),
            "num_concurrent": 4,
            "max_length": 250,
        },
        tasks=["mmlu_sample"],
        task_manager=tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    right = 0
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    samples = sorted(results["samples"]["mmlu_sample"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(rows)
    for row, sample in zip(rows, samples, strict=True):
        expected = [log_likelihood(oracle, f"Question: {row['question']}\nAnswer:", c) for c in row["choices"]]
        got = [float(answer[0]) for answer in sample["filtered_resps"]]
        torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=1e-3, rtol=0)
        right += int(torch.tensor(expected).argmax()) == row["answer"]
    assert results["results"]["mmlu_sample"]["acc,none"] == pytest.approx(right / len(rows))


def log_likelihood(oracle: HFLoop, context: str, choice: str) -> float:
    """Of a choice after its context, with the space between them, tokenised as one text."""
    prompt = oracle.tokenizer(context).input_ids
    whole = oracle.tokenizer(f"{context} {choice}").input_ids
    answer = whole[len(prompt) :]
    logprobs = oracle.along(whole[: len(prompt)], answer, SETTINGS).logits.log_softmax(-1)
    return float(logprobs[torch.arange(len(answer)), torch.tensor(answer)].sum())
