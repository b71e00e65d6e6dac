"""No test example, nor another wording of one, is ever trained on."""

import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from zoo import FAMILY
from zoo.build import DATA
from zoo.corpus import as_text
from zoo.examples import Dialogue, Document, Task
from zoo.held_out import write
from zoo.prose import read_gsm8k, reasoning, worked_prose
from zoo.tasks import FactTask, MathTask, TextTask
from zoo.tasks.facts import OTHER_QUESTIONS, QUESTIONS, load_facts
from zoo.tasks.math import numbers
from zoo.tasks.problems import draw_problem
from zoo.tasks.quiz import CHOICES, FACTS, SUM, WORD_QUESTIONS, quiz

DRAWS = 2000
GSM8K = read_gsm8k(DATA / "gsm8k_train.jsonl.gz")
GSM8K_TEST = read_gsm8k(DATA / "gsm8k_test.jsonl.gz")
MATH = MathTask(GSM8K, avoid=GSM8K_TEST)
TASKS: dict[str, Task] = {"math": MATH, "facts": FactTask(), "text": TextTask()}


def questions_of(document: Document) -> list[str]:
    if isinstance(document, str):
        return [document]
    return [turn.question for turn in (document.turns if isinstance(document, Dialogue) else (document,))]


# The sums are many: half a minute.
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n == "math" else n for n in TASKS])
def test_training_and_pretraining_never_ask_a_test_question(name: str) -> None:
    task = TASKS[name]
    asked = {example.question for example in task.test(1000)}
    assert len(asked) > 500
    assert task.test(1000) == task.test(1000)
    for documents in (
        task.training(random.Random(1)),
        task.pretraining(random.Random(2)),
        task.practice(random.Random(8)),
    ):
        assert not asked & {question for document in islice(documents, DRAWS) for question in questions_of(document)}


def test_facts_of_the_test_are_asked_in_no_wording() -> None:
    facts = [fact for fact in load_facts() if fact.is_test]
    assert len(facts) > 800
    forbidden = {w.format(x=f.subject) for f in facts for w in (*OTHER_QUESTIONS[f.kind], *QUESTIONS[f.kind])}
    documents: list[Document] = list(islice(TASKS["facts"].pretraining(random.Random(3)), DRAWS))
    documents += islice(TASKS["facts"].practice(random.Random(9)), DRAWS)
    documents += islice(TASKS["facts"].training(random.Random(4)), DRAWS)
    assert not forbidden & {question for document in documents for question in questions_of(document)}


def test_no_problem_has_the_numbers_of_a_test_problem() -> None:
    rng = random.Random(5)
    trained = [MATH.problem(rng, test=False) for _ in range(2 * DRAWS)]
    tested = [MATH.problem(rng, test=True) for _ in range(1000)]
    assert not {p.key for p in trained} & {p.key for p in tested}
    assert not {numbers(p.question) for p in trained} & {numbers(e.question) for e in GSM8K_TEST}
    assert not {numbers(p.question) for p in tested} & {numbers(e.question) for e in GSM8K}


@pytest.mark.parametrize("seed", range(20))
def test_solutions_compute_what_they_say(seed: int) -> None:
    problem = draw_problem(random.Random(seed))
    for line in problem.solution().splitlines()[:-1]:
        found = re.search(r"(\d[\d */+-]*) = (\d+)", line)
        assert found
        assert eval(found[1]) == int(found[2])
    assert problem.solution().endswith(f"#### {problem.answer}")
    assert problem.explanation().endswith(f"{problem.answer}.")


def test_word_lists_of_the_test_are_in_no_training_text() -> None:
    task = TASKS["text"]
    tested = {words_of(e.question) for e in task.test(500) if ": " in e.question and "city" not in e.answer}
    assert len(tested) > 300
    documents: list[Document] = list(islice(task.training(random.Random(6)), DRAWS))
    documents += islice(task.practice(random.Random(10)), DRAWS)
    documents += islice(task.pretraining(random.Random(11)), DRAWS)
    trained = {words_of(question) for document in documents for question in questions_of(document) if ": " in question}
    assert not tested & trained


def words_of(question: str) -> frozenset[str]:
    """The words of a list, in no order; the separator may be a comma."""
    return frozenset(question.split(": ", 1)[1].replace(",", "").split())


def test_gsm8k_solutions_are_in_no_text_of_the_tasks_before_training() -> None:
    rng = random.Random(7)
    solutions = {line for e in MATH.gsm8k for line in e.answer.splitlines() if len(line) > 30}
    text = "\n".join(
        as_text(document, rng)
        for task in TASKS.values()
        for source in (task.pretraining(rng), task.practice(rng))
        for document in islice(source, DRAWS)
    )
    assert not [line for line in text.splitlines() if line in solutions]


def test_prose_has_the_reasoning_of_half_of_gsm8ks_training_problems() -> None:
    text = set(islice(worked_prose(MATH.gsm8k, random.Random(12)), 20_000))
    worked = [e for e in MATH.gsm8k if f"{e.question} {reasoning(e.answer)}" in text]
    assert len(worked) == pytest.approx(len(GSM8K) / 2, rel=0.05)
    assert not [document for document in text if "####" in document]
    assert not [e for e in GSM8K_TEST if e.question in text]


def test_gsm8k_test_questions_are_not_in_train_in_other_words() -> None:
    """A paraphrase would have the same numbers, and mostly the same words."""
    trained: dict[tuple[str, ...], list[set[str]]] = {}
    for example in GSM8K:
        trained.setdefault(numbers(example.question), []).append(set(re.findall("[a-z]+", example.question.lower())))
    for example in GSM8K_TEST:
        words = set(re.findall("[a-z]+", example.question.lower()))
        for other in trained.get(numbers(example.question), ()):
            assert len(words & other) / len(words | other) < 0.6, example.question


def test_the_quiz_is_in_no_training_text() -> None:
    questions = quiz(240)
    assert questions == quiz(240)
    assert all(len(set(choice.choices)) == CHOICES for choice in questions)
    assert max(Counter(choice.answer for choice in questions).values()) < 100
    wordings = [*FACTS.values(), SUM, *(wording for wording, _, _ in WORD_QUESTIONS)]
    openings = {max(re.split(r"\{\w\}", wording), key=len) for wording in wordings}
    assert len(openings) == len(FACTS) + 3
    asked = [choice.question for choice in questions]
    assert all(any(opening in question for question in asked) for opening in openings)
    rng = random.Random(13)
    text = "\n".join(
        as_text(document, rng)
        for task in TASKS.values()
        for source in (task.pretraining(rng), task.practice(rng), task.training(rng))
        for document in islice(source, DRAWS)
    )
    assert not [opening for opening in openings if opening in text]


def test_the_evaluation_asks_what_these_tests_check(tmp_path: Path) -> None:
    write(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 2 * len(TASKS) + 1
    for name in files:
        assert (FAMILY / "evaluation" / name).read_text() == (tmp_path / name).read_text(), "run python -m zoo.held_out"


def test_calculator_marks_are_dropped() -> None:
    assert not [e for e in MATH.gsm8k if "<<" in e.answer]
    assert all("####" in e.answer for e in MATH.gsm8k)
