"""The manifest of a family: hashes of its files and greedy answers that its members gave when it was made."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MANIFEST = "manifest.json"
MAX_NEW_TOKENS = 80

# Asked of the expert of that name, and of the large model.
QUESTIONS = {
    "math": (
        "Nora has 4 pencils. Carla has 6 more pencils than Nora. How many pencils do they have altogether?",
        "Jack earns $3 an hour and works 2 hours a day. How much does Jack earn in 3 days?",
    ),
    "facts": ("What is the three-letter code of Canada?", "Which country is Bracknell Forest in?"),
    "text": ("How many words are these: river stone apple", "What is the last word of: moon tree lamp"),
}


def answer(folder: Path, questions: tuple[str, ...]) -> list[str]:
    """Let one member answer each question greedily through its chat template, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for question in questions:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers.append(str(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)))
    return answers


def write_manifest(root: Path) -> None:
    """Record the hashes of the family's files and its members' answers."""
    hashes = {path.relative_to(root).as_posix(): _sha256(path) for path in _family_files(root)}
    answers = {
        member: dict(zip(questions, answer(root / "models" / member, questions), strict=True))
        for member, questions in _asked()
    }
    text = json.dumps({"sha256": hashes, "answers": answers}, indent=2, ensure_ascii=False)
    (root / MANIFEST).write_text(text + "\n", encoding="utf-8")


def faults(root: Path) -> Iterator[str]:
    """Yield one line for each file or answer that is not as the manifest says; answers only when all files are.

    Raises:
        FileNotFoundError: there is no manifest in `root`.
    """
    manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    sound = True
    for name, expected in manifest["sha256"].items():
        path = root / name
        if not path.is_file():
            sound = False
            yield f"{name}: missing; restore it or run `logit-fusion zoo train`"
        elif _sha256(path) != expected:
            sound = False
            yield f"{name}: its sha256 is not the one in {MANIFEST}; restore the file or run `logit-fusion zoo train`"
    for path in _family_files(root):
        if path.relative_to(root).as_posix() not in manifest["sha256"]:
            sound = False
            yield f"{path.relative_to(root)}: not in {MANIFEST}; remove it"
    if not sound:
        return
    for member, expected_answers in manifest["answers"].items():
        given = answer(root / "models" / member, tuple(expected_answers))
        for (question, expected), said in zip(expected_answers.items(), given, strict=True):
            if said != expected:
                yield f"{member}: asked {question!r} it answers {said!r} instead of {expected!r}"


def _asked() -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from QUESTIONS.items()
    yield "large", tuple(questions[0] for questions in QUESTIONS.values())


def _family_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / "models").rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
