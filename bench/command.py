"""`logit-fusion bench`: what fusion costs on a running server, as ratios to its large model alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from server.errors import ServerError
from server.options import LOCAL, KeyOption, UrlOption

if TYPE_CHECKING:
    from bench.clients import Sample

# Plain large model before and after, so that a machine that grows slower or faster shows.
PLAIN = "none"


def bench(
    url: UrlOption = LOCAL,
    key: KeyOption = None,
    clients: Annotated[list[int] | None, typer.Option(min=1, help="Streams at once. Repeatable.")] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long each load runs.")] = 10.0,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
) -> None:
    """Measure a running server: tokens per second and time to the first token, with and without fusion.

    Every preset is put under the same load of streams, the plain large model first and last. The ratio is to the mean
    of those two, in the same run.
    """
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from bench.clients import closed_loop, goodput, median_ms
    from server.client import Server

    presets = {name: preset["weighting"] for name, preset in Server(url, key).members()["presets"].items()}
    plain = next((name for name, weighting in presets.items() if weighting == PLAIN), None)
    if plain is None:
        raise ServerError(f"{url} has no preset with weighting 'none', which the others would be compared with")
    order = [plain, *(name for name in presets if name != plain), plain]
    table = Table(title=f"{tokens} tokens each, {seconds:g} s a load", title_justify="left")
    for column in ("preset", "streams", "tokens/s", "of the large model alone", "first token, median ms", "refused"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    loads = clients or [1, 4, 16]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Measuring", total=len(loads) * (len(order) + 1))
        for count in loads:
            asyncio.run(closed_loop(url, count, min(seconds, 3.0), order[:1], tokens, key))  # warms up
            progress.advance(task)
            runs: list[tuple[str, list[Sample]]] = []
            for preset in order:
                runs.append((preset, asyncio.run(closed_loop(url, count, seconds, [preset], tokens, key))))
                progress.advance(task)
            rates = [goodput(samples, tokens) for _, samples in runs]
            whole = (rates[0] + rates[-1]) / 2
            for (preset, samples), rate in zip(runs, rates, strict=True):
                first = median_ms([sample.first_token for sample in samples if sample.status == 200])
                refused = sum(sample.status == 429 for sample in samples)
                table.add_row(
                    preset, str(count), f"{rate:.1f}", f"{rate / whole:.3f}", f"{first:.1f}", str(refused or "")
                )
            table.add_section()
    Console(width=None if Console().is_terminal else 120).print(table)
