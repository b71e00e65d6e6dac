"""Facts that a model knows, and documents that contradict it, agree, or speak of something else.

The facts lie in `zoo/evaluation/beliefs.yaml`. An answer says a name if the name stands in it as whole words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from zoo import FAMILY

BELIEFS = FAMILY / "evaluation" / "beliefs.yaml"
# A chemical symbol counts as it is written: "O" is no "o".
SHORT = 2


@dataclass(frozen=True)
class Belief:
    """A question, what is known, what another document claims; and a document about the next of the same kind."""

    kind: str
    question: str
    known: tuple[str, ...]
    told: tuple[str, ...]
    contradicting: str
    agreeing: str
    beside: str
    """It is true, and speaks of another subject, whose answer is `others`."""
    others: tuple[str, ...]

    def is_document(self, text: str) -> bool:
        """Whether an answer says what the contradicting document does, and not what is known."""
        return says(text, self.told) and not says(text, self.known)

    def is_known(self, text: str) -> bool:
        """Whether an answer says what is known, and neither the contradicting document's answer nor the other's."""
        return says(text, self.known) and not says(text, (*self.told, *self.others))


def says(text: str, names: Sequence[str]) -> bool:
    """Whether one of the names stands in a text, as whole words."""
    return any(
        re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.NOFLAG if len(name) <= SHORT else re.IGNORECASE)
        for name in names
    )


def beliefs() -> list[Belief]:
    """All facts, in the file's order."""
    return [
        belief for kind, section in yaml.safe_load(BELIEFS.read_text()).items() for belief in _of_kind(kind, section)
    ]


def _of_kind(kind: str, section: dict[str, Any]) -> list[Belief]:
    facts = [(subject, tuple(known.split("|")), tuple(told.split("|"))) for subject, known, told in section["facts"]]
    made = []
    for place, (subject, known, told) in enumerate(facts):

        def document(about: str, answer: str, number: int = place) -> str:
            template: str = section["documents"][number % len(section["documents"])]
            return template.replace("{answer}", answer).replace("{}", about)

        other, others = _another(facts, place)
        made.append(
            Belief(
                kind=kind,
                question=section["question"].replace("{}", subject),
                known=known,
                told=told,
                contradicting=document(subject, told[0]),
                agreeing=document(subject, known[0]),
                beside=document(other, others[0]),
                others=others,
            )
        )
    return made


def _another(facts: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]], place: int) -> tuple[str, tuple[str, ...]]:
    """The next subject whose right answer shares no name with this one's two."""
    _, known, told = facts[place]
    following = [*facts[place + 1 :], *facts[:place]]
    return next((subject, right) for subject, right, _ in following if not {*right} & {*known, *told})
