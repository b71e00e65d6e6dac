"""Serves one family quantised in one format, and compares every role's answers with plain vLLM's.

    python -m tests.families.try_quantised FOLDER KIND FORMAT

prints `works`, or why not, in one line of its own that starts with `quantised: `.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from server.errors import ConfigError
from tests.engine.plain import ROLES, alone, by_role
from tests.families.build import make_kind
from tests.families.quantise import FORMATS
from tests.models import make_expert

SAID = "quantised: "


def main() -> None:
    """Try it."""
    folder, kind, name = sys.argv[1:]
    print(f"{SAID}{asyncio.run(_try(Path(folder), kind, name))}", flush=True)
    os._exit(0)  # vLLM's threads of engines that did not start keep the process


async def _try(folder: Path, kind: str, name: str) -> str:
    make_kind(folder / "large", kind, layers=3, seed=0)
    make_kind(folder / "base", kind, layers=2, seed=1)
    make_expert(folder / "red", folder / "base", seed=2)
    for role in ROLES:
        FORMATS[name](folder / role)
    try:
        ours = await by_role(folder)
    except ConfigError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"fails: {' '.join(str(error).split())[:200]}"
    for role in ROLES:
        if ours[role] != await alone(folder / role):
            return f"differs as {role}"
    return "works" if ours["steered"] == ours["large"] else "differs when it steers"


if __name__ == "__main__":
    main()
