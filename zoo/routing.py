"""Prompts of the demo family by the expert that they are for: what its router learns from, and what it never saw."""

import json
import random
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from zoo.examples import Task
from zoo.prose import GSM8K_TEST, GSM8K_TRAIN, docstrings, read_gsm8k
from zoo.tasks import FactTask, MathTask, TextTask, problems
from zoo.tasks.facts import OTHER_QUESTIONS, load_facts
from zoo.tasks.text import OPERATIONS, OWN_OPERATIONS
from zoo.words import ITEMS, NAMES, WORDS

NONE = "none"
LEARNED, GSM8K, PROSE = 150, 100, 150
"""Questions of each task, word problems of GSM8K beside them, and sentences that are no question of any."""
JUDGED = 150
LONGEST_SENTENCE = 200

# Of no task; nothing of the kind is learned.
EVERYDAY = (
    "Who are you?",
    "Tell me a joke about cats.",
    "Write a poem on the sea.",
    "Translate 'good morning' into French.",
    "Summarise the plot of Hamlet.",
    "How do I bake bread?",
    "What should I wear in winter?",
    "Explain photosynthesis to a child.",
    "Recommend a film for tonight.",
    "My laptop does not start, what can I do?",
    "Write an email to my boss asking for a day off.",
    "Why is the sky blue?",
    "Is it healthy to drink coffee every day?",
    "Give me tips for a job interview.",
    "What is love?",
    "Plan a weekend trip for two.",
    "Continue the story: Once upon a time there was a dragon",
    "def fibonacci(n):",
    "Fix this code: for i in range(10) print(i)",
    "What happened in 1969?",
    "Describe the taste of mango.",
    "How does a car engine work?",
    "Give me a name for my dog.",
    "Are aliens real?",
    "What does the word serendipity mean?",
    "Write a haiku.",
    "Hello!",
    "Thanks, that helped a lot.",
    "How can I sleep better?",
    "Compare Python and Java.",
)

Prompt = tuple[str, str]
"""A prompt, and the expert that it is for."""


def learned(data: Path) -> list[Prompt]:
    """The tasks' training questions, GSM8K's, and for no expert first sentences of Python's documentation."""
    problems_read = read_gsm8k(data / GSM8K_TRAIN)
    tasks: dict[str, Task] = {
        "math": MathTask(problems_read, avoid=read_gsm8k(data / GSM8K_TEST)),
        "facts": FactTask(),
        "text": TextTask(),
    }
    found = [
        (example.question, name)
        for name, task in tasks.items()
        for example in islice(task.training(random.Random(f"{name} routing")), LEARNED)
    ]
    rng = random.Random("prose routing")
    found += [(example.question, "math") for example in rng.sample(problems_read, GSM8K)]
    sentences = (re.split(r"(?<=[.!?])\s", " ".join(text.split()))[0] for text in rng.sample(docstrings(), PROSE))
    return found + [(sentence[:LONGEST_SENTENCE], NONE) for sentence in sentences]


def judged(data: Path) -> dict[str, list[Prompt]]:
    """By kind: the tasks' questions in wordings that neither experts nor router saw, GSM8K's test, everyday prompts."""
    rng = random.Random("judged routing")
    facts = [fact for fact in load_facts() if fact.is_test]
    reworded = []
    for fact in rng.sample(facts, JUDGED):
        wording = rng.choice(OTHER_QUESTIONS[fact.kind])
        reworded.append((wording.format(x=fact.subject, y=fact.value), "facts"))
    for _ in range(JUDGED):
        who, other = rng.sample(NAMES, 2)
        reworded.append((rng.choice(problems.KINDS)(rng, who, other, rng.choice(ITEMS)).other, "math"))
    for _ in range(JUDGED):
        operation = OPERATIONS[rng.choice(OWN_OPERATIONS)]
        words = rng.sample(list(WORDS), rng.randint(2, 4))
        a, b = operation.draw(rng, words)
        reworded.append((rng.choice(operation.others).format(w=" ".join(words), a=a, b=b), "text"))
    gsm8k = read_gsm8k(data / GSM8K_TEST)[:JUDGED]
    return {
        "new-wordings": reworded,
        "gsm8k": [(example.question, "math") for example in gsm8k],
        "everyday": [(text, NONE) for text in EVERYDAY],
    }


def write(prompts: Iterable[Prompt], file: Path) -> None:
    """Write prompts as the lines that `logit-fusion route` reads."""
    lines = (json.dumps({"prompt": prompt, "expert": expert}, ensure_ascii=False) for prompt, expert in prompts)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
