"""What holds an expert to its base."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from training.anchor import PARTS, TEXT_TOKENS, TEXTS, Anchor, drift, off_task, own_texts


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    made: Any = LlamaForCausalLM
    return made(LlamaConfig(vocab_size=64, eos_token_id=2, **sizes)).eval()


def test_drift_is_the_kl_of_the_paper() -> None:
    torch.manual_seed(0)
    found, wanted = torch.randn(5, 9) * 3, torch.randn(5, 9) * 3
    p, q = wanted.double().softmax(-1), found.double().softmax(-1)
    assert float(drift(found, wanted)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    assert float(drift(found, found)) == pytest.approx(0.0, abs=1e-6)


def test_the_base_writes_the_texts_itself(model: Any) -> None:
    texts = own_texts(model, [1, 5], seed=3)
    assert texts.shape == (TEXTS, 2 + TEXT_TOKENS)
    assert TEXTS % PARTS == 0
    assert (texts[:, :2] == torch.tensor([1, 5])).all()
    # An end of a turn ends no text.
    assert (texts[:, 2:-1] == 2).any()
    assert len(torch.unique(texts, dim=0)) == TEXTS
    assert torch.equal(texts, own_texts(model, [1, 5], seed=3))


def test_questions_of_the_task_are_left_out() -> None:
    task = ["Extract the name and city: In Rome, Eve bought one pen."]
    texts = ["extract the name and CITY: In Oslo ...", "Extract the name of it", "", "bought one pen. Rome"]
    assert off_task(texts, task) == [False, True, True, True]


@pytest.mark.parametrize("full", [True, False])
def test_the_term_is_zero_at_the_base_and_grows(model: Any, full: bool) -> None:
    frozen = copy.deepcopy(model) if full else None
    trained = model if full else get_peft_model(model, LoraConfig(target_modules="all-linear"))
    anchor = Anchor(torch.randint(0, 64, (6, 12)), batch=4, weight=2.0, frozen=frozen)
    assert float(anchor.loss(trained).detach()) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    loss: Any = anchor.loss(trained)
    assert float(loss.detach()) > 0.01
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())
