"""`logit-fusion route`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import EXIT_CODES, ConfigOption
from server.errors import ConfigError
from training.needs import check_needs

# Nothing slow is imported up here: `--help` should answer at once.
if TYPE_CHECKING:
    import numpy as np

    from server.config import Config
    from training.routing import Example, Share

NEEDED = ("sklearn", "scipy")

app = typer.Typer(no_args_is_help=True, help="Routers, which choose the experts for each prompt.")

ExamplesOption = Annotated[
    Path,
    typer.Option(metavar="E.jsonl", help='Lines such as {"prompt": "What is 2 + 3?", "expert": "math"}, or "none".'),
]


@app.command(epilog=EXIT_CODES)
def fit(
    examples: ExamplesOption,
    out: Annotated[Path, typer.Option(metavar="ROUTER", help="The file to write, for a preset's `route`.")],
    config: ConfigOption = None,
    held_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Examples to judge it by.", show_default="a fifth of them")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Less sure than this, the large model answers alone.",
            show_default="0.7, or 0.9 without examples for none",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
) -> None:
    """Fit a router to examples of what each expert is for, and judge it by others."""
    from server.config import load_config
    from training.routing import fit as make
    from training.routing import judge, read_examples

    check_needs(NEEDED, "routing")
    _check_place(out)
    loaded = load_config(config, routers_to_be=True)
    learned = read_examples(examples, _names(loaded))
    if held_out is None:
        learned, judged = _split(learned, seed)
    else:
        judged = read_examples(held_out, _names(loaded))
    base, vectors = _read(loaded, [*learned, *judged])
    names = [example.expert for example in learned]
    router = make(base, vectors[: len(learned)], names, threshold)
    router.save(out)
    _tell(judge(router, vectors[len(learned) :], [example.expert for example in judged]))
    experts = ", ".join(name for name in router.classes if name != "none")
    typer.echo(f"{out}: in a preset: {{experts: [{experts}], route: {out}}}")


@app.command(epilog=EXIT_CODES)
def show(
    router: Annotated[Path, typer.Argument(metavar="ROUTER", help="The file that `fit` wrote.")],
    examples: ExamplesOption,
    config: ConfigOption = None,
) -> None:
    """Tell how often a router is right about examples, and what it takes the others for."""
    from server.config import load_config
    from server.engine.routing.router import Router
    from training.routing import judge, read_examples

    check_needs(NEEDED, "routing")
    loaded = load_config(config, routers_to_be=True)
    found, judged = Router.load(router), read_examples(examples, _names(loaded))
    base, vectors = _read(loaded, judged)
    found.check_base(router, base)
    _tell(judge(found, vectors, [example.expert for example in judged]))
    typer.echo(f"Below {found.threshold:g} the large model answers alone.")


def _check_place(out: Path) -> None:
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out: {out} {'is a folder' if out.is_dir() else 'lies in no folder that there is'}")


def _names(config: Config) -> list[str]:
    """What a router may choose: experts, and the parts of those that are mixtures."""
    from server.config.routing import routed_names

    return list(dict.fromkeys(routed_names(config.experts, config.named_experts)))


def _split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    from sklearn.model_selection import train_test_split

    names = [example.expert for example in examples]
    rare = [name for name in set(names) if names.count(name) < 2]
    if rare:
        raise ConfigError(f"'{rare[0]}' has one example: some to learn from and some to judge by are needed")
    try:
        learned, judged = train_test_split(list(examples), test_size=0.2, random_state=seed, stratify=names)
    except ValueError:
        raise ConfigError("there are too few examples to hold a fifth of them out; give --held-out") from None
    return learned, judged


def _read(config: Config, examples: Sequence[Example]) -> tuple[Path, np.ndarray]:
    """The base's folder, and its states at the ends of the examples' prompts."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from server.engine.members import fetch_weights, resolve_members
    from server.progress import Phases
    from training.routing import states

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if config.base is None:
        raise ConfigError("a router reads the base's states, and the configuration has no base")
    members = resolve_members(config)
    fetch_weights(members)
    tokenizer: Any = AutoTokenizer.from_pretrained(members.large.folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ConfigError(f"{members.large.folder} has no chat template, by which prompts are written")
    base = members.needed_base.folder
    with Phases() as phases:
        phases.begin("reading the examples", len(examples))
        return base, states(base, tokenizer, examples, phases.update)


def _tell(shares: Sequence[Share]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("prompts of", "number", "right", "95 % interval", "else taken for", box=None)
    for share in shares:
        others = ", ".join(f"{name} {number}" for name, number in share.taken_for.items())
        of = f"{share.right / share.number:.1%}", f"{share.low:.1%} to {share.high:.1%}"
        table.add_row(share.name, str(share.number), *of, "" if share.name == "all" else others)
    Console().print(table)
