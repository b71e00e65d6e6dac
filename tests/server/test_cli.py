"""The command line as a user meets it: through a real process, with its exit codes and its one-line faults."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import make_tokenizer


@pytest.fixture(scope="module")
def foreign(built_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert with another tokenizer."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copytree(built_family / "red", folder, dirs_exist_ok=True)
    make_tokenizer(folder, variant=1)
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "logit_fusion", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def assert_one_line_fault(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_missing_file(command: str) -> None:
    assert_one_line_fault(run(command, "--config", "nope.yaml"), "nope.yaml: there is no such configuration file")


def test_a_misspelt_key(family: Path) -> None:
    text = (family / "fusion.yaml").read_text().replace("experts: [red], weighting: kl", "expertz: [red]")
    path = family / "misspelt.yaml"
    path.write_text(text)
    message = f"{path}: unknown key 'expertz' in presets.giant-red; did you mean 'experts'?"
    assert_one_line_fault(run("serve", "--config", path), message)


def test_a_misspelt_override(built_family: Path) -> None:
    done = run("check", "--config", built_family / "fusion.yaml", "--set", "presets.giant-rad.alpha_max=1")
    assert_one_line_fault(done, "there is no 'giant-rad' in presets; did you mean 'giant-red'?")


def test_a_card_that_is_not_known() -> None:
    assert_one_line_fault(run("check", "--device", "H1000"), "there is no card 'H1000' here; did you mean 'H100-80GB'?")


def test_an_expert_whose_path_does_not_exist(built_family: Path) -> None:
    done = run("serve", "--config", built_family / "fusion.yaml", "--set", "experts.red.model=./nowhere")
    assert_one_line_fault(done, f"experts.red.model: './nowhere' does not exist (looked for {built_family}/nowhere)")


def test_members_with_different_tokenizers(built_family: Path, foreign: Path) -> None:
    done = run("serve", "--config", built_family / "fusion.yaml", "--set", f"experts.red.model={foreign}")
    assert_one_line_fault(
        done, "experts.red.model: its tokenizer differs from the large model's: id 259 is 'ee' in large"
    )


def test_check_prints_what_members_cost_and_what_fits(built_family: Path) -> None:
    done = run(
        "check",
        "--config",
        built_family / "fusion.yaml",
        "--set",
        "experts.lora={adapter: ./lora}",
        "--set",
        "engine.kv_cache_memory_bytes=10000000",
    )
    assert done.returncode == 0
    assert re.fullmatch(r"checking the models: \d+\.\d s\n", done.stderr)
    lines = (line.split("│")[1:-1] for line in done.stdout.splitlines())
    cells = {name.strip(): [cell.strip() for cell in rest] for name, *rest in filter(None, lines)}
    assert cells["large"] == ["model", "LlamaForCausalLM", "574,336", "2.2 MiB", "3", "1.5 KiB", "4,096", "512"]
    assert cells["lora"][0] == "adapter"
    assert cells["KV cache tokens"] == ["2,688"]
    assert cells["structured outputs"] == ["guidance"]
    assert "speculation" not in cells
    assert cells["requests of 256 tokens at once"] == ["10"]


def test_help_lists_the_configuration() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("serve", "check", "zoo", "Exit codes"):
        assert word in done.stdout
    text = run("serve", "--help").stdout
    for word in ("--config", "--set", "--port", "presets.NAME.weighting", "engine.max_num_seqs=64", "Exit codes"):
        assert word in text


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys, logit_fusion.cli; sys.exit(bool({'torch', 'vllm', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_usage_errors_have_exit_code_2() -> None:
    done = run("serve", "--nonsense")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "No such option: --nonsense" in done.stderr


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().replace(".", "").isalnum()


def test_zoo_passes_arguments_on() -> None:
    done = run("zoo", "verify", "--help")
    assert done.returncode == 0
    assert "logit-fusion zoo verify" in done.stdout


def test_a_fault_of_vllms_configuration_is_its_sentence() -> None:
    from vllm.config import CacheConfig

    from server.process import _last_line

    with pytest.raises(ValueError, match="block_size") as caught:
        CacheConfig(block_size="many")  # type: ignore[arg-type]
    assert _last_line(caught.value) == "Input should be a valid integer, unable to parse string as an integer"
