"""The commands `serve`, `check` and `chat`; `logit_fusion/` adds those that stand above the server."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from server.chat.command import chat
from server.errors import ConfigError, ServerError
from server.logs import quiet_libraries
from server.progress import Phases, Say, say

# Nothing slow is imported up here: `--help` should answer at once, and vLLM alone takes seconds.
if TYPE_CHECKING:
    from rich.console import Console

    from server.engine.checks import Report
    from server.engine.checks.capacity import Capacity

EXIT_CODES = "Exit codes: 0 success, 1 the server failed, 2 the configuration or the command line is at fault."

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve a large language model that small expert models steer at every token, over an OpenAI-compatible API.",
    epilog=EXIT_CODES,
)


class LogFormat(StrEnum):
    """How log lines look."""

    text = "text"
    json = "json"


class LogLevel(StrEnum):
    """How much of what goes on is written to standard error."""

    critical = "critical"
    error = "error"
    warning = "warning"
    info = "info"
    debug = "debug"


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Configuration file (YAML). Without it: the embedded models."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Cards to reckon for instead of this machine, such as 8xH100-80GB.", metavar="[COUNTx]CARD"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the configuration for this run, such as engine.max_num_seqs=64. Repeatable.",
    ),
]


class _WithReference(TyperCommand):
    """A command whose help ends with the keys of the configuration file."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from server.config.reference import rich_table

        _console().print(rich_table())


@app.command(cls=_WithReference, epilog=EXIT_CODES)
def serve(
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    overrides: SetOption = None,
    drain_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds that running requests may take after Ctrl-C or SIGTERM.")
    ] = 30.0,
    log_level: Annotated[LogLevel, typer.Option(help="How much to log to standard error.")] = LogLevel.error,
    log_format: Annotated[LogFormat, typer.Option(help="How to log: lines for people, or one JSON object each.")] = (
        LogFormat.text
    ),
) -> None:
    """Serve the configured models until Ctrl-C or SIGTERM.

    The members are checked before their weights load. Once the engine is up, the address is printed with a curl line
    and a Python example.
    """
    lines: list[str] = []
    # Kept until it is sure that the start will not end in a fault, which is one plain line.
    report = _checked(config, overrides, log_level, lines.append)
    from server.engine.members import fetch_weights
    from server.logs import configure_logs, notice
    from server.process import Listen, leave
    from server.process import serve as serve_members

    configure_logs(log_level.value, log_format.value)
    if any(member.hub_id for member in report.members.all):
        with Phases(notice) as phases:
            phases.begin("fetching weights")
            fetch_weights(report.members)
    listen = Listen(host, port, drain_timeout)
    leave(serve_members(report, listen, [*lines, *report.remarks]))


@app.command(epilog=EXIT_CODES)
def check(config: ConfigOption = None, overrides: SetOption = None, device: DeviceOption = None) -> None:
    """Check a configuration and its models without starting the engine.

    Reads settings, tokenizers and weight headers, and prints what each member costs and what fits into this
    machine's memory, or into that of the cards that --device names.
    """
    from server.devices import devices

    cards = None if device is None else devices(device)
    split = [] if cards is None else [f"engine.tensor_parallel_size={cards.number}"]
    report = _checked(config, [*(overrides or ()), *split], LogLevel.error)
    from server.chat_template import template_remarks
    from server.engine.checks.capacity import measure_capacity

    console = _console()
    _print_members(console, report)
    for remark in template_remarks(report.members.large.folder):
        console.print(remark, markup=False, highlight=False)
    _print_capacity(console, report, measure_capacity(report, cards))


app.command(epilog=EXIT_CODES)(chat)


@app.callback(invoke_without_command=True)
def _main(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        typer.echo(version("logit-fusion"))
        raise typer.Exit


def run() -> None:
    """Run the command line. Faults become one line on standard error and an exit code, never a traceback."""
    try:
        app(prog_name="logit-fusion")
    except ConfigError as error:
        _fail(error, 2)
    except ServerError as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    sys.exit(code)


def _checked(config: Path | None, overrides: list[str] | None, log_level: LogLevel, say: Say = say) -> Report:
    """Load and check a configuration, with the libraries on the way saying nothing of their own."""
    quiet_libraries(log_level.value)
    from server.config import load_config

    # A warning about this machine, such as that Triton is missing, would stand before the one line of a fault.
    logging.disable(logging.WARNING)
    try:
        with Phases(say) as phases:
            phases.begin("checking the models")
            loaded = load_config(config, overrides or ())
            # Imports vLLM, which takes seconds.
            from server.engine.checks import check_members

            return check_members(loaded)
    finally:
        logging.disable(logging.NOTSET)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # In a pipe nothing says how wide a line may be; 80 columns would cut the tables.
    return console if console.is_terminal else Console(width=140)


def _print_members(console: Console, report: Report) -> None:
    from rich.table import Table

    from server.engine.checks.capacity import format_bytes

    table = Table(title="Members", title_justify="left", title_style="bold", show_footer=True)
    table.add_column("member", "all")
    table.add_column("kind")
    table.add_column("architecture")
    table.add_column(
        "parameters", f"{sum(r.parameters for r in report.reports if r.member.of is None):,}", justify="right"
    )
    table.add_column("weights", format_bytes(report.weight_bytes), justify="right")
    table.add_column("layers", justify="right")
    table.add_column("KV per token", format_bytes(report.kv_bytes_per_token), justify="right")
    table.add_column("context", f"{report.max_model_len:,}", justify="right")
    table.add_column("ids", f"{report.vocabulary:,}", justify="right")
    for row in report.reports:
        architecture = row.architecture
        kind = row.member.kind if row.member.of is None else f"{row.member.kind} {row.member.of.name}"
        table.add_row(
            row.member.name,
            kind if row.member.quantisation is None else f"{kind}, {row.member.quantisation}",
            architecture.name,
            f"{row.parameters:,}",
            format_bytes(row.weight_bytes),
            str(architecture.layers),
            format_bytes(row.kv_bytes_per_token),
            f"{architecture.max_length:,}" if architecture.max_length else "unbounded",
            f"{row.member.vocabulary_rows:,}",
        )
    console.print(table)
    for row in report.reports:
        if row.architecture.window:
            console.print(f"{row.member.name}: {row.architecture.window}; counted as if they saw all", highlight=False)
    for remark in report.remarks:
        console.print(remark, markup=False, highlight=False)


def _print_capacity(console: Console, report: Report, capacity: Capacity) -> None:
    from rich.table import Table

    from server.config.structures import STRUCTURES_BACKEND
    from server.engine.checks.capacity import format_bytes

    table = Table(title="What fits", title_justify="left", title_style="bold", show_header=False)
    table.add_row("device", capacity.device)
    table.add_row("number format", report.dtype)
    table.add_row("structured outputs", STRUCTURES_BACKEND)
    if (speculation := report.config.speculation) is not None:
        table.add_row("speculation", f"{speculation.says_who()} up to {speculation.tokens} tokens ahead")
    table.add_row("weights per device", format_bytes(capacity.weight_bytes))
    table.add_row("KV cache", f"{format_bytes(capacity.kv_bytes)} ({capacity.budget})")
    large, *small = (row.kv_bytes_per_token for row in report.reports)
    if small:
        held = f"{format_bytes(large)} for the large model, {format_bytes(sum(small))} for the others, used or not"
        table.add_row("KV cache that a request's token holds", held)
    table.add_row("KV cache tokens", f"{capacity.kv_tokens:,}")
    table.add_row(f"requests of {report.max_model_len:,} tokens at once", f"{capacity.requests:,}")
    speed = f"{capacity.speed_idle:.2f} for one request, {capacity.speed_full:.2f} with the cache full"
    table.add_row("speed with all members, beside the large model alone, at best", speed)
    if capacity.tokens_idle is not None and capacity.tokens_full is not None:
        bound = f"{capacity.tokens_idle:,.0f} for one request, {capacity.tokens_full:,.0f} with the cache full"
        table.add_row("tokens per second that reading memory allows", bound)
    console.print(table)
