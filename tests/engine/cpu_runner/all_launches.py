"""The launches of every kernel, by its name: those that the modules named here draw."""

import importlib

from tests.engine.cpu_runner.draw import LAUNCHES

for part in ("inputs", "sampling"):
    importlib.import_module(f"tests.engine.cpu_runner.launches_of_{part}")

__all__ = ["LAUNCHES"]
