"""Starts real engines for tests, each in the event loop of its test, and reads vLLM's own counters of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import REGISTRY

from server.config import load_config
from server.engine.checks import check_members
from server.engine.client import FusionEngine
from server.engine.launch import start_engine


@asynccontextmanager
async def running(config_file: Path, *overrides: str) -> AsyncIterator[FusionEngine]:
    """The engine of a configuration file, with `overrides` written as on the command line."""
    report = check_members(load_config(config_file, overrides))
    engine = start_engine(report.config, report.members)
    try:
        yield engine
    finally:
        engine.shutdown()


def counter(name: str) -> float:
    """The sum of one of vLLM's counters in this process, over its labels; engines of a process share them."""
    return sum(
        sample.value for metric in REGISTRY.collect() for sample in metric.samples if sample.name == f"{name}_total"
    )
