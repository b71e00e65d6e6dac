"""Every command that the documentation shows runs: as it stands, or shortened as the tables here say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lm_eval._cli.harness import HarnessCLI  # type: ignore[import-untyped]
from lm_eval.config.evaluate_config import EvaluatorConfig  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

from tests.examples.pages import FENCE, PAGES, ROOT, Command, blocks, commands
from tests.server_process import ServerProcess

# Deployment has tests of its own (tests/deploy).
SHOWN = {page: tuple(commands(page.read_text())) for page in PAGES if page.name != "deploy.md"}

# In place of the addresses that the pages show.
ADDRESSES = ("http://127.0.0.1:8000", "http://gpu-box:8000")

QUESTION = "What is the three-letter code of Canada?"
BODY = {"model": "giant-facts", "messages": [{"role": "user", "content": QUESTION}]}
CURL = f"curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(BODY)}'"
EVAL = 'logit-fusion eval --suite my/suite.yaml --url http://gpu-box:8000 --key "$KEY"'
AS_SHOWN = {
    CURL,
    EVAL,
    ".venv/bin/logit-fusion check --config fusion.yaml",
    "python -m server.config.reference",
}

# A new engine for one command takes too long: `check` reads and checks the same, the server that runs is asked.
CHECK = ".venv/bin/logit-fusion check --config fusion.yaml"
CHAT = "logit-fusion chat --url {url}"
BENCH = "logit-fusion bench --clients 16 --clients 32 --clients 64"
# Two lines typed in a terminal.
TYPED = r"printf 'Hello\n/quit\n' | script --quiet --return --command '%s' /dev/null"
TRAIN = "expert train examples/first_expert"
PARCEL = "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '%s'"
PARCEL %= json.dumps(
    {"model": "shipping", "temperature": 0, "messages": [{"role": "user", "content": "Parcel for Belluno"}]}
)
INSTEAD = {
    PARCEL: PARCEL.replace('"shipping"', '"giant-facts"'),
    "make setup-train": "make --dry-run --directory {root} setup-train",
    f".venv/bin/logit-fusion {TRAIN}/shipping.jsonl --name shipping --write my/fusion.yaml": "cd {root} && "
    f"logit-fusion {TRAIN}/shipping.jsonl --name shipping --epochs 1 --write $OLDPWD/my/mine.yaml",
    # The whole story, with its answers, is run by tests/training/test_train.py.
    f".venv/bin/logit-fusion {TRAIN}/orders.jsonl --name orders --config my/fusion.yaml --write my/fusion.yaml": (
        "logit-fusion check --config my/mine.yaml"
    ),
    ".venv/bin/logit-fusion eval --config my/fusion.yaml --expert shipping": "logit-fusion check --config my/mine.yaml",
    ".venv/bin/logit-fusion serve --config my/fusion.yaml": "logit-fusion check --config my/mine.yaml",
    **{
        line: line.replace("zoo/models/", "{root}/zoo/models/")
        for line in (
            "logit-fusion compress zoo/models/text experts/text --base zoo/models/base --rank 32 --on texts.txt",
            "logit-fusion merge experts/all zoo/models/math=0.5 zoo/models/text=0.5 --base zoo/models/base",
            "logit-fusion merge experts/ties zoo/models/math=1.0 zoo/models/text=1.0 --base zoo/models/base "
            "--method ties --density 0.3",
            "logit-fusion merge build/twin-48 zoo/models/math=0.333 zoo/models/facts=0.333 zoo/models/text=0.333 "
            "--base zoo/models/base --parts 48",
        )
    },
    # The router that comes with the demo family is judged, and made again.
    "logit-fusion zoo prompts prompts": "logit-fusion zoo prompts prompts",
    "logit-fusion route fit": "logit-fusion route fit --help",
    "logit-fusion route show zoo/models/router.safetensors --examples prompts/new-wordings.jsonl": (
        "logit-fusion route show {root}/zoo/models/router.safetensors --examples prompts/new-wordings.jsonl"
    ),
    # Half an hour on two cores; tests/e2e/test_routing.py evaluates a routed preset.
    "logit-fusion eval --suite zoo/evaluation/routing.yaml": "logit-fusion eval --help",
    "logit-fusion eval --suite zoo/evaluation/mixtures.yaml": "logit-fusion eval --help",
    "logit-fusion route fit --config fusion.yaml --examples examples.jsonl --out router.safetensors": (
        "logit-fusion zoo prompts prompts && head -n 40 prompts/gsm8k.jsonl >> prompts/everyday.jsonl && "
        "logit-fusion route fit --config fusion.yaml --examples prompts/everyday.jsonl --out router.safetensors"
    ),
    "logit-fusion route show router.safetensors --config fusion.yaml --examples others.jsonl": (
        "logit-fusion route show {root}/zoo/models/router.safetensors --examples prompts/everyday.jsonl"
    ),
    "make serve": "make --dry-run --directory {root} serve",
    "make serve-real": "make --dry-run --directory {root} serve-real",
    "make test": "make --dry-run --directory {root} test",
    "make test-long": "make --dry-run --directory {root} test-long",
    "make setup-dev": "make --dry-run --directory {root} setup-dev",
    "make help": "make --directory {root} help",
    "make lint": "make --dry-run --directory {root} lint",
    "make docs": "make --dry-run --directory {root} docs",
    "make lock": "make --dry-run --directory {root} lock",
    "make audit": "make --dry-run --directory {root} audit",
    ".venv/bin/pre-commit install": ".venv/bin/pre-commit validate-config {root}/.pre-commit-config.yaml",
    ".venv/bin/pytest tests/server/test_config.py": ".venv/bin/pytest {root}/tests/server/test_config.py -k reference",
    "make test-peers": "make --dry-run --directory {root} test-peers",
    "make gpu-check": "make --dry-run --directory {root} gpu-check",
    ".venv/bin/logit-fusion serve --config fusion.yaml": CHECK,
    "logit-fusion serve --config FILE": CHECK,
    "logit-fusion serve --config zoo/recipes.yaml": "logit-fusion check --config {root}/zoo/recipes.yaml",
    "logit-fusion serve --config my-zoo/zoo.yaml": "logit-fusion check --config my-zoo/zoo.yaml",
    "logit-fusion check": CHECK,
    "logit-fusion check --config fusion.yaml": CHECK,
    "logit-fusion check --config FILE": CHECK,
    "logit-fusion check --device 8xH100-80GB": "logit-fusion check --device 1xH100-80GB",  # the demo has few heads
    "logit-fusion chat": TYPED % CHAT,
    ".venv/bin/logit-fusion chat": TYPED % CHAT,
    "logit-fusion chat --url http://gpu-box:8000 --preset giant-math --weighting static": TYPED
    % f"{CHAT} --preset giant-math --weighting static",
    f'echo "{QUESTION}" | logit-fusion chat --preset giant-facts': f'echo "{QUESTION}" | {CHAT} --preset giant-facts',
    # The embedded suite asks experts that the demo server lacks.
    "logit-fusion eval": EVAL,
    "logit-fusion eval --suite my/suite.yaml --config my/fusion.yaml --out my/results": f"{EVAL} --out my/results",
    BENCH: "logit-fusion bench --url {url} --clients 2 --seconds 1 --tokens 8",
    "logit-fusion zoo train --out my-zoo --seed 0": "logit-fusion zoo train --quick --out my-zoo --seed 0",
    "logit-fusion zoo verify [FOLDER]": "logit-fusion zoo verify my-zoo",
    "python -m zoo.held_out": "mkdir held-out && python -m zoo.held_out held-out",
}

# Minutes of work: their options are read, all in one process that loads the libraries once.
HELP_ONLY = {
    "python -m bench.adapters --rounds 2 --compile": "bench.adapters",
    "python -m bench.fairness": "bench.fairness",
    "python -m bench.gpu.check --without-card": "bench.gpu.check",
    "python -m bench.guidance": "bench.guidance",
    "python -m bench.load": "bench.load",
    "python -m bench.members_in_use": "bench.members_in_use",
    "python -m bench.overhead": "bench.overhead",
    "python -m bench.prefixes": "bench.prefixes",
    "python -m bench.routing --rounds 3": "bench.routing",
    "python -m bench.runner": "bench.runner",
    "python -m bench.recipes": "bench.recipes",
    "python -m bench.recipes --only real": "bench.recipes",
    "python -m bench.steering --only guidance --kinds capital,symbol,author,landmark,language": "bench.steering",
    "python -m bench.steering --only context --kinds capital,symbol,author,landmark,language": "bench.steering",
    "python -m bench.speculation --acceptance": "bench.speculation",
    "python -m bench.speculation --rounds 1 --requests 1,4 --plain-draft --name speculation_plain_draft": (
        "bench.speculation"
    ),
    "python -m bench.speculation --rounds 1 --requests 64 --name speculation_64": "bench.speculation",
    "python -m bench.speculation --rounds 2 --requests 4 --name speculation_4": "bench.speculation",
    "python -m bench.speculation --rounds 2 --requests 1,4,16": "bench.speculation",
    "python -m bench.start": "bench.start",
    "python -m bench.throughput": "bench.throughput",
    "python -m tests.families.run": "tests.families.run",
    "python -m tests.families.run --quantised": "tests.families.run",
    "python -m zoo.compression": "zoo.compression",
    "python -m zoo.lengths facts 30000 60000 120000": "zoo.lengths",
    "python -m zoo.lengths text 600000 1500000 2500000": "zoo.lengths",
    "python -m zoo.weightings --examples 200": "zoo.weightings",
}
# The same, but these take no options: they are loaded.
LOAD_ONLY = {"python -m bench.kernels": "bench.kernels", "python -m bench.soak": "bench.soak"}
HELP = """\
import importlib, runpy, sys
helped, loaded = (names.split(",") for names in sys.argv[1:])
for name in helped:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(name, run_name="__main__")
    except SystemExit as end:
        assert not end.code, name
for name in loaded:
    importlib.import_module(name)
"""

# The first is the server of these tests; the second is run by test_examples.py.
ELSEWHERE = {
    "logit-fusion serve",
    ".venv/bin/python examples/sdk.py",
    "git clone REPOSITORY logit-fusion && cd logit-fusion",  # the reader's own address
    "VLLM_USE_V2_MODEL_RUNNER=1 vllm serve MODEL",  # by tests/engine/cpu_runner/test_serve.py
    # by tests/e2e/test_tracing.py
    "OTEL_RESOURCE_ATTRIBUTES=service.name=logit-fusion,openinference.project.name=logit-fusion logit-fusion serve "
    "--set engine.otlp_traces_endpoint=http://127.0.0.1:4317",
    *(  # by tests/e2e/test_adapters.py
        f"curl $URL/v1/{route} -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' -d '{body}'"
        for route, body in (
            ("load_lora_adapter", '{"lora_name": "law", "lora_path": "law-lora"}'),
            ("unload_lora_adapter", '{"lora_name": "law"}'),
        )
    ),
}
HARNESS = "lm_eval run "
# Of clients that are too large for the development's lock; docs/integrations.md says when each was tried.
BY_HAND = (
    "pip install ",
    "open-webui serve ",
    "vllm bench serve ",
    '.venv/bin/python -c "import vllm.benchmarks',
    "guidellm run ",
    "phoenix serve",
)

Run = Callable[[str], str]


def shell(line: str, folder: Path, **environment: str) -> str:
    """What a command says on standard output; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "NO_COLOR": "1"} | environment
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=500, cwd=folder, env=variables
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def run(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command in a folder that has what the pages speak of; what several pages show is run once."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "examples" / "evaluation", folder / "my")
    models = f"{ROOT}/zoo/models/"
    (folder / "texts.txt").write_text("Give the last of these words: cup nose nail dress\n")
    (folder / "fusion.yaml").write_text((ROOT / "zoo" / "zoo.yaml").read_text().replace("models/", models))
    outputs: dict[str, str] = {}

    def run(line: str) -> str:
        line = INSTEAD.get(line, line).replace("{url}", server.url).replace("{root}", str(ROOT))
        for address in ADDRESSES:
            line = line.replace(address, server.url)
        if line not in outputs:
            outputs[line] = shell(line, folder, KEY="none")
        return outputs[line]

    return run


def is_known(command: Command) -> bool:
    line = command.line
    tables = (AS_SHOWN, INSTEAD, HELP_ONLY, LOAD_ONLY, ELSEWHERE)
    return line.startswith((HARNESS, *BY_HAND)) or any(line in table for table in tables)


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_every_command_is_known(page: Path) -> None:
    """A new command needs a line in one of the tables."""
    assert [command.line for command in SHOWN[page] if not is_known(command)] == []
    assert {name for name, _ in FENCE.findall(page.read_text())} <= {
        "bash",
        "python",
        "yaml",
        "json",
        "jsonl",
        "mermaid",
        "text",  # what a command says
    }


def test_every_line_of_the_tables_is_shown() -> None:
    lines = {command.line for shown in SHOWN.values() for command in shown}
    assert (AS_SHOWN | INSTEAD.keys() | HELP_ONLY.keys() | LOAD_ONLY.keys() | ELSEWHERE) - lines == set()


# That of the demo models trains some: a minute.
RUN = [pytest.param(page, marks=pytest.mark.long) if page.name == "zoo.md" else page for page in SHOWN]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_commands_of_a_page(page: Path, run: Run) -> None:
    for command in SHOWN[page]:
        if command.line in AS_SHOWN or command.line in INSTEAD:
            run(command.line)


def test_long_commands_take_their_options() -> None:
    names = [",".join(table.values()) for table in (HELP_ONLY, LOAD_ONLY)]
    done = subprocess.run([sys.executable, "-c", HELP, *names], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("usage: ") == len(HELP_ONLY)


def harness_commands() -> Iterator[list[str]]:
    """The arguments of every call of lm-evaluation-harness, as the shell makes them."""
    for command in (command for shown in SHOWN.values() for command in shown if command.line.startswith(HARNESS)):
        script = "\n".join([*command.settings, f"printf '%s\\n' {command.line}"])
        yield shell(script, ROOT).splitlines()


def test_the_harness_takes_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their data sets come from a hub. tests/e2e/test_harness.py runs the harness on others."""
    tasks = TaskManager()
    for arguments in harness_commands():
        monkeypatch.setattr(sys, "argv", arguments)
        config = EvaluatorConfig.from_cli(HarnessCLI().parse_args())
        names = [name for entry in config.tasks for name in entry.split(",")]
        assert sorted(tasks.match_tasks(names)) == sorted(names)
        assert {"model", "base_url", "tokenizer", "num_concurrent", "max_retries", "max_length"} == {*config.model_args}


def test_the_readmes_curl(run: Run) -> None:
    assert '"model":"giant-facts"' in run(CURL)


def test_the_readmes_chat(run: Run) -> None:
    assert "giant-math" in run(".venv/bin/logit-fusion chat")


def test_bench_asks_every_preset(run: Run) -> None:
    table = run(BENCH)
    assert table.count("giant ") == 2
    assert "giant-all" in table


def test_the_reference_is_the_page(run: Run) -> None:
    assert run("python -m server.config.reference") == (ROOT / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize("page", [page for page in SHOWN if blocks(page.read_text(), "python")], ids=lambda p: p.name)
def test_programs_run(page: Path, server: ServerProcess, tmp_path: Path) -> None:
    for program in blocks(page.read_text(), "python"):
        if "llama_index" in program:  # too large a package for the development's lock
            pytest.importorskip("llama_index.llms.openai_like")
        (tmp_path / "program.py").write_text(program.replace(ADDRESSES[0], server.url))
        lines = shell("python program.py", tmp_path).splitlines()
        assert lines[-1].startswith("{'math': [")


def test_the_help_of_every_command() -> None:
    for name in ("serve", "check", "chat", "eval", "bench", "zoo"):
        assert "Usage: logit-fusion" in shell(f"logit-fusion {name} --help", ROOT), name
