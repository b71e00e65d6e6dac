"""No test example, nor another wording of one, is ever trained on."""

import random
import re
from itertools import islice

import pytest

from zoo.build import DATA
from zoo.corpus import as_text
from zoo.examples import Document, Example, Task
from zoo.prose import read_gsm8k
from zoo.tasks import FactTask, MathTask, TextTask
from zoo.tasks.facts import OTHER_QUESTIONS, QUESTIONS, load_facts
from zoo.tasks.math import numbers
from zoo.tasks.problems import draw_problem

DRAWS = 2000
GSM8K = read_gsm8k(DATA / "gsm8k_train.jsonl.gz")
GSM8K_TEST = read_gsm8k(DATA / "gsm8k_test.jsonl.gz")
MATH = MathTask(GSM8K, avoid=GSM8K_TEST)
TASKS: dict[str, Task] = {"math": MATH, "facts": FactTask(), "text": TextTask()}


def question_of(document: Document) -> str:
    return document if isinstance(document, str) else document.question


@pytest.mark.parametrize("name", TASKS)
def test_training_and_pretraining_never_ask_a_test_question(name: str) -> None:
    task = TASKS[name]
    asked = {example.question for example in task.test(1000)}
    assert len(asked) > 500
    assert task.test(1000) == task.test(1000)
    assert not asked & {question_of(document) for document in islice(task.training(random.Random(1)), DRAWS)}
    assert not asked & {question_of(document) for document in islice(task.pretraining(random.Random(2)), DRAWS)}


def test_facts_of_the_test_are_asked_in_no_wording() -> None:
    facts = [fact for fact in load_facts() if fact.is_test]
    assert len(facts) > 800
    forbidden = {w.format(x=f.subject) for f in facts for w in (*OTHER_QUESTIONS[f.kind], *QUESTIONS[f.kind])}
    documents: list[Document] = list(islice(TASKS["facts"].pretraining(random.Random(3)), DRAWS))
    documents += islice(TASKS["facts"].training(random.Random(4)), DRAWS)
    assert not forbidden & {document.question for document in documents if isinstance(document, Example)}


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


def test_word_lists_of_the_test_are_in_no_training_question() -> None:
    task = TASKS["text"]
    tested = {frozenset(e.question.split(": ")[1].split()) for e in task.test(500) if "JSON" not in e.question}
    trained = {
        frozenset(e.question.split(": ")[1].split())
        for e in islice(task.training(random.Random(6)), DRAWS)
        if isinstance(e, Example) and "JSON" not in e.question
    }
    assert not tested & trained


def test_gsm8k_solutions_are_in_no_pretraining_text() -> None:
    rng = random.Random(7)
    solutions = {line for e in MATH.gsm8k for line in e.answer.splitlines() if len(line) > 30}
    text = "\n".join(
        as_text(document, rng) for task in TASKS.values() for document in islice(task.pretraining(rng), DRAWS)
    )
    assert not [line for line in text.splitlines() if line in solutions]


def test_gsm8k_test_questions_are_not_in_train() -> None:
    tested = {" ".join(e.question.lower().split()) for e in GSM8K_TEST}
    assert not tested & {" ".join(e.question.lower().split()) for e in GSM8K}


def test_calculator_marks_are_dropped() -> None:
    assert not [e for e in MATH.gsm8k if "<<" in e.answer]
    assert all("####" in e.answer for e in MATH.gsm8k)
