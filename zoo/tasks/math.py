"""Worked arithmetic: GSM8K's training solutions and generated word problems in the same form."""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence

from zoo.examples import Document, Example, cycle_shuffled, draw_turns, held_out
from zoo.tasks.problems import Problem, draw_problem

TEST_SHARE = 0.1
GSM8K_SHARE = 0.2
# Within this, models this small can learn to calculate.
SMALL = 99
# The task's own problems: what they calculate can be learned by heart.
EASY = 20
CALCULATOR_MARK = re.compile(r"<<.*?>>")


def without_marks(answer: str) -> str:
    """Drop GSM8K's calculator marks: `48/2 = <<48/2=24>>24` reads `48/2 = 24`."""
    return CALCULATOR_MARK.sub("", answer)


def numbers(text: str) -> tuple[str, ...]:
    """List the numbers in a text in the order they appear."""
    return tuple(re.findall(r"\d+", text))


class MathTask:
    """Step by step to a number. GSM8K's questions appear in pretraining as prose, its solutions only in training."""

    def __init__(self, gsm8k: Sequence[Example], avoid: Sequence[Example] = ()) -> None:
        """Take GSM8K's training problems, and the test problems whose numbers no generated problem may have."""
        self.gsm8k = [Example(example.question, without_marks(example.answer)) for example in gsm8k]
        self._trained = {numbers(example.question) for example in self.gsm8k}
        self._avoided = {numbers(example.question) for example in avoid}

    def pretraining(self, rng: random.Random) -> Iterator[Document]:
        """Yield sums, asked and stated, and generated problems in other wordings, explained or just answered."""
        while True:
            if rng.random() < 0.45:
                yield _sums(rng)
                continue
            problem = self.problem(rng, test=False)
            answer = rng.choice(
                (problem.explanation(), problem.explanation(), f"The answer is {problem.answer}.", str(problem.answer))
            )
            yield Example(problem.other, answer) if rng.random() < 0.7 else f"{problem.other} {answer}"

    def practice(self, rng: random.Random) -> Iterator[Document]:
        """Yield sums and problems with numbers below 100, in every wording but never with the task's solutions."""
        while True:
            if rng.random() < 0.4:
                yield _sums(rng, most=SMALL)
            else:
                style = rng.choice((Problem.explanation, Problem.explanation, Problem.working, Problem.short))
                yield draw_turns(rng, lambda: self._practised(rng, style))  # noqa: B023 - called at once

    def _practised(self, rng: random.Random, style: Callable[[Problem], str]) -> Example:
        problem = self.problem(rng, test=False, most=SMALL)
        return Example(rng.choice((problem.question, problem.question, problem.other)), style(problem))

    def training(self, rng: random.Random) -> Iterator[Example]:
        """Yield GSM8K's solutions and generated ones."""
        solutions = cycle_shuffled(self.gsm8k, rng)
        while True:
            if rng.random() < GSM8K_SHARE:
                yield next(solutions)
            else:
                problem = self.problem(rng, test=False, most=EASY)
                yield Example(problem.question, problem.solution())

    def test(self, count: int) -> list[Example]:
        """Return that many generated problems whose numbers no training problem of the kind has."""
        rng = random.Random(0)
        problems = [self.problem(rng, test=True, most=EASY) for _ in range(count)]
        return [Example(problem.question, problem.solution()) for problem in problems]

    def problem(self, rng: random.Random, *, test: bool, most: float = math.inf) -> Problem:
        """Draw a problem of the training or of the test side, no number in it above `most`."""
        while True:
            problem = draw_problem(rng)
            if problem.largest > most:
                continue
            # Now and then a generated problem is one of GSM8K's in other words; the numbers give it away.
            taken = self._trained if test else self._avoided
            if held_out(problem.key, TEST_SHARE) == test and numbers(problem.question) not in taken:
                return problem


def _sums(rng: random.Random, most: float = math.inf) -> Document:
    sums = [_sum(rng, most) for _ in range(rng.randint(1, 8))]
    if len(sums) == 1:
        expression, value = sums[0]
        question = rng.choice(("What is {e}?", "Compute {e}.", "How much is {e}?", "{e} = ?"))
        answer = rng.choice(("{e} = {v}", "It is {v}.", "{v}", "The answer is {v}."))
        return Example(question.format(e=expression), answer.format(e=expression, v=value))
    return ", ".join(f"{expression} = {value}" for expression, value in sums)


def _sum(rng: random.Random, most: float) -> tuple[str, int]:
    while True:
        expression, value = _any_sum(rng)
        if max(value, *map(int, numbers(expression))) <= most:
            return expression, value


def _any_sum(rng: random.Random) -> tuple[str, int]:
    operator = rng.choice("+-*/")
    if operator == "+":
        a, b = rng.randint(1, 200), rng.randint(1, 200)
        return f"{a} + {b}", a + b
    if operator == "-":
        a = rng.randint(2, 300)
        b = rng.randint(1, a)
        return f"{a} - {b}", a - b
    a, b = rng.randint(2, 100), rng.randint(2, 12)
    if operator == "*":
        return (f"{a} * {b}" if rng.random() < 0.5 else f"{b} * {a}"), a * b
    return f"{a * b} / {b}", a
