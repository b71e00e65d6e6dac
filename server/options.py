"""Options that commands share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

KEY_VARIABLE = "LOGIT_FUSION_API_KEY"
OLD_KEY_VARIABLE = "OPENAI_API_KEY"

UrlOption = Annotated[str, typer.Option(help="Address of the running server.")]
KeyOption = Annotated[str | None, typer.Option(envvar=KEY_VARIABLE, help="API key, where the server asks for one.")]

LOCAL = "http://127.0.0.1:8000"


def key_or_old(key: str | None) -> str | None:
    """The key that was given, or the one of the variable that was read for it once, with a warning."""
    if key is None and (old := os.environ.get(OLD_KEY_VARIABLE)):
        typer.echo(f"warning: the key comes from {OLD_KEY_VARIABLE}; call it {KEY_VARIABLE}", err=True)
        return old
    return key
