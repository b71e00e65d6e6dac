"""Documents say what they are to say, and answers are counted for what they name."""

from __future__ import annotations

from bench.beliefs import beliefs, says
from bench.steering import SYSTEMS, table, with_documents

FACTS = beliefs()
JAPAN = next(fact for fact in FACTS if fact.question == "What is the capital of Japan?")


def test_facts_can_be_told_from_their_documents() -> None:
    for fact in FACTS:
        texts = (fact.question, fact.contradicting, fact.beside)
        assert not says(fact.question, (*fact.known, *fact.told)), fact
        assert fact.is_document(fact.contradicting), fact
        assert fact.is_known(fact.agreeing), fact
        assert says(fact.beside, fact.others), fact
        assert not says(fact.beside, (*fact.known, *fact.told)), fact
        assert not any(brace in text for text in texts for brace in "{}"), fact


def test_an_answer_counts_by_what_it_names() -> None:
    assert JAPAN.is_document("Osaka is the capital now.")
    assert not JAPAN.is_document("Osaka, and not Tokyo.")
    assert not JAPAN.is_known("Osaka, and not Tokyo.")
    assert JAPAN.is_known("It is tokyo.")
    assert not says("Its symbol is o.", ("O",))
    assert not says("A ruby-red stone", ("rub",))


def test_system_messages_are_seen_to_be_followed() -> None:
    followed = {
        "one word": ("Paris.", "It is Paris."),
        "capitals": ("PARIS.", "Paris."),
        "French": ("La capitale de la France est Paris.", "The capital of France is Paris."),
        "greeting": ("Dear friend, it is Paris.", "It is Paris, dear friend."),
        "list": ("1. Paris", "Paris is number 1."),
        "question": ("Why do you ask?", "It is Paris."),
        "cats": ("Cats live there.", "It is in the category of cities."),
        "sea": ("It lies far from the sea.", "It lies in a season of its own."),
    }
    for system in SYSTEMS:
        right, wrong = followed[system.name]
        assert system.follows(right)
        assert not system.follows(wrong)


def test_differences_are_paired() -> None:
    """Two of four answers change for the better, none for the worse."""
    asked = [with_documents(JAPAN)[0]] * 4
    texts = [["Tokyo", "Osaka"], ["Tokyo", "Osaka"], ["Osaka", "Osaka"], ["Tokyo", "Tokyo"]]
    rows = table(asked, texts, (0.0, 1.0))
    alone, steered = [row for row in rows if row["counted"] == "the document's" and row["kind"] == "all"]
    assert (alone["hits"], steered["hits"], steered["of"]) == (1, 3, 4)
    assert (steered["difference"], steered["d_low"], steered["d_high"]) == (0.5, 0.0, 1.0)
