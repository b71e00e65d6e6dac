"""What steers a real model without a small one: context-aware decoding and guidance, by the weight.

    python -m bench.steering [--only context|guidance] [--kinds capital,author] [--answers FILE]

Of SmolLM2-135M-Instruct (`make serve-real`), over HTTP, greedy:

- context-aware decoding (Shi et al. 2023): facts of `bench/beliefs.py` that the model answers rightly without a
  document. Documents contradict them, with and without an instruction to answer from the document; or agree with them;
  or speak of another subject. Counted are the answers that say what the document says and not what is known, those that
  say only what is known, or those that are right.
- classifier-free guidance (Sanchez et al. 2023): questions that the model answers rightly, under system messages whose
  following a program can see. Counted are the answers that follow, and those that follow and are right.

`alpha: 0` is the large model alone, with the same prompt. Shares have Wilson's intervals of 95 %, differences to
`alpha: 0` those of a paired bootstrap. With `--answers` a run that was stopped goes on where it was; what it asked is
in that file, one answer a line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from openai import AsyncOpenAI

from bench.beliefs import Belief, beliefs, says
from bench.results_file import store
from bench.shares import wilson
from evaluation.bootstrap import Draws
from evaluation.store import Store
from server.launcher import ServerProcess
from zoo import FAMILY

CONFIG = FAMILY / "smollm2.yaml"
PARTS = ("context", "guidance")
CONTEXT_ALPHAS, GUIDED_ALPHAS = (0.0, 0.5, 1.0, 2.0), (0.0, 1.0, 2.0)
AT_ONCE = 32
CONTEXT_TOKENS, GUIDED_TOKENS = 24, 32
SEED = 0
FROM_THE_TEXT = "Answer from this text, whatever you know: "
# Of the guidance's questions: kinds whose answers are names, and how many of each.
UNDER_SYSTEM_MESSAGES = ("capital", "landmark", "author")
OF_EACH = 3

Messages = list[dict[str, str]]
Measure = Callable[[str], bool]


@dataclass(frozen=True)
class System:
    """A system message, and whether an answer does what it says."""

    name: str
    text: str
    follows: Measure


def _french(text: str) -> bool:
    words = re.findall(r"\w+", text.lower())
    french = sum(
        word in {"le", "la", "les", "est", "un", "une", "des", "de", "du", "et", "dans", "qui"} for word in words
    )
    return french > sum(word in {"the", "is", "of", "and", "in", "a", "was", "by", "it", "to"} for word in words)


SYSTEMS = (
    System("one word", "Answer in exactly one word.", lambda text: len(text.split()) == 1),
    System("capitals", "Write your whole answer in capital letters.", str.isupper),
    System("French", "Answer in French.", _french),
    System(
        "greeting", "Begin every answer with the words: Dear friend.", lambda text: text.lower()[:11] == "dear friend"
    ),
    System("list", "Answer as a numbered list.", lambda text: text.lstrip().startswith("1.")),
    System("question", "Answer every question with a question of your own.", lambda text: "?" in text),
    System(
        "cats",
        "You love cats. Whatever you are asked, you talk about cats.",
        lambda text: says(text, ("cat", "cats", "kitten", "kittens", "feline")),
    ),
    System(
        "sea",
        "You are a sailor. Whatever you are asked, you talk about the sea.",
        lambda text: says(text, ("sea", "seas", "ship", "ships", "sail", "sailor", "sailing", "ocean", "captain")),
    ),
)


@dataclass(frozen=True)
class Asked:
    """A prompt, where it belongs, and what is counted of its answers."""

    case: str
    kind: str
    preset: str
    messages: Messages
    tokens: int
    measures: dict[str, Measure]


def with_model() -> dict[str, str]:
    """The environment in which the configuration finds the model."""
    found = subprocess.run([sys.executable, "-m", "zoo.smollm2"], check=True, capture_output=True, text=True)
    return os.environ | {"SMOLLM2": found.stdout.strip()}


def without_document(belief: Belief) -> Asked:
    """The question alone, which says whether the model knows it."""
    messages = [{"role": "user", "content": belief.question}]
    return Asked("no document", belief.kind, "smollm2", messages, CONTEXT_TOKENS, {"known": belief.is_known})


def with_documents(belief: Belief) -> list[Asked]:
    """The question after each document."""

    def asked(case: str, document: str, **measures: Measure) -> Asked:
        messages = [{"role": "user", "name": "context", "content": document}, *without_document(belief).messages]
        return Asked(case, belief.kind, "smollm2-faithful", messages, CONTEXT_TOKENS, measures)

    counted: dict[str, Measure] = {
        "the document's": belief.is_document,
        "known": lambda text: says(text, belief.known) and not says(text, belief.told),
    }
    return [
        asked("contradicts", belief.contradicting, **counted),
        asked("contradicts, instructed", FROM_THE_TEXT + belief.contradicting, **counted),
        asked("agrees", belief.agreeing, known=belief.is_known),
        asked("of another subject", belief.beside, known=belief.is_known),
    ]


def under_system_messages(belief: Belief) -> list[Asked]:
    """The question under each system message."""
    found = []
    for system in SYSTEMS:
        messages = [{"role": "system", "content": system.text}, {"role": "user", "content": belief.question}]
        measures: dict[str, Measure] = {
            "followed": system.follows,
            "followed and right": lambda text, follows=system.follows: follows(text) and says(text, belief.known),  # type: ignore[misc]
        }
        found.append(Asked("guidance", system.name, "smollm2-guided", messages, GUIDED_TOKENS, measures))
    return found


class Answers:
    """Asks a server, and keeps what it said."""

    def __init__(self, client: AsyncOpenAI, kept: Store) -> None:
        self._client, self._kept, self._room = client, kept, asyncio.Semaphore(AT_ONCE)

    async def all(self, questions: Sequence[Asked], alphas: Sequence[float]) -> list[list[str]]:
        """The texts [questions, alphas]; a prompt's weights are asked together, as they share what is cached of it."""
        texts = await asyncio.gather(*(self._one(asked, alpha) for asked in questions for alpha in alphas))
        return [texts[first : first + len(alphas)] for first in range(0, len(texts), len(alphas))]

    async def _one(self, asked: Asked, alpha: float) -> str:
        fusion: dict[str, Any] = {"weighting": "static", "alpha": alpha} if alpha else {"weighting": "none"}
        body: dict[str, Any] = {"model": asked.preset, "messages": asked.messages, "max_tokens": asked.tokens}
        key = sha256(json.dumps([body, fusion], sort_keys=True).encode()).hexdigest()[:24]
        if key not in self._kept:
            async with self._room:
                answer = await self._client.chat.completions.create(
                    **body, temperature=0, extra_body={"fusion": fusion}
                )
            said = {
                "case": asked.case,
                "alpha": alpha,
                "asked": asked.messages,
                "text": answer.choices[0].message.content,
            }
            self._kept.add({"key": key, **said})
        text: str = self._kept[key]["text"] or ""
        return text


def table(questions: Sequence[Asked], texts: Sequence[Sequence[str]], alphas: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each case, what is counted, kind of question and weight; `all` are all kinds."""
    rows: list[dict[str, Any]] = []
    for case in dict.fromkeys(asked.case for asked in questions):
        places = [place for place, asked in enumerate(questions) if asked.case == case]
        for measure in questions[places[0]].measures:
            hit = np.array([[questions[p].measures[measure](t) for t in texts[p]] for p in places], dtype=float)
            kinds = np.array([questions[place].kind for place in places])
            for kind in ("all", *dict.fromkeys(kinds.tolist())):
                of_kind = hit if kind == "all" else hit[kinds == kind]
                rows += [
                    {"case": case, "counted": measure, "kind": kind, "alpha": alpha, **_estimated(of_kind, column)}
                    for column, alpha in enumerate(alphas)
                ]
    return rows


def _estimated(hit: np.ndarray[Any, Any], column: int) -> dict[str, Any]:
    """Hits of a weight with their interval, and the difference to the first weight on the same questions."""
    number, hits = len(hit), int(hit[:, column].sum())
    low, high = wilson(hits, number)
    row: dict[str, Any] = {"hits": hits, "of": number, "share": hits / number, "low": low, "high": high}
    if column:
        draws, ones = Draws("steering", number, SEED), np.ones(number)
        difference = (draws.score(hit[:, column], ones) - draws.score(hit[:, 0], ones)).estimate()
        row |= {"difference": difference.value, "d_low": difference.low, "d_high": difference.high}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


async def measure(
    url: str, kept: Store, facts: Sequence[Belief], parts: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each part's table."""
    async with AsyncOpenAI(base_url=url + "/v1", api_key="none", timeout=600) as client:
        answers = Answers(client, kept)
        alone = [without_document(belief) for belief in facts]
        texts = await answers.all(alone, (0.0,))
        known = [belief for belief, (text,) in zip(facts, texts, strict=True) if belief.is_known(text)]
        rows: dict[str, list[dict[str, Any]]] = {}
        if "context" in parts:
            asked = [each for belief in known for each in with_documents(belief)]
            found = table(asked, await answers.all(asked, CONTEXT_ALPHAS), CONTEXT_ALPHAS)
            rows["context"] = table(alone, texts, (0.0,)) + found
        if "guidance" in parts:
            few = [[belief for belief in known if belief.kind == kind][:OF_EACH] for kind in UNDER_SYSTEM_MESSAGES]
            asked = [each for of_kind in few for belief in of_kind for each in under_system_messages(belief)]
            rows["guidance"] = table(asked, await answers.all(asked, GUIDED_ALPHAS), GUIDED_ALPHAS)
    return rows


def main() -> None:
    """Serve the model, ask, print the sums, and store all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one of the two")
    parser.add_argument("--kinds", help="ask only facts of these kinds, parted by commas; all by default")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="where answers are kept, and taken from")
    parser.add_argument("--dtype", default="bfloat16", help="the engine's number format")
    args = parser.parse_args()
    facts = [belief for belief in beliefs() if args.kinds is None or belief.kind in args.kinds.split(",")]
    options = ("--set", f"engine.dtype={args.dtype}")
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(args.answers or Path(folder) / "answers.jsonl") as kept,
        ServerProcess(CONFIG, Path(folder) / "log", *options, environment=with_model()) as server,
    ):
        tables = asyncio.run(measure(server.url, kept, facts, PARTS if args.only is None else (args.only,)))
    for part, rows in tables.items():
        for row in rows:
            if row["kind"] == "all":
                print("  ".join(f"{key} {value}" for key, value in row.items()))
        print(f"stored in {store(f'steering_{part}', rows)}")


if __name__ == "__main__":
    main()
