"""`logit-fusion expert`."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import EXIT_CODES, ConfigOption
from server.errors import ConfigError, ServerError
from server.logs import quiet_libraries
from training.needs import check_needs

# Nothing slow is imported up here: `--help` should answer at once.
if TYPE_CHECKING:
    from server.config import Config
    from training.compress import Compressed
    from training.data import Data
    from training.output import Place
    from training.trainer import Trained


class MergeMethod(StrEnum):
    """How task vectors become one."""

    linear = "linear"
    magnitude_prune = "magnitude-prune"
    ties = "ties"
    dare_linear = "dare-linear"
    dare_ties = "dare-ties"


NEEDED = ("trl", "peft", "datasets", "ruamel.yaml")

app = typer.Typer(no_args_is_help=True, help="Small experts of your own: from a data set to what a server loads.")


@app.callback()
def _group() -> None:
    """Keep `train` a command of the group, however many there are."""


@app.command(epilog=EXIT_CODES)
def train(
    data: Annotated[
        Path, typer.Argument(metavar="DATA.jsonl", help="Examples: lines with messages, or with prompt and completion.")
    ],
    name: Annotated[str, typer.Option(help="What the expert, and the preset with it, will be called.")],
    config: ConfigOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For the expert.", show_default="experts/NAME beside the configuration"),
    ] = None,
    held_out: Annotated[Path | None, typer.Option(metavar="FILE", help="Examples to judge it by, from a file.")] = None,
    share: Annotated[
        float, typer.Option("--held-out-share", min=0.01, max=0.5, help="Else the share of DATA that is held out.")
    ] = 0.2,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of a LoRA adapter.")] = False,
    rank: Annotated[int, typer.Option(min=1, max=512, help="Rank of the adapter.")] = 32,
    epochs: Annotated[
        int, typer.Option(min=1, help="At most so often through the data; it stops when it is best.")
    ] = 20,
    rate: Annotated[
        float | None, typer.Option("--learning-rate", min=1e-9, help="Peak.", show_default="by the base's width")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per step, on each device.")] = 8,
    hold: Annotated[
        float,
        typer.Option("--hold-weight", min=0.0, help="What staying as the base is off the task counts; 0: nothing."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, the weights and the order.")] = 0,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add it and a preset to this configuration; a new file begins as a copy."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, whatever was trained in the folder.")] = False,
) -> None:
    """Train an expert over the configured base, and judge it by what the fusion makes of it.

    A part of the data is held out. Training stops when the large model, steered by the expert, no longer gets better
    on that part. The same command goes on where a stopped run was.
    """
    _prepare()
    from server.config import load_config
    from server.config.load import zoo_config
    from training.data import read_data
    from training.output import Place, add_to, lines

    loaded = load_config(config)
    _check_name(name, loaded)
    home = (write or config or Path("here")).parent
    place = Place(name, out or home / "experts" / name)
    examples = read_data(data, held_out, share, seed)
    if fresh:
        place.clear()
    options = {"full": full, "rank": rank, "epochs": epochs, "learning_rate": rate, "batch_size": batch_size}
    trained = _run(loaded, examples, {**options, "hold_weight": hold, "seed": seed}, place)
    added = lines(place, "model" if full else "adapter", home)
    if write is not None:
        add_to(write, added, config or zoo_config(), loaded)
    _tell(trained, place, added, config, write)


def compress(
    expert: Annotated[Path, typer.Argument(metavar="EXPERT", help="Folder of a model that was fine-tuned.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, for the adapter.")],
    base: Annotated[Path, typer.Option(metavar="FOLDER", help="The model that it was fine-tuned from.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of every layer.")] = 16,
    texts: Annotated[
        Path | None, typer.Option("--on", metavar="FILE", help="Texts, one a line, to measure what is lost on.")
    ] = None,
) -> None:
    """Turn a fine-tuned expert into a LoRA adapter, which shares the base's weights when it is served.

    Of what fine-tuning changed in each linear layer it keeps the nearest matrix of that rank. Embeddings, norms and
    biases stay the base's.
    """
    _prepare()
    from server.progress import Phases

    with Phases() as phases:
        phases.begin("compressing")
        from training.compress import compress as make
        from training.compress import divergence

        made = make(base, expert, out, rank)
        lost = None
        if texts is not None:
            phases.begin("comparing")
            lost = divergence(base, expert, out, [line for line in texts.read_text("utf-8").splitlines() if line])
    _tell_compressed(made, out, lost)


def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, for the merged expert.")],
    experts: Annotated[
        list[str], typer.Argument(metavar="EXPERT=WEIGHT...", help="Folders of models or adapters of the base.")
    ],
    base: Annotated[Path, typer.Option(metavar="FOLDER", help="The model that all were fine-tuned from.")],
    method: Annotated[
        MergeMethod, typer.Option(help="linear adds what fine-tuning changed; the others thin it out first.")
    ] = MergeMethod.linear,
    density: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Share of values kept of each, but with linear.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of what the dare methods draw.")] = 0,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Write an adapter of that rank.", show_default="a whole model")
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(min=1, metavar="RANK", help="Beside the merge, what each expert has beyond it, for a router."),
    ] = None,
) -> None:
    """Merge experts of one base into one, by PEFT's merge methods."""
    _prepare()
    from server.progress import Phases

    weighted = [_weighted(expert) for expert in experts]
    if parts is not None:
        _mix(base, weighted, out, parts, rank, method=method.value, density=density, seed=seed)
        return
    with Phases() as phases:
        phases.begin("merging")
        from training.merge import merge as make

        made = make(base, weighted, out, method=method.value, density=density, seed=seed, rank=rank)
    if made is None:
        typer.echo(f"{out}: a whole model; name it under `model` of an expert.")
    else:
        _tell_compressed(made, out, None)


def _mix(
    base: Path, experts: list[tuple[Path, float]], out: Path, parts: int, rank: int | None, **settings: Any
) -> None:
    from rich.console import Console
    from rich.table import Table

    from server.progress import Phases

    if rank is not None:
        raise ConfigError("--parts: they are adapters over a whole model; leave out --rank")
    with Phases() as phases:
        phases.begin("merging")
        from training.mixture import PARTS, mix

        made = mix(base, experts, out, parts, **settings)
    table = Table("part", "numbers", "kept", box=None)
    for name, part in made.items():
        table.add_row(name, f"{part.parameters:,}", f"{part.kept:.1%}")
    Console().print(table)
    left_out = sorted({kind for part in made.values() for kind in part.left_out})
    if left_out:
        typer.echo(f"Left as in the merge: {', '.join(left_out)}.")
    named = ", ".join(f"{name}: {out / PARTS / name}" for name in made)
    typer.echo(f"an expert: {{model: {out}, parts: {{{named}}}}}, in a preset with a `route` and `top: all`")


def _weighted(text: str) -> tuple[Path, float]:
    folder, _, weight = text.rpartition("=")
    try:
        return Path(folder or text), float(weight) if folder else 1.0
    except ValueError:
        raise ConfigError(f"EXPERT=WEIGHT: '{weight}' in {text} is no number, as in experts/math=0.5") from None


def _tell_compressed(made: Compressed, out: Path, lost: float | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "rank", "kept", box=None)
    for layer in made.layers:
        table.add_row(layer.name, str(layer.rank), f"{layer.kept:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"{out}: {made.parameters:,} numbers; {made.kept:.1%} of the linear layers' change (its energy) is kept.",
        highlight=False,
        soft_wrap=True,
    )
    if made.left_out:
        console.print(f"Left as in the base: {', '.join(sorted(made.left_out))}.", highlight=False, soft_wrap=True)
    if lost is not None:
        console.print(f"KL(expert || adapter): {lost:.4f} nats per token.", highlight=False, soft_wrap=True)


def _run(config: Config, data: Data, options: dict[str, Any], place: Place) -> Trained | None:
    """Train, showing what is under way; an option that is `None` is chosen here."""
    from server.progress import Phases, say

    say(f"{len(data.trained)} examples to train on, {len(data.held_out)} held out")
    with Phases() as phases:
        phases.begin("checking large and base")
        from training.job import checked, learning_rate, run
        from training.trainer import Settings

        report = checked(config)
        if options["learning_rate"] is None:
            options["learning_rate"] = learning_rate(report.members.needed_base, options["full"])
        settings = Settings(**options)
        say(f"settings: {', '.join(f'{key} {value}' for key, value in vars(settings).items())}")
        try:
            return run(report, data, settings, place, phases, say)
        except KeyboardInterrupt:
            raise ServerError("stopped; the same command goes on from the last evaluation") from None


def _tell(
    trained: Trained | None, place: Place, added: dict[str, Any], config: Path | None, written: Path | None
) -> None:
    import yaml

    if trained is None:
        typer.echo(f"{place.folder} has this expert already; --fresh trains it anew.")
    else:
        best = trained.best
        typer.echo(
            f"{place.folder}: the weights of step {trained.step}. Held-out nats per token: large alone "
            f"{best.large:.3f}, expert alone {best.expert:.3f}, fused by kl {best.fused:.3f}."
        )
        if best.fused >= best.large:
            typer.echo("The fusion is no better than the large model alone here: this expert does not help.")
    if written is not None:
        typer.echo(f"{written} has the expert '{place.name}' and a preset of that name.")
    else:
        typer.echo(f"Add to {config or 'a configuration'} (--write FILE does it):\n")
        typer.echo(yaml.safe_dump(added, sort_keys=False, default_flow_style=None))
    served = written or config or "YOUR.yaml"
    typer.echo(f"Next: logit-fusion eval --config {served} --expert {place.name}")


def _prepare() -> None:
    """Check that all is installed, and keep the libraries on the way from saying anything of their own."""
    check_needs(NEEDED, "training")
    quiet_libraries("error")
    logging.disable(logging.WARNING)


def _check_name(name: str, config: Config) -> None:
    from pydantic import TypeAdapter, ValidationError

    from server.config.schema import ExpertName

    try:
        TypeAdapter(ExpertName).validate_python(name)
    except ValidationError as error:
        raise ConfigError(f"--name: {error.errors()[0]['ctx']['error']}") from None
    if config.base is None:
        raise ConfigError("the configuration has no base, the model that experts are trained from: base: {model: ...}")
