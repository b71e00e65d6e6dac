"""`logit-fusion zoo`: train the demo family again, or verify the one at hand."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from server.progress import Phases
from zoo import FAMILY

app = typer.Typer(no_args_is_help=True, help="The embedded demo family: train it again, or verify it.")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for models/, zoo.yaml and manifest.json.")] = Path("zoo-trained"),
    seed: Annotated[int, typer.Option(help="Seed of weights, order and generated text.")] = 0,
    data: Annotated[Path, typer.Option(help="Folder with gsm8k_train.jsonl.gz.")] = FAMILY / "data",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    quick: Annotated[bool, typer.Option(help="A few steps only, to see that it runs; the answers are noise.")] = False,
) -> None:
    """Train tokenizer, large, base, experts and adapters from data and a seed (about an hour on two cores)."""
    # Imported late: `logit-fusion --help` should not wait for torch and transformers.
    from zoo.build import build
    from zoo.recipe import MICRO, Recipe

    _quiet()
    torch.set_num_threads(threads)
    with Phases() as phases:
        phases.begin("reading the data, training the tokenizer")

        def stage(name: str, tokens: int) -> Callable[[int, float], None]:
            phases.begin(name, tokens)
            total, mean = 0, float("nan")

            def step(read: int, loss: float) -> None:
                nonlocal total, mean
                total += read
                mean = loss if math.isnan(mean) else 0.95 * mean + 0.05 * loss
                phases.update(total, f"{total:,} tokens, loss {mean:.3f}")

            return step

        try:
            build(MICRO if quick else Recipe(), data, out, seed, stage)
        except FileNotFoundError as error:
            typer.echo(f"error: {error.filename} is missing; --data must name a folder that has it", err=True)
            raise typer.Exit(1) from error
    typer.echo(f"Trained: {out}. Serve it with: logit-fusion serve --config {out / 'zoo.yaml'}", err=True)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="A family's folder.")] = FAMILY) -> None:
    """Check the files' hashes and a handful of expected greedy answers; exit code 1 on any difference."""
    from zoo.manifest import MANIFEST, faults

    _quiet()
    if not (folder / MANIFEST).is_file():
        typer.echo(f"{folder / MANIFEST}: missing; name the folder of a family that `zoo train` made", err=True)
        raise typer.Exit(1)
    with Phases(lambda _: None) as phases:  # in a log, the faults and nothing else
        phases.begin("checking files and answers")
        found = list(faults(folder))
    for fault in found:
        typer.echo(fault, err=True)
    if found:
        raise typer.Exit(1)
    typer.echo(f"{folder}: every file and every answer is as expected")


@app.command()
def prompts(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go.")],
    data: Annotated[Path, typer.Option(help="Folder with GSM8K's files.")] = FAMILY / "data",
) -> None:
    """Write prompts by the expert that they are for, for `logit-fusion route`: to learn from, and to judge by."""
    from zoo.routing import judged, learned, write

    out.mkdir(parents=True, exist_ok=True)
    for name, found in {"learned": learned(data), **judged(data)}.items():
        write(found, out / f"{name}.jsonl")
        typer.echo(f"{out / name}.jsonl: {len(found)} prompts")


def _quiet() -> None:
    """Keep transformers' own bars and warnings out of ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers").setLevel(logging.ERROR)
