"""Checkpoints as the hub has them: a pretrained base under an instruct expert, beside a multimodal large model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from transformers import AutoTokenizer
from typer.testing import CliRunner

from server.cli import app
from tests.models import make_expert, make_model
from tests.multimodal import make_multimodal
from tests.server_process import ServerProcess

ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = """\
large: {{model: {large}}}
base: {{model: {base}}}
experts:
  chat: {{model: {chat}}}
presets:
  plain: {{weighting: none}}
  chatty: {{experts: [chat], weighting: static, alpha: 1.0}}
engine: {{dtype: float32, max_model_len: 256, max_num_seqs: 4, enforce_eager: true, kv_cache_memory_bytes: 33554432}}
"""
PIXEL = base64.b64encode(b"\x89PNG not really").decode()


def in_the_cache(root: Path, name: str, folder: Path) -> Path:
    """Lay a folder out as the hub's cache does: files under their hashes, and a snapshot of links to them."""
    model = root / f"models--{name.replace('/', '--')}"
    blobs, snapshot = model / "blobs", model / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = file.rename(blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def finish(folder: Path, eos: str, pad: str | None, template: str | None) -> None:
    """Give a folder the tokenizer settings of its stage of training."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(ADDED, special_tokens=True)
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = eos, pad, template
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multimodal large model and a pretrained base that end texts alike, and an instruct expert that ends turns."""
    folder = tmp_path_factory.mktemp("hub")
    rows: Any = {"vocab_size": 576, "tokenizer_size": 512}
    make_multimodal(folder / "large", "gemma3", layers=3, **rows)
    make_model(folder / "base", "qwen3", seed=1, **rows)
    make_expert(folder / "chat", folder / "base", seed=2)
    finish(folder / "large", "<|endoftext|>", "<pad>", CHATML)
    finish(folder / "base", "<|endoftext|>", "<|endoftext|>", None)
    finish(folder / "chat", "<|im_end|>", "<|endoftext|>", CHATML)
    (folder / "chat" / "generation_config.json").write_text('{"eos_token_id": [514, 512], "pad_token_id": 512}')
    paths = {name: in_the_cache(folder, f"maker/{name}", folder / name) for name in ("large", "base", "chat")}
    config = folder / "fusion.yaml"
    config.write_text(CONFIG.format(**paths))
    return config


@pytest.fixture(scope="module")
def hub(config: Path) -> Iterator[ServerProcess]:
    with ServerProcess(config, config.parent / "log") as server:
        yield server


def test_check_says_what_differs(config: Path) -> None:
    done = CliRunner().invoke(app, ["check", "--config", str(config)])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    for remark in (
        "large: served as a text model; its parts that read images or sound are left out",
        "chat: its eos is id 514 ('<|im_end|>'), large's is id 512 ('<|endoftext|>')",
        "chat: what it steers ends at its own id 514 ('<|im_end|>') too (experts.chat.stop_at_eos: false turns it off)",
        "base: its pad is id 512 ('<|endoftext|>'), large's is id 0 ('<pad>'), which nothing here uses",
    ):
        assert remark in said


def test_a_turn_ends_where_its_expert_ends_it(hub: ServerProcess) -> None:
    client = OpenAI(base_url=hub.url + "/v1", api_key="none", max_retries=0)
    # Random weights never end a turn; the bias makes both want to.
    ends: dict[str, Any] = {"logit_bias": {"514": 100}, "max_tokens": 5, "temperature": 0}
    messages: Any = [{"role": "user", "content": "Hello"}]
    for preset, tokens, reason in (("chatty", 1, "stop"), ("plain", 5, "length")):
        answer = client.chat.completions.create(model=preset, messages=messages, **ends)
        assert (answer.choices[0].finish_reason, answer.usage and answer.usage.completion_tokens) == (reason, tokens)
        assert "<|im_end|>" not in (answer.choices[0].message.content or "")
    on: Any = {"ignore_eos": True}
    answer = client.chat.completions.create(model="chatty", messages=messages, extra_body=on, **ends)
    assert answer.choices[0].finish_reason == "length"


def test_images_are_refused_by_name(hub: ServerProcess) -> None:
    client = OpenAI(base_url=hub.url + "/v1", api_key="none", max_retries=0)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    with pytest.raises(BadRequestError, match="only text can be read here"):
        client.chat.completions.create(model="chatty", messages=messages, max_tokens=2)
