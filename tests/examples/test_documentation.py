"""What the documentation shows: its commands run, its configurations are valid, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config.schema import Config
from tests.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(None, tmp_path_factory.mktemp("documentation") / "server.log") as process:
        yield process


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(command: list[str]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readmes_curl(server: ServerProcess) -> None:
    (command,) = [block for block in blocks(README, "bash") if block.startswith("curl")]
    answer = run(["bash", "-c", command.replace("http://127.0.0.1:8000", server.url)])
    assert '"model":"giant-facts"' in answer


def test_the_readmes_python(server: ServerProcess) -> None:
    (program,) = blocks(README, "python")
    lines = run([sys.executable, "-c", program.replace("http://127.0.0.1:8000", server.url)]).splitlines()
    assert lines[-1].startswith("{'math': [")


def test_the_readmes_chat_and_bench(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "server"]
    done = subprocess.run(
        [*command, "chat", "--url", server.url],
        input="Hello\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    table = run([*command, "bench", "--url", server.url, "--clients", "2", "--seconds", "1", "--tokens", "8"])
    assert table.count("giant ") == 2
    assert "giant-all" in table


def test_the_help_of_every_command() -> None:
    for name in ("serve", "check", "chat", "eval", "bench", "zoo"):
        assert "Usage: logit-fusion" in run([sys.executable, "-m", "server", name, "--help"]), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_are_valid(page: Path) -> None:
    for block in blocks(page.read_text(), "yaml"):
        shown = yaml.safe_load(block)
        if isinstance(shown, dict) and {"large", "presets"} <= shown.keys():
            shown.pop("auth", None)  # names a file of the reader's own
            Config.model_validate(hub_ids(shown))


def hub_ids(shown: Any) -> Any:
    """Folders of the reader's own as ids of a hub, which nothing looks up here."""
    if isinstance(shown, dict):
        return {key: hub_ids(value) for key, value in shown.items()}
    return "reader/own" if isinstance(shown, str) and shown.startswith((".", "/")) else shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {link}"
