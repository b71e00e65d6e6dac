"""The micro recipe end to end: what `zoo train` leaves behind, and what `zoo verify` says of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from zoo import FAMILY
from zoo.cli import app
from zoo.manifest import faults
from zoo.recipe import EXPERTS, MICRO

MEMBERS = ("large", "base", *EXPERTS)
ADAPTERS = tuple(f"large-{name}" for name in EXPERTS)


@pytest.fixture
def family(micro_family: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(micro_family, tmp_path / "zoo"))


def test_reads_the_tokens_of_the_recipe(micro_family: Path, stages_seen: dict[str, int]) -> None:
    practice = {"large practice", "base practice"}
    assert set(stages_seen) == {*MEMBERS, *ADAPTERS, *practice}
    for name in ("large", "base"):
        assert stages_seen[name] == pytest.approx(MICRO.base_schedule.tokens, rel=0.1)


@pytest.mark.parametrize("name", MEMBERS)
def test_members_are_ordinary_folders(micro_family: Path, name: str) -> None:
    folder = micro_family / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<s><|user|>Hi</s><|assistant|>"
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_members_share_one_tokenizer(micro_family: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert len({(micro_family / "models" / name / file).read_bytes() for name in MEMBERS}) == 1


def test_experts_differ_from_their_base(micro_family: Path) -> None:
    files = {(micro_family / "models" / name / "model.safetensors").read_bytes() for name in ("base", *EXPERTS)}
    assert len(files) == 1 + len(EXPERTS)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_peft_folders(micro_family: Path, name: str) -> None:
    folder = micro_family / "models" / name
    assert "/" not in (folder / "adapter_config.json").read_text()
    large = AutoModelForCausalLM.from_pretrained(micro_family / "models" / "large")
    ids = torch.arange(6, 30)[None]
    alone = large(ids).logits
    adapted = PeftModel.from_pretrained(large, folder)(ids).logits
    assert (adapted - alone).abs().max() > 0.01


def test_configuration_names_the_members(micro_family: Path) -> None:
    config = yaml.safe_load((micro_family / "zoo.yaml").read_text())
    paths = [config["large"]["model"], config["base"]["model"], *(e["model"] for e in config["experts"].values())]
    assert all((micro_family / path / "config.json").is_file() for path in paths)
    assert config["presets"]["giant-all"]["experts"] == list(EXPERTS)


def test_a_sound_family_has_no_faults(micro_family: Path) -> None:
    assert list(faults(micro_family)) == []
    result = CliRunner().invoke(app, ["verify", str(micro_family)])
    assert result.exit_code == 0, result.output


def test_verify_names_a_changed_file(family: Path) -> None:
    path = family / "models" / "math" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = CliRunner().invoke(app, ["verify", str(family)])
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1
    assert result.output.startswith("models/math/model.safetensors: its sha256 is not the one")


def test_verify_names_a_missing_and_a_foreign_file(family: Path) -> None:
    (family / "models" / "base" / "config.json").unlink()
    (family / "models" / "base" / "extra.txt").write_text("?")
    assert [line.split(":")[0] for line in faults(family)] == ["models/base/config.json", "models/base/extra.txt"]


def test_verify_names_a_changed_answer(family: Path) -> None:
    manifest = json.loads((family / "manifest.json").read_text())
    question = next(iter(manifest["answers"]["text"]))
    manifest["answers"]["text"][question] = "something else"
    (family / "manifest.json").write_text(json.dumps(manifest))
    (line,) = faults(family)
    assert line.startswith(f"text: asked {question!r}")
    assert "something else" in line


def test_verify_without_a_manifest(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert result.exit_code == 1
    assert "manifest.json: missing" in result.output


def test_train_without_data(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--quick", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "gsm8k_train.jsonl.gz is missing" in result.output


def test_the_embedded_family_is_sound_and_small() -> None:
    assert list(faults(FAMILY)) == []
    sizes = [path.stat().st_size for path in (FAMILY / "models").rglob("*") if path.is_file()]
    assert max(sizes) <= 16e6
    assert sum(sizes) <= 24e6
