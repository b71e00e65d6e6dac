"""Generated word problems of one to three steps, with everything needed to word question and solution in two ways."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from zoo.words import ITEMS, NAMES

Step = tuple[str, str, int, str]


@dataclass(frozen=True)
class Problem:
    """One problem.

    `question` is the wording of training and test, `other` that of pretraining. A step is (what is found, expression,
    value, unit); the last value is the answer. `key` names kind and numbers, so that the split can go by them.
    """

    key: str
    question: str
    other: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The value of the last step."""
        return self.steps[-1][2]

    @property
    def largest(self) -> int:
        """The largest number in the steps."""
        operands = [int(part) for _, expression, _, _ in self.steps for part in expression.split()[::2]]
        return max(operands + [value for _, _, value, _ in self.steps])

    def solution(self) -> str:
        """The worked solution in GSM8K's form: one sentence a line, then `#### answer`."""
        lines = [
            f"{found} {expression} = {value} {unit}.".replace(" .", ".")
            for found, expression, value, unit in self.steps
        ]
        return "\n".join([*lines, f"#### {self.answer}"])

    def explanation(self) -> str:
        """The same reasoning in running words, as pretraining reads it."""
        parts = [f"{expression} = {value}" for _, expression, value, _ in self.steps]
        lead = "We compute " if len(parts) == 1 else "First "
        return f"{lead}{', then '.join(parts)}. So the answer is {self.answer}."

    def working(self) -> str:
        """The calculation and nothing else."""
        return "; ".join(f"{expression} = {value}" for _, expression, value, _ in self.steps)

    def short(self) -> str:
        """The answer without how it was found."""
        return f"The answer is {self.answer}."


def packs(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """Some packs of so many each, less what is given away."""
    n, each = rng.randint(2, 12), rng.randint(3, 20)
    given = rng.randint(1, n * each - 1)
    return Problem(
        f"packs {n} {each} {given}",
        f"{who} buys {n} packs of {item} with {each} {item} in each pack. {who} gives {given} {item} to {other}. "
        f"How many {item} does {who} have left?",
        f"There are {n} boxes with {each} {item} each. {other} takes {given} away. What is the number of {item} now?",
        (
            (f"{who} buys", f"{n} * {each}", n * each, item),
            (f"{who} has", f"{n * each} - {given}", n * each - given, f"{item} left"),
        ),
    )


def more(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """One has some, another has more; how many in total."""
    n, extra = rng.randint(3, 90), rng.randint(2, 60)
    return Problem(
        f"more {n} {extra}",
        f"{who} has {n} {item}. {other} has {extra} more {item} than {who}. How many {item} do they have altogether?",
        f"{other} owns {extra} {item} more than {who}, who owns {n}. Count the {item} of both.",
        (
            (f"{other} has", f"{n} + {extra}", n + extra, item),
            ("Together they have", f"{n} + {n + extra}", n + n + extra, item),
        ),
    )


def times(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """One has some, another a multiple; how many in total."""
    n, factor = rng.randint(3, 60), rng.randint(2, 6)
    return Problem(
        f"times {n} {factor}",
        f"{who} has {n} {item}. {other} has {factor} times as many {item} as {who}. "
        f"How many {item} do they have in total?",
        f"{who} collected {n} {item} and {other} collected {factor} times that number. What is the sum?",
        (
            (f"{other} has", f"{n} * {factor}", n * factor, item),
            ("In total they have", f"{n} + {n * factor}", n + n * factor, item),
        ),
    )


def share(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """Some shared equally among friends."""
    friends, each = rng.randint(2, 12), rng.randint(2, 25)
    total = friends * each
    return Problem(
        f"share {total} {friends}",
        f"{who} has {total} {item} and shares them equally among {friends} friends. "
        f"How many {item} does each friend get?",
        f"Divide {total} {item} fairly between {friends} children. What is one child's part?",
        (("Each friend gets", f"{total} / {friends}", each, item),),
    )


def earn(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """A wage by the hour over several days."""
    wage, hours, days = rng.randint(5, 25), rng.randint(2, 9), rng.randint(2, 7)
    return Problem(
        f"earn {wage} {hours} {days}",
        f"{who} earns ${wage} an hour and works {hours} hours a day. How much does {who} earn in {days} days?",
        f"At {wage} dollars an hour, {hours} hours on each of {days} days: what is {who} paid?",
        (
            (f"{who} earns", f"{wage} * {hours}", wage * hours, "dollars a day"),
            (f"In {days} days {who} earns", f"{wage * hours} * {days}", wage * hours * days, "dollars"),
        ),
    )


def spend(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """What is left after a purchase."""
    count, price = rng.randint(2, 12), rng.randint(2, 15)
    money = count * price + rng.randint(1, 80)
    return Problem(
        f"spend {money} {count} {price}",
        f"{who} has ${money} and buys {count} {item} for ${price} each. How much money does {who} have left?",
        f"From {money} dollars {who} pays for {count} {item} at {price} dollars apiece. What remains?",
        (
            (f"The {item} cost", f"{count} * {price}", count * price, "dollars"),
            (f"{who} has", f"{money} - {count * price}", money - count * price, "dollars left"),
        ),
    )


def pages(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """What is left of a book."""
    daily, days = rng.randint(5, 40), rng.randint(2, 9)
    total = daily * days + rng.randint(5, 150)
    return Problem(
        f"pages {total} {daily} {days}",
        f"{who} is reading a book of {total} pages. {who} reads {daily} pages a day for {days} days. "
        f"How many pages are left?",
        f"A book has {total} pages; {days} days long, {daily} pages are read a day. What is still unread?",
        (
            (f"{who} reads", f"{daily} * {days}", daily * days, "pages"),
            ("There are", f"{total} - {daily * days}", total - daily * days, "pages left"),
        ),
    )


def half(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """A sale and half of it again."""
    n = 2 * rng.randint(3, 90)
    return Problem(
        f"half {n}",
        f"{who} sold {n} {item} on Monday and half as many on Tuesday. How many {item} did {who} sell in both days?",
        f"Monday's sale was {n} {item}, Tuesday's only half of it. What did {who} sell overall?",
        (
            (f"On Tuesday {who} sold", f"{n} / 2", n // 2, item),
            (f"{who} sold", f"{n} + {n // 2}", n + n // 2, f"{item} in both days"),
        ),
    )


def change(rng: random.Random, who: str, other: str, item: str) -> Problem:
    """Some, then fewer, then more."""
    n = rng.randint(20, 150)
    lost, found = rng.randint(2, n - 1), rng.randint(2, 60)
    return Problem(
        f"change {n} {lost} {found}",
        f"{who} had {n} {item}, lost {lost} of them and then bought {found} more. How many {item} does {who} have now?",
        f"Begin with {n} {item}. Take away {lost}, then add {found}. What does {who} end with?",
        (
            (f"{who} had", f"{n} - {lost}", n - lost, f"{item} after the loss"),
            (f"Now {who} has", f"{n - lost} + {found}", n - lost + found, item),
        ),
    )


KINDS: tuple[Callable[[random.Random, str, str, str], Problem], ...] = (
    packs,
    more,
    times,
    share,
    earn,
    spend,
    pages,
    half,
    change,
)


def draw_problem(rng: random.Random) -> Problem:
    """Draw a kind, two people, an item and the numbers."""
    who, other = rng.sample(NAMES, 2)
    return rng.choice(KINDS)(rng, who, other, rng.choice(ITEMS))
