"""`lm_eval` against the running server: log-likelihoods and greedy answers, as computed from the reference offline."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import lm_eval  # type: ignore[import-untyped]
import pytest
import torch
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

from tests.hf_loop import HFLoop, Settings
from tests.server_process import ServerProcess
from zoo import FAMILY

HERE = Path(__file__).parent
MMLU_SAMPLE = HERE / "mmlu_sample.jsonl"
GSM8K_TEST = FAMILY / "data" / "gsm8k_test.jsonl.gz"
GSM8K_EXAMPLES = 4
# The family reads 256 tokens at most.
LONGEST_QUESTION = 130
MAX_TOKENS = 4
MMLU = f"""\
task: mmlu_sample
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{MMLU_SAMPLE}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
GSM8K = """\
task: gsm8k_sample
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["Question:", "</s>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {max_tokens}
metric_list:
  - metric: exact_match
"""
# The preset giant-blue: static, alpha 1.
SETTINGS = Settings("static", ("blue",), (1.0,))


def run_harness(server: ServerProcess, family: Path, folder: Path, name: str, task: str) -> dict[str, Any]:
    """Evaluate one task, defined in `folder`, and return the harness' results with all samples in order."""
    (folder / f"{name}.yaml").write_text(task)
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "giant-blue",
            "base_url": server.url + "/v1/completions",
            "tokenizer": str(family.parent / "large"),
            "num_concurrent": 4,
            "max_length": 250,
        },
        tasks=[name],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    results["samples"][name].sort(key=lambda sample: sample["doc_id"])
    return results


def test_log_likelihoods_agree_with_the_reference(
    server: ServerProcess, family: Path, oracle: HFLoop, tmp_path: Path
) -> None:
    results = run_harness(server, family, tmp_path, "mmlu_sample", MMLU)
    right = 0
    rows = [json.loads(line) for line in MMLU_SAMPLE.read_text().splitlines()]
    for row, sample in zip(rows, results["samples"]["mmlu_sample"], strict=True):
        expected = [log_likelihood(oracle, f"Question: {row['question']}\nAnswer:", c) for c in row["choices"]]
        got = [float(answer[0]) for answer in sample["filtered_resps"]]
        torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=1e-3, rtol=0)
        right += int(torch.tensor(expected).argmax()) == row["answer"]
    assert results["results"]["mmlu_sample"]["acc,none"] == pytest.approx(right / len(rows))


def test_greedy_answers_agree_with_the_reference(
    server: ServerProcess, family: Path, oracle: HFLoop, tmp_path: Path
) -> None:
    """Random models solve nothing: of half of the questions, the right answer is what the reference says."""
    rows: list[dict[str, str]] = []
    said: list[str] = []
    with gzip.open(GSM8K_TEST, "rt") as file:
        for row in map(json.loads, file):
            if len(row["question"]) > LONGEST_QUESTION:
                continue
            answer = greedy(oracle, f"Question: {row['question']}\nAnswer:")
            # Bytes that make no character are decoded in one way at once, and in another as they come.
            if "\ufffd" not in answer:
                right = answer if len(rows) % 2 else row["answer"].rpartition("#### ")[2]
                rows.append({"question": row["question"], "answer": right})
                said.append(answer)
            if len(rows) == GSM8K_EXAMPLES:
                break
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = GSM8K.format(data=data, max_tokens=MAX_TOKENS)
    results = run_harness(server, family, tmp_path, "gsm8k_sample", task)
    assert [sample["resps"][0][0] for sample in results["samples"]["gsm8k_sample"]] == said
    assert results["results"]["gsm8k_sample"]["exact_match,none"] == pytest.approx(0.5)


def log_likelihood(oracle: HFLoop, context: str, choice: str) -> float:
    """Of a choice after its context, with the space between them, tokenised as one text."""
    prompt = oracle.tokenizer(context).input_ids
    whole = oracle.tokenizer(f"{context} {choice}").input_ids
    answer = whole[len(prompt) :]
    logprobs = oracle.along(whole[: len(prompt)], answer, SETTINGS).logits.log_softmax(-1)
    return float(logprobs[torch.arange(len(answer)), torch.tensor(answer)].sum())


def greedy(oracle: HFLoop, prompt: str) -> str:
    """The greedy answer as text, up to the end of text."""
    token_ids, _ = oracle.greedy(oracle.tokenizer(prompt).input_ids, SETTINGS, MAX_TOKENS)
    end = oracle.tokenizer.eos_token_id
    token_ids = token_ids[: token_ids.index(end)] if end in token_ids else token_ids
    text: str = oracle.tokenizer.decode(token_ids)
    return text
