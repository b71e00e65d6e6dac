"""The wheel, in an environment without the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest
from openai import OpenAI

from server.launcher import Launched

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_the_wheel_serves_the_demo_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # or the checkout is found after all
    run("make", "dist", f"VENV={sys.prefix}", cwd=ROOT)
    (wheel,) = (ROOT / "build" / "dist").glob("*.whl")
    assert wheel.stat().st_size < 20 << 20
    assert {path.name for path in wheel.parent.glob("*.lock")} == {"cpu.lock", "cuda.lock"}
    names = ZipFile(wheel).namelist()
    assert {"zoo/models/large/model.safetensors", "server/playground/static/index.html"} <= set(names)
    assert not [name for name in names if name.startswith("tests/")]
    run(sys.executable, "-m", "venv", "own", cwd=tmp_path)
    python = tmp_path / "own" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # What it depends on, which is gigabytes, is this environment's; the checkout is no part of that.
    (home,) = (tmp_path / "own" / "lib").glob("python*/site-packages")
    (home / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    said = run(python, "-c", "import server, zoo; print(server.__file__, zoo.__file__)", cwd=tmp_path)
    assert all(Path(file).is_relative_to(tmp_path) for file in said.split())
    monkeypatch.chdir(tmp_path)
    with Launched([str(python.with_name("logit-fusion")), "serve"], tmp_path / "log") as server:
        client = OpenAI(base_url=server.url + "/v1", api_key="none")
        question = {"role": "user", "content": "What is the three-letter code of Canada?"}
        answer = client.chat.completions.create(
            model="giant-facts",
            messages=[question],  # type: ignore[list-item]
            temperature=0,
            max_tokens=16,
        )
        assert "CAN" in (answer.choices[0].message.content or "")
