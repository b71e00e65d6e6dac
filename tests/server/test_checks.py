"""What is found out about the members before their weights load, over tiny random models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from server.config import load_config
from server.engine.members import Member, fetch_weights, resolve_members
from tests.families.build import make_kind
from tests.models import Architecture, make_model
from tests.server.family import LORA, check, edit, fault


def test_a_family_that_fits(family: Path) -> None:
    report = check(family, LORA, "experts.mix={merge: {red: 0.5, lora: -1}}")
    members = report.members
    assert [member.name for member in members.all] == ["large", "base", "red", "blue", "lora", "mix"]
    assert [member.kind for member in members.all] == ["model"] * 4 + ["adapter", "merge"]
    large, base, *experts = report.reports
    stored = sum(tensor.numel() for tensor in load_file(family / "large" / "model.safetensors").values())
    assert (large.parameters, large.weight_bytes) == (stored, 4 * stored)
    # layers x keys and values x KV heads x head_dim x bytes
    assert large.kv_bytes_per_token == 3 * 2 * 2 * 32 * 4
    assert base.kv_bytes_per_token == 2 * 2 * 1 * 32 * 4
    red, _, lora, mix = experts
    assert red.weight_bytes == mix.weight_bytes == base.weight_bytes
    # It shares the base's weights.
    assert lora.member.shares_weights
    assert lora.weight_bytes == 4 * lora.parameters < base.weight_bytes / 10
    assert report.kv_bytes_per_token == large.kv_bytes_per_token + 5 * base.kv_bytes_per_token
    assert (report.vocabulary, report.max_model_len, report.dtype) == (512, 256, "float32")
    assert report.remarks == ()
    sources = [expert.source for expert in members.experts]
    assert sources[2] == {"adapter": str(family / "lora"), "multimodal": False}
    assert sources[3] == {"merge": [[0.5, sources[0]], [-1.0, sources[2]]]}
    assert [member["name"] for member in report.as_dict()["members"]] == [member.name for member in members.all]
    json.dumps(report.as_dict())
    fetch_weights(members)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3"])
def test_members_of_other_architectures(family: Path, architecture: Architecture) -> None:
    window = 16 if architecture in ("mistral", "gemma2", "gemma3") else None
    # A padded vocabulary over the same tokenizer.
    make_model(family / "large", architecture, vocab_size=640, tokenizer_size=512, sliding_window=window)
    report = check(family)
    assert report.reports[0].member.vocabulary_rows == 640
    assert bool(report.reports[0].architecture.window) == (window is not None)


def test_the_smallest_member_bounds_the_context(family: Path) -> None:
    make_model(family / "red", max_position_embeddings=128)
    assert fault(family) == (
        "engine.max_model_len is 256, but red reads 128 tokens at most; 128 is the largest value that works"
    )
    report = check(family, "engine.max_model_len=null")
    assert report.max_model_len == 128
    assert report.config.engine["max_model_len"] == 128, "vLLM alone would take the large model's 512"
    assert "leave it out" in fault(family, "engine.max_model_len=-1")


def test_scaled_positions_count(family: Path) -> None:
    path = family / "red" / "config.json"
    rope = json.loads(path.read_text())["rope_parameters"]
    edit(path, max_position_embeddings=100, rope_parameters={**rope, "rope_type": "linear", "factor": 2.0})
    assert "red reads 200 tokens at most" in fault(family)


def _as_in_the_cache(red: Path) -> None:
    red.rename(red.with_name("files"))
    (red / "refs").mkdir(parents=True)
    (red / "snapshots").mkdir()
    red.with_name("files").rename(red / "snapshots" / "0123abc")


def _pickle(red: Path, state: object) -> None:
    (red / "model.safetensors").unlink()
    torch.save(state, red / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda red: (red / "config.json").unlink(), "experts.red.model: red has no config.json"),
        (lambda red: (red / "config.json").write_text("{"), "experts.red.model: red/config.json is not readable JSON"),
        (
            lambda red: edit(red / "config.json", model_type=None),
            "experts.red.model: red/config.json has no model_type",
        ),
        (
            lambda red: edit(red / "config.json", architectures=["LlamaForCausalML"]),
            "experts.red.model: vLLM has no architecture 'LlamaForCausalML'; did you mean 'LlamaForCausalLM'?",
        ),
        (
            lambda red: edit(red / "config.json", architectures=["BertModel"]),
            "experts.red.model: BertModel does not generate text token by token",
        ),
        (
            lambda red: edit(red / "config.json", architectures=["MambaForCausalLM"]),
            "experts.red.model: MambaForCausalLM keeps state outside the KV cache",
        ),
        (
            # Whose class needs libraries for images.
            lambda red: edit(
                red / "config.json",
                architectures=["Qwen3_5ForCausalLM"],
                layer_types=["linear_attention", "full_attention"],
            ),
            "experts.red.model: Qwen3_5ForCausalLM keeps state outside the KV cache",
        ),
        (
            lambda red: edit(red / "config.json", model_type="glm4v", architectures=["Glm4vForConditionalGeneration"]),
            "experts.red.model: Glm4vForConditionalGeneration reads images or sound",
        ),
        (
            lambda red: (red / "model.safetensors").unlink(),
            "experts.red.model: red holds no weights; *.safetensors or *.bin files are needed",
        ),
        (
            lambda red: os.truncate(red / "model.safetensors", 5000),
            "experts.red.model: red/model.safetensors is damaged or cut short",
        ),
        (
            lambda red: (red / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-1.safetensors"}}'
            ),
            "experts.red.model: red/model-1.safetensors is missing",
        ),
        (
            lambda red: (red / "adapter_model.safetensors").touch(),
            "experts.red.model: red/adapter_model.safetensors would be loaded as a part of the model, which it is not; "
            "remove it",
        ),
        (
            lambda red: (red / "model.safetensors").rename(red / "adapter_model.safetensors"),
            "experts.red.model: red/adapter_model.safetensors would be loaded as a part of the model, which it is not; "
            "it is a LoRA adapter: name it under 'adapter'",
        ),
        (
            _as_in_the_cache,
            "experts.red.model: red has no config.json; it is the hub's cache of a model, whose files lie in "
            "red/snapshots/0123abc",
        ),
        (
            lambda red: (red / "config.json").rename(red / "red-Q4_K_M.gguf"),
            "experts.red.model: red has no config.json; name one of its GGUF files itself",
        ),
        (
            lambda red: _pickle(red, {"a": Path()}),
            "experts.red.model: red/pytorch_model.bin cannot be read: Weights only load failed. ",
        ),
    ],
)
def test_spoiled_folders(family: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(family / "red")
    found = fault(family)
    assert found.startswith(message)
    assert found.isprintable()


def test_what_a_trainer_leaves_beside_the_weights(family: Path) -> None:
    weights = load_file(family / "red" / "model.safetensors")
    (family / "red" / "model.safetensors").unlink()
    torch.save(weights, family / "red" / "pytorch_model.bin")
    for name in ("training_args.bin", "optimizer.bin"):
        torch.save(Path(), family / "red" / name)
    check(family)


def test_head_sizes_that_the_cpu_lacks(family: Path) -> None:
    make_model(family / "red", head_dim=24)
    assert fault(family).startswith("experts.red.model: its head_dim is 24; on CPU vLLM's attention takes 32, 64, ")


def test_latent_attention_by_amx(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("large", "base", "red", "blue"):
        make_kind(family / name, "deepseek_v3", layers=2, seed=0)
    for amx in (False, True):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda amx=amx: amx)
        check(family, "engine.dtype=bfloat16")
        check(family, "engine.attention_backend=CPU_MLA")
        if amx:
            assert "in bfloat16 alone, and engine.dtype is float32" in fault(family)
        else:
            check(family)


def test_heads_that_cannot_be_divided(family: Path) -> None:
    assert fault(family, "engine.tensor_parallel_size=4") == (
        "base.model: its 2 attention and 1 KV heads cannot be divided among engine.tensor_parallel_size = 4 devices"
    )
    check(family, "engine.tensor_parallel_size=2")


def test_number_formats(family: Path) -> None:
    report = check(family, "engine.dtype=auto")
    assert report.dtype == "bfloat16", "as vLLM serves models that are stored in float32"
    assert "large: stored in float32, served in bfloat16 (engine.dtype)" in report.remarks
    assert report.reports[0].weight_bytes == 2 * report.reports[0].parameters
    assert report.reports[0].kv_bytes_per_token == 3 * 2 * 2 * 32 * 2
    make_model(family / "red", "gemma2")
    assert "overflows in float16" in fault(family, "engine.dtype=half")


def test_weights_in_pytorch_files(family: Path) -> None:
    import torch

    tensors = load_file(family / "red" / "model.safetensors")
    torch.save(tensors, family / "red" / "pytorch_model.bin")
    (family / "red" / "model.safetensors").unlink()
    report = check(family)
    assert report.reports[2].parameters == report.reports[1].parameters
    assert fault(family, "experts.mix={merge: {red: 1}}") == (
        "experts.mix.merge: 'red' has no safetensors weights; save it in that format to merge it"
    )


def test_a_hub_id_that_cannot_be_found(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = fault(family, "experts.red.model=nobody/nothing")
    assert message.startswith("experts.red.model: there is no folder 'nobody/nothing' beside the configuration file")


def test_hub_members_come_from_the_hub(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str | None, tuple[str, ...]]] = []

    def download(source: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((source, revision, tuple(allow_patterns)))
        return str(family / "red")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = load_config(family / "fusion.yaml", ["experts.red={model: someone/red, revision: v1}"])
    members = resolve_members(config)
    red: Member = members.experts[0]
    assert (red.hub_id, red.revision, red.source) == (
        "someone/red",
        "v1",
        {"model": str(family / "red"), "multimodal": False},
    )
    assert "*.safetensors" not in calls[0][2], "weights wait for the checks"
    fetch_weights(members)
    assert calls[1:] == [("someone/red", "v1", ("*.safetensors",))]
