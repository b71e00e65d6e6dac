"""What the members' tokenizers may differ in, and at which tokens answers end."""

from __future__ import annotations

from pathlib import Path

import yaml
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tests.models import make_model, make_tokenizer
from tests.server.family import check, edit, fault


def test_tokenizers_that_differ(family: Path) -> None:
    make_tokenizer(family / "red", variant=1)
    message = fault(family)
    assert message.startswith(
        "experts.red.model: its tokenizer differs from the large model's: id 259 is 'ee' in large and "
    )
    assert "id 260 is" in message
    assert "id 261 is" in message
    assert "id 262 is" not in message
    assert "more ids). All members must come from models that share one tokenizer" in message


def remarks(family: Path) -> list[str]:
    return [remark.replace(f"{family}/", "") for remark in check(family).remarks]


def test_special_ids_that_differ(family: Path) -> None:
    edit(family / "base" / "tokenizer_config.json", eos_token="<pad>", pad_token="<eos>")
    assert remarks(family) == [
        "base: its eos is id 0 ('<pad>'), large's is id 2 ('<eos>')",
        "base: its pad is id 2 ('<eos>'), large's is id 0 ('<pad>'), which nothing here uses",
    ]


def test_experts_that_end_elsewhere(family: Path) -> None:
    edit(family / "blue" / "tokenizer_config.json", eos_token="<bos>")
    (family / "red" / "generation_config.json").write_text('{"eos_token_id": [2, 300, 511]}')
    report = check(family)
    assert [expert.end_ids for expert in report.members.experts] == [(300, 511), (1,)]
    assert remarks(family) == [
        "blue: its eos is id 1 ('<bos>'), large's is id 2 ('<eos>')",
        "red: what it steers ends at its own id 300 ('ns') and id 511 ('fu') too (experts.red.stop_at_eos: false turns "
        "it off)",
        "blue: what it steers ends at its own id 1 ('<bos>') too (experts.blue.stop_at_eos: false turns it off)",
    ]
    config = family / "fusion.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["experts"]["red"]["stop_at_eos"] = False
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    assert [expert.end_ids for expert in check(family).members.experts] == [(), (1,)]


def test_an_end_that_the_large_model_cannot_write(family: Path) -> None:
    make_model(family / "red", vocab_size=514, tokenizer_size=514)
    (family / "red" / "generation_config.json").write_text('{"eos_token_id": 513}')
    assert remarks(family) == [
        "red: its tokenizer has 2 ids that large's has not, which no prompt holds: id 512 ('fm'), id 513 ('fw')",
        "red: large has no logit for its end token 513, so no answer ends there",
    ]


def test_added_tokens_that_were_renamed(family: Path) -> None:
    for name, token in (("large", "<free>"), ("red", "<|im_end|>")):
        tokenizer = AutoTokenizer.from_pretrained(family / name)
        make_model(family / name, vocab_size=640, tokenizer_size=512)
        tokenizer.add_tokens([token], special_tokens=True)
        tokenizer.save_pretrained(family / name)
    for name in ("base", "blue"):
        make_model(family / name, vocab_size=640, tokenizer_size=512)
    assert remarks(family) == [
        "red: its tokenizer gives added tokens other texts: id 512 ('<|im_end|>') is '<free>' in large"
    ]


def test_two_tokens_before_every_text(family: Path) -> None:
    for name, token in (("large", "<bos>"), ("red", "<pad>")):
        path = family / name / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.post_processor = TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, {"<pad>": 0, "<bos>": 1}[token])]
        )
        tokenizer.save(str(path))
    edit(family / "red" / "tokenizer_config.json", bos_token="<pad>")
    assert fault(family) == (
        "experts.red.model: its tokenizer differs from the large model's: it sets id 0 ('<pad>') before every text, "
        "and the large model's sets id 1 ('<bos>'). Set bos_token alike in both tokenizer_config.json"
    )


def test_a_shorter_tokenizer_of_the_same_texts_is_fine_unless_logits_are_missing(family: Path) -> None:
    make_model(family / "red", vocab_size=512, tokenizer_size=500)
    check(family)
    make_model(family / "red", vocab_size=500)
    assert fault(family).startswith(
        "experts.red.model: the model has logits for 500 ids, but the tokenizer has 512; the first one past the end "
        "is id 500 ("
    )


def test_no_tokenizer(family: Path) -> None:
    for path in (family / "base").glob("tokenizer*"):
        path.unlink()
    assert fault(family).startswith(
        "base.model: base has no tokenizer; if the model was trained with the large model's"
    )
