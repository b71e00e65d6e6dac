"""`logit-fusion eval`."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.errors import ConfigError, ServerError, nearest
from server.logs import quiet_libraries
from server.options import KeyOption, key_or_old
from zoo import FAMILY

# Nothing slow is imported up here: `--help` should answer at once.
if TYPE_CHECKING:
    from evaluation.run import Evaluation, Results

SUITE = FAMILY / "evaluation" / "suite.yaml"


def evaluate(
    suite: Annotated[Path, typer.Option(metavar="FILE", help="The suite (YAML).", show_default="the embedded")] = SUITE,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Serve this instead of the suite's config.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Ask this running server instead of starting one.")] = None,
    upper_url: Annotated[str | None, typer.Option(help="The running server of the fine-tuned large models.")] = None,
    key: KeyOption = None,
    expert: Annotated[
        str | None, typer.Option(metavar="NAME", help="Ask what was held out of this expert's training.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the results; a stopped run goes on here.")] = Path(
        "eval-results"
    ),
    task: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this task. Repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many examples of each task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="So many examples in every table's prompts.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 16,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask everything again, whatever was answered before.")] = False,
) -> None:
    """Score tasks under every way of weighting the experts, with intervals.

    Writes results.json, results.md, plots, and records.jsonl: the answers so far, which are not asked again.
    """
    quiet_libraries("error")
    # Libraries' warnings about this machine would stand in the middle of the progress bar.
    logging.disable(logging.WARNING)
    from evaluation.run import Evaluation
    from evaluation.serving import Source
    from evaluation.suite import load_suite, narrow

    if config is not None and url is not None:
        raise ConfigError("--config starts a server and --url asks a running one: give one of them")
    key = key_or_old(key)
    if expert is not None:
        if url is not None:
            raise ConfigError(
                "--expert starts a server of its own; with --url, name the expert's suite.yaml by --suite"
            )
        suite = _suite_of(expert, config)
    chosen = narrow(load_suite(suite), task or (), limit, shots)
    upper = None
    # Beside a running server, of whatever models, the suite's own upper bound says nothing.
    if upper_url is not None or (chosen.upper is not None and url is None):
        upper = Source(upper_url, chosen.upper, key)
    evaluation = Evaluation(chosen, Source(url, config or chosen.config, key), upper, out, concurrency)
    if fresh:
        (out / "records.jsonl").unlink(missing_ok=True)
    _report(_run(evaluation), out, seed, advised=expert is not None)


def _suite_of(expert: str, config: Path | None) -> Path:
    """The suite that training left beside an expert's weights."""
    from server.config import load_config

    experts = load_config(config).experts
    if expert not in experts:
        raise ConfigError(f"--expert {expert}: the configuration has no such expert; {nearest(expert, experts)}")
    source = experts[expert].adapter or experts[expert].model
    suite = Path(source or "") / "suite.yaml"
    if not suite.is_file():
        raise ConfigError(
            f"--expert {expert}: there is no {suite}, which `logit-fusion expert train` leaves; "
            "--suite names another one"
        )
    return suite


def _run(evaluation: Evaluation) -> Results:
    """Run, showing each cell. SIGTERM ends it as Ctrl-C does, with the servers that it started."""
    from server.progress import Phases

    with Phases() as phases:
        phases.begin("reading the suite")

        def watch(what: str, done: int, total: int, note: str) -> None:
            if phases.current != what:
                phases.begin(what, total)
            phases.update(done, note)

        async def run() -> Results:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            return await evaluation.run(watch)

        try:
            return asyncio.run(run())
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise ServerError("stopped; the same command goes on from here") from None


def _report(results: Results, out: Path, seed: int, advised: bool) -> None:
    """Write everything that is not written yet, and print the tables."""
    from rich.console import Console
    from rich.markdown import Markdown

    from evaluation import advice
    from evaluation.markdown import to_markdown
    from evaluation.report import as_json, summarise

    reports = summarise(results, seed)
    (out / "results.json").write_text(json.dumps(as_json(results, reports, seed)) + "\n")
    text = to_markdown(reports)
    if advised:
        text += "\n" + advice.to_markdown(advice.advise(results, seed))
    (out / "results.md").write_text(text)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(Markdown(text))
    if find_spec("matplotlib") is None:
        typer.echo("No plots: matplotlib is not installed (pip install 'logit-fusion[eval]').", err=True)
        return
    from evaluation.plots import draw

    for path in draw(results, reports, out):
        typer.echo(path)
