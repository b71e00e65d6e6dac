"""GGUF files as members: converted once, and the same model afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter, TokenType
from safetensors.torch import load_file
from transformers import AutoTokenizer

from server.engine import gguf
from tests.models import make_model
from tests.server.family import check, fault

HEADS, KV_HEADS = 2, 1
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "logit-fusion" / "gguf"


def write_gguf(folder: Path, file: Path) -> None:
    """Write a Llama model of `tests.models` as llama.cpp's converter does, in float32."""
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(32)
    writer.add_vocab_size(512)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.convert_ids_to_tokens(token) for token in range(512)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * 509)
    writer.add_token_merges([" ".join(text) for text in texts[259:]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, tensor in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module in ENDS:
            target = ENDS[module]
        else:
            _, _, layer, rest = module.split(".", 3)
            target = f"blk.{layer}.{NAMES[rest]}"
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(target.split(".")[-1])
        if heads is not None:  # llama.cpp rotates neighbouring pairs
            rows = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
            tensor = rows.transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{target}.weight", tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_is_converted_once_and_served(family: Path, cache: Path) -> None:
    make_model(family / "red", dtype="bfloat16", seed=2)
    write_gguf(family / "red", family / "red-F32.gguf")
    report = check(family, "experts.red={model: ./red-F32.gguf}")
    (folder,) = cache.iterdir()
    red = report.members.experts[0]
    assert red.folder == folder
    assert red.kind == "model"
    ours, theirs = load_file(folder / "model.safetensors"), load_file(family / "red" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    made = folder.stat().st_mtime_ns
    check(family, "experts.red={model: ./red-F32.gguf}")
    assert [each.stat().st_mtime_ns for each in cache.iterdir()] == [made]


def test_what_is_no_model(family: Path, cache: Path) -> None:
    (family / "red.gguf").write_bytes(b"GGUF and nothing else")
    assert "red.gguf cannot be converted: " in fault(family, "experts.red={model: ./red.gguf}")
    assert list(cache.iterdir()) == []


def test_without_the_packages(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (family / "red.gguf").touch()
    monkeypatch.setattr(gguf, "find_spec", lambda _: None)
    assert fault(family, "experts.red={model: ./red.gguf}").endswith(
        "pip install logit-fusion[gguf], or gguf and accelerate"
    )
