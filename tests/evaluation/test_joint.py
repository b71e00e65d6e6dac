"""`kl-joint`, computed in the evaluation itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.client import Encoded
from evaluation.joint import Joint
from evaluation.plan import plan
from evaluation.suite import load_suite
from server.errors import ConfigError
from tests.evaluation.suites import TASK, write_suite
from tests.models import make_adapter, make_family

ENCODED = Encoded([70, 80, 90], [[70, 80, 90, 100, 110], [70, 80, 90, 120]], 3)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


def test_no_weight_is_the_large_model(family: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    reply = Joint(family).score({"experts": ["red", "blue"], "alpha_max": 1e-9}, ENCODED)
    model = AutoModelForCausalLM.from_pretrained(family.parent / "large")
    for ids, total in zip(ENCODED.whole, reply.log_likelihoods, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[place - 1, ids[place]]) for place in range(ENCODED.start, len(ids)))
        assert total == pytest.approx(expected, abs=1e-3)
    assert reply.tokens == 9


def test_both_experts_take_part(family: Path) -> None:
    joint = Joint(family)
    replies = [
        joint.score({"experts": experts, "alpha_max": 2.0}, ENCODED).log_likelihoods
        for experts in (["red"], ["blue"], ["red", "blue"])
    ]
    assert len({round(reply[0], 3) for reply in replies}) == 3


def test_adapters_are_refused(family: Path) -> None:
    make_adapter(family.parent / "lora", family.parent / "base")
    config = family.parent / "adapters.yaml"
    config.write_text(family.read_text().replace("red: {model: ./red}", "red: {adapter: ./lora}"))
    with pytest.raises(ConfigError, match="expert 'red' is given as 'adapter'"):
        Joint(config).score({"experts": ["red"], "alpha_max": 2.0}, ENCODED)


def test_it_has_no_answers_of_its_own(tmp_path: Path) -> None:
    tasks = {"say": {**TASK, "expert": "red"}, "likely": {**TASK, "metric": "nll", "expert": "red"}}
    suite = load_suite(write_suite(tmp_path, {"tasks": tasks, "settings": {"joint": {"weighting": "kl-joint"}}}))
    (table,) = plan(suite)
    assert list(table.cells) == [("likely", "joint")]
