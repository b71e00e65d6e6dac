"""What the answers say to do: which way of weighting an expert to serve, or that none helps."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.bootstrap import Draws, Scores
from evaluation.plan import TUNED
from evaluation.report import score_records
from evaluation.run import Results
from evaluation.suite import Metric


@dataclass(frozen=True)
class Advice:
    """The best setting of one task, and how far it is ahead; in percent, or in nats per token."""

    task: str
    metric: Metric
    expert: str
    setting: str | None
    """The column to serve; `None` where none is ahead of the large model by more than chance."""
    sentences: tuple[str, ...]


def advise(results: Results, seed: int) -> list[Advice]:
    """Return advice for every task that names an expert, from the first table that has it."""
    found: dict[str, Advice] = {}
    for table in results.tables:
        for name in table.tasks:
            task = results.suite.tasks[name]
            if task.expert is None or name in found:
                continue
            draws = Draws(name, len(results.examples[name]), seed)
            cells = {column: table.cells.get((name, column)) for column in table.columns if column != TUNED}
            scores = {
                column: score_records(draws, task.metric, results.records[cell])
                for column, cell in cells.items()
                if cell in results.records
            }
            advice = _advice(results, name, task.expert, scores)
            if advice is not None:
                found[name] = advice
    return list(found.values())


def to_markdown(advice: list[Advice]) -> str:
    """Return the advice as a section."""
    parts = [f"**{a.task}**: {' '.join(a.sentences)}" for a in advice]
    return "\n".join(["## What to serve", "", *(line for part in parts for line in (part, ""))])


def _advice(results: Results, name: str, expert: str, scores: dict[str, Scores]) -> Advice | None:
    settings = results.suite.settings
    metric = results.suite.tasks[name].metric
    # Of percent more is better, of nats less.
    better = -1.0 if metric == "nll" else 1.0
    large = next((c for c in scores if settings[c].weighting == "none"), None)
    alone = next((c for c in scores if settings[c].weighting == "alone"), None)
    fused = [column for column in scores if column not in (large, alone)]
    if large is None or not fused:
        return None
    # Of equals the one that the expert's preset has.
    best = max(fused, key=lambda column: (better * scores[column].value, settings[column].weighting == "kl"))
    unit = "nats per token" if metric == "nll" else "%"

    def ahead(column: str, other: str) -> tuple[bool, str]:
        gain = ((scores[column] - scores[other]) * better).estimate()
        digits = 3 if metric == "nll" else 1
        return gain.low > 0, f"{gain.value:.{digits}f} [{gain.low:.{digits}f}, {gain.high:.{digits}f}] {unit}"

    if alone is not None and ahead(alone, best)[0] and ahead(alone, large)[0]:
        text = (
            f"The expert alone does best, ahead by {ahead(alone, best)[1]} of the best way of weighting it ('{best}'): "
            f"it does not need the large model here. Serve it by itself."
        )
        return Advice(name, metric, expert, alone, (text,))
    helps, by = ahead(best, large)
    if not helps:
        text = (
            f"Fusion does not help here: the best way of weighting, '{best}', is ahead of the large model alone by "
            f"{by}, which is no more than chance."
        )
        return Advice(name, metric, expert, None, (text,))
    field = ", ".join(f"{key}: {value}" for key, value in settings[best].field([expert]).items() if key != "experts")
    sentences = [
        f"Serve the preset {{experts: [{expert}], {field}}}.".replace("'", ""),
        f"It is ahead of the large model alone by {by}.",
    ]
    if alone is not None:
        clear, gain = ahead(best, alone)
        sentences.append(f"It is ahead of the expert alone by {gain}{'' if clear else ', which may be chance'}.")
    return Advice(name, metric, expert, best, tuple(sentences))
