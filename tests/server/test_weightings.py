"""The table of weightings: a new one is a row, its equation in the reference and its case in each kernel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_kernels.weighting import Weighting, markdown_table

ROOT = Path(__file__).parents[2]
# In each file, the line before which the weighting `half` is added.
HALF = {
    "fusion_kernels/weighting.py": (
        "    def __str__(self)",
        '    HALF = "any", "alpha_max", "half as much", "half of what `kl` finds"\n\n',
    ),
    "fusion_kernels/reference/rows.py": (
        "        raise ValueError(f",
        "        if weighting == Weighting.HALF:\n"
        "            return [alpha / 2 for alpha in self.solve(Weighting.KL, alpha_max)]\n",
    ),
    "fusion_kernels/torch/fusion.py": (
        "    Weighting.KL: _search,",
        "    Weighting.HALF: lambda problem, use, alpha_max: _search(problem, use, alpha_max) / 2,\n",
    ),
}
KERNEL = """
import torch
from fusion_kernels import Weighting
from bench.cases import make

case = make(0, rows=3, number=2, kinds=(Weighting.HALF,))
torch.testing.assert_close(case.fuse("torch").alpha, case.fuse("reference").alpha, rtol=1e-3, atol=1e-4)
"""
API = """
import json
from fusion_kernels import Weighting
from server.api.allowed import Allowed
from server.api.field import FusionField
from server.api.fusion import resolve
from server.auth import ANYBODY
from server.config import Config
from server.config.reference import markdown
from server.metrics import FusionMetrics

members = {"large": {"model": "a/b"}, "base": {"model": "a/c"}, "experts": {"red": {"model": "a/d"}}}
config = Config.model_validate({**members, "presets": {"p": {"experts": ["red"], "weighting": "half"}}})
kl, allowed = FusionField(weighting="kl"), Allowed.to(ANYBODY, config)
assert resolve(None, config.presets["p"], config, allowed).weighting is Weighting.HALF
assert resolve(kl, config.presets["p"], config, allowed).weighting is Weighting.KL
assert "half" in json.dumps(FusionField.model_json_schema()["properties"]["weighting"])
rows = allowed.members({"members": [], "presets": {}})["weightings"]
assert [row["summary"] for row in rows if row["name"] == "half"] == ["half as much"], rows
assert "| `half` | half of what `kl` finds |" in markdown()
(tokens,) = [family for family in FusionMetrics(config).collect() if family.name == "fusion_tokens"]
assert [sample.labels["weighting"] for sample in tokens.samples] == ["half"]
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with one weighting more."""
    folder = tmp_path_factory.mktemp("half")
    for package in ("logit_fusion", "server", "fusion_kernels", "evaluation", "training", "bench", "zoo"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "models", "*.csv")
        )
    for name, (before, text) in HALF.items():
        source = (folder / name).read_text()
        assert source.count(before) == 1
        (folder / name).write_text(source.replace(before, text + before))
    return folder


def run(tree: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_new_weighting_has_an_oracle(tree: Path) -> None:
    run(tree, "-c", KERNEL)


def test_a_new_weighting_is_offered(tree: Path) -> None:
    run(tree, "-c", API)


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_a_new_weighting_is_in_the_help(tree: Path, command: str) -> None:
    assert "half" in run(tree, "-m", "logit_fusion", command, "--help")


def test_the_readme_has_the_table() -> None:
    assert markdown_table() in (ROOT / "README.md").read_text(), "put fusion_kernels.weighting.markdown_table() there"


def test_names() -> None:
    assert [str(weighting) for weighting in Weighting] == ["none", "static", "kl", "kl-grid", "kl-safe", "alone"]
    assert all(Weighting.named(str(weighting)) is weighting for weighting in Weighting)
    assert list(map(int, Weighting)) == list(range(len(Weighting)))


def test_what_each_takes() -> None:
    assert {str(weighting): (weighting.experts, weighting.parameter) for weighting in Weighting} == {
        "none": ("none", None),
        "static": ("any", "alpha"),
        "kl": ("any", "alpha_max"),
        "kl-grid": ("any", "alpha_max"),
        "kl-safe": ("any", "alpha_max"),
        "alone": ("one", None),
    }
