"""A fresh member predicts what followed the current token before."""

from pathlib import Path

import torch

from zoo.induction import CONSTANT, Layout
from zoo.models import build_model, load_member
from zoo.recipe import Recipe
from zoo.tokenizer import train_tokenizer


@torch.no_grad()
def test_a_fresh_member_copies() -> None:
    torch.manual_seed(0)
    recipe = Recipe()
    tokenizer = train_tokenizer(["some words to begin with"], 512)
    for size in (recipe.base, recipe.large):
        model = build_model(size, recipe, tokenizer)
        vocabulary = model.config.vocab_size
        block = torch.randperm(vocabulary)[:40]
        logits = model(input_ids=block.repeat(1, 2)).logits[0, 40:-1]
        wanted = logits.gather(1, block[1:, None])
        # Six of 512 would be chance.
        ahead = (logits > wanted).sum(-1)
        assert (ahead <= 5).float().mean() > 0.5


@torch.no_grad()
def test_training_keeps_the_circuit(micro_family: Path) -> None:
    model = load_member(micro_family / "models" / "math")
    layout = Layout.of(model)
    assert (model.model.embed_tokens.weight[:, 0] == CONSTANT).all()
    assert (model.model.norm.weight[layout.previous] == 0).all()
