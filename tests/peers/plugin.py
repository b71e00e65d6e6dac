"""The pytest plugin under which vLLM's tests run: it starts the server that `PEER` names in place of `vllm serve`.

`PEER=plain` is vLLM's own server; `PEER=fusion` this one, with the test's model as the large one and its LoRA adapters
as experts of their own. Options of `vllm serve` that are engine arguments become keys of `engine`; the others have no
counterpart and are printed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

# vLLM's own: this plugin runs where its tests lie.
utils: Any = import_module("tests.utils")

# Members' own affair here, or of no consequence for what is answered.
LEFT_OUT = {"model", "served_model_name", "enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "seed"}
CACHE_BYTES = 1 << 30


class Peer(utils.RemoteOpenAIServer):  # type: ignore[misc]
    """Starts the server that is to be tested."""

    def _start_server(self, model: str, arguments: list[str], env_dict: dict[str, str] | None) -> None:
        if os.environ["PEER"] == "plain":
            command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *arguments]
            command += ["--kv-cache-memory-bytes", str(CACHE_BYTES)]
        else:
            command = _our_command(self._parsed(model, arguments), model, arguments)
        print("starting:", " ".join(command))
        environment = os.environ | (env_dict or {})
        if "VLLM_API_KEY" in environment:
            environment["LOGIT_FUSION_API_KEY"] = environment["VLLM_API_KEY"]
        self.proc = subprocess.Popen(command, env=environment, start_new_session=True)

    def _parsed(self, model: str, arguments: list[str]) -> Namespace:
        commands = FlexibleArgumentParser().add_subparsers(dest="subparser")  # type: ignore[no-untyped-call]
        parser = self._create_cli_subcommand().subparser_init(commands)
        parsed: Namespace = parser.parse_args(["--model", model, *arguments])
        return parsed


def _our_command(parsed: Namespace, model: str, arguments: list[str]) -> list[str]:
    given = {part.split("=")[0].lstrip("-").replace("-", "_") for part in arguments if part.startswith("--")}
    given = {name.removeprefix("no_") if not hasattr(parsed, name) else name for name in given}
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    engine: dict[str, Any] = {"kv_cache_memory_bytes": CACHE_BYTES}
    for name in sorted(given - LEFT_OUT):
        root = name.split(".")[0]
        if root in known:
            value = getattr(parsed, root)
            engine[root] = (
                value if isinstance(value, str | int | float | bool) else json.loads(json.dumps(value, default=vars))
            )
            if root == "structured_outputs_config":  # there is one backend here, and it is not to be chosen
                engine[root].pop("backend", None)
        elif root not in ("port", "host", "lora_modules", "root_path"):
            print("no counterpart here:", name)
    (name, *others) = parsed.served_model_name or [model]
    large = {"model": str(Path(model).resolve())}
    presets: dict[str, Any] = {other: {"weighting": "none"} for other in (name, *others)}
    config: dict[str, Any] = {"large": large, "presets": presets, "engine": engine}
    if parsed.root_path is not None:
        config["http"] = {"root_path": parsed.root_path}
    for module in parsed.lora_modules or ():
        config["base"] = large
        config.setdefault("experts", {})[module.name] = {"adapter": str(Path(module.path).resolve())}
        presets[module.name] = {"experts": [module.name], "weighting": "alone"}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=".", delete=False) as file:
        yaml.safe_dump(config, file, sort_keys=False)
    address = ["--host", str(parsed.host or "127.0.0.1"), "--port", str(parsed.port)]
    return [sys.executable, "-m", "server", "serve", "--config", str(Path(file.name).resolve()), *address]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note every test that is over, so that a run that is cut short has said something."""
    if report.when == "call" or not report.passed:
        outcome = "error" if report.failed and report.when != "call" else report.outcome
        why = "" if report.passed else str(report.longrepr).strip().split("\n")[-1][:300]
        name = report.nodeid.removeprefix("tests/entrypoints/")
        with Path(os.environ["PEER_OUTCOMES"]).open("a") as file:
            file.write(json.dumps({"test": name, "outcome": outcome, "why": why}) + "\n")


# Now, not in a hook: the first conftest files ask for it before any hook is called.
utils.RemoteOpenAIServer = Peer
