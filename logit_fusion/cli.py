"""The command line, `logit-fusion`: what serves, trains, measures and explains."""

from __future__ import annotations

import typer

from bench.command import bench
from evaluation.cli import evaluate
from server.cli import EXIT_CODES, app, run
from training.cli import app as expert
from training.cli import compress, merge
from training.route_cli import app as route

__all__ = ["app", "main"]

# Nothing slow is imported up here: `--help` should answer at once.
app.add_typer(expert, name="expert")
app.add_typer(route, name="route")
app.command(epilog=EXIT_CODES)(compress)
app.command(epilog=EXIT_CODES)(merge)
app.command("eval", epilog=EXIT_CODES)(evaluate)
app.command(epilog=EXIT_CODES)(bench)


@app.command(
    "zoo",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def zoo(context: typer.Context) -> None:
    """The embedded demo models: `zoo train` makes them again, `zoo verify` checks them."""
    # Not mounted as a group: that would import what trains models for every `--help`.
    from zoo.cli import app as zoo_app

    zoo_app(args=context.args, prog_name="logit-fusion zoo")


def main() -> None:
    """Run the command line."""
    run()
