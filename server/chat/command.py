"""`logit-fusion chat`: a conversation with a running server, tokens tinted by the expert that moved them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from fusion_kernels.weighting import NAMES
from server.errors import ServerError, nearest
from server.options import LOCAL, KeyOption, UrlOption

if TYPE_CHECKING:
    from server.chat.conversation import Chat


def chat(
    url: UrlOption = LOCAL,
    preset: Annotated[
        str | None, typer.Option(help="Preset to start with. Default: the first that has experts.")
    ] = None,
    weighting: Annotated[str | None, typer.Option(help=f"One of {', '.join(NAMES)}. Default: the preset's.")] = None,
    key: KeyOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, help="0 always takes the likeliest token (after penalties, if the server has any)."),
    ] = 0.0,
) -> None:
    """Talk to a running server; each token takes the colour of the expert that moved it most.

    Type /help for the commands. With a prompt on standard input, the answer is printed without colour and the
    command ends.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise typer.BadParameter(f"an address such as http://127.0.0.1:8000 is needed, not '{url}'", param_hint="--url")
    if weighting is not None and weighting not in NAMES:
        raise typer.BadParameter(
            f"there is no weighting '{weighting}'; {nearest(weighting, NAMES)}", param_hint="--weighting"
        )
    # OpenAI's SDK takes most of a second to import; `--help` should not.
    from rich.console import Console

    from server.chat.client import Settings
    from server.chat.conversation import Chat
    from server.client import Server

    server = Server(url, key)
    presets, members = server.presets(), server.members()
    if preset is not None and preset not in presets:
        raise typer.BadParameter(f"there is no preset '{preset}'; {nearest(preset, presets)}", param_hint="--preset")
    steered = [name for name in presets if members.get("presets", {}).get(name, {}).get("experts")]
    first = preset or (steered or presets)[0]
    settings = Settings(first, max_tokens=max_tokens, temperature=temperature)
    talk = Chat(server, settings, Console(highlight=False), presets, members)
    if not sys.stdin.isatty():
        if weighting is not None:
            talk.weigh(weighting)
        talk.ask(sys.stdin.read().strip())
        return
    _converse(talk, weighting)


def _converse(talk: Chat, weighting: str | None) -> None:
    """Read and answer lines until the reader leaves."""
    # Gives `input` its history and the arrow keys.
    if os.name == "posix":
        import readline  # noqa: F401

    talk.out.print(f"{talk.server.url} · presets: {', '.join(talk.presets)}", style="dim")
    if weighting is None:
        talk.show_settings()
    else:
        talk.set_weighting(weighting)
    talk.out.print("[dim]/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.[/]\n")
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            talk.out.print()
            continue
        except EOFError:
            talk.out.print()
            return
        if line.startswith("/"):
            if not talk.obey(line):
                return
        elif line:
            try:
                talk.ask(line)
            except ServerError as error:
                talk.complain(str(error))
