"""Whether the members read the same tokens: one id, one text, the same special ids, logits for every id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.engine.members import Member, Members
from server.errors import ConfigError

SHOWN = 3
SPECIAL = ("bos", "eos", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as far as members must agree on it."""

    texts: Mapping[int, str]
    special: Mapping[str, int | None]

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.texts, default=-1) + 1


def read_vocabularies(members: Members) -> dict[str, Vocabulary]:
    """Return by name the tokenizers of the members that have their own: an adapter may read the base's, as merges do.

    Raises:
        ConfigError: a model has no tokenizer, or one cannot be loaded.
    """
    return {
        member.name: _read_vocabulary(member)
        for member in members.all
        if member.kind == "model" or (member.kind == "adapter" and _has_tokenizer(member))
    }


def check_vocabularies(members: Members, vocabularies: Mapping[str, Vocabulary]) -> None:
    """Check that members agree on their tokenizers, and have logits for all of their ids.

    Raises:
        ConfigError: a tokenizer differs, or a member has no logits for some of the ids.
    """
    large = vocabularies[members.large.name]
    for member in members.all[1:]:
        if member.name in vocabularies:
            _compare(members.large, large, member, vocabularies[member.name])
    for member in members.all:
        rows = member.vocabulary_rows
        if rows < large.size:
            raise ConfigError(
                f"{member.where}: the model has logits for {rows} ids, but the tokenizer has {large.size}; the first "
                f"one past the end is id {rows} ({large.texts.get(rows, '')!r}). Resize the model's embeddings, or "
                "remove the added tokens from the large model's tokenizer"
            )


def _read_vocabulary(member: Member) -> Vocabulary:
    from transformers import AutoTokenizer

    if not _has_tokenizer(member):
        raise ConfigError(
            f"{member.where}: {member.folder} has no tokenizer; if the model was trained with the large model's, copy "
            "its tokenizer files there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(member.folder)
        texts = {index: token for token, index in tokenizer.get_vocab().items()}
        special = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    except Exception as error:  # tokenizer libraries raise errors of every kind, some of Rust
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{member.where}: the tokenizer in {member.folder} cannot be loaded: {reason}") from None
    return Vocabulary(texts, special)


def _has_tokenizer(member: Member) -> bool:
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
    return any((member.folder / name).is_file() for name in files)


def _compare(large: Member, ours: Vocabulary, member: Member, theirs: Vocabulary) -> None:
    pair = f"{member.where}: its tokenizer differs from the large model's"
    shorter = min(ours.size, theirs.size)
    differing = [i for i in range(shorter) if ours.texts.get(i) != theirs.texts.get(i)]
    if differing:
        shown = "; ".join(
            f"id {i} is {_show(ours.texts.get(i))} in {large.name} and {_show(theirs.texts.get(i))} in {member.name}"
            for i in differing[:SHOWN]
        )
        more = f" (and {len(differing) - SHOWN} more ids)" if len(differing) > SHOWN else ""
        raise ConfigError(f"{pair}: {shown}{more}. All members must come from models that share one tokenizer")
    for name in SPECIAL:
        one, other = ours.special[name], theirs.special[name]
        # A tokenizer that names no such token contradicts nobody.
        if one is not None and other is not None and one != other:
            raise ConfigError(
                f"{pair}: {name} is id {one} ({_show(ours.texts.get(one))}) in {large.name} and id {other} "
                f"({_show(theirs.texts.get(other))}) in {member.name}. Set {name}_token alike in both "
                "tokenizer_config.json"
            )


def _show(text: str | None) -> str:
    return "unused" if text is None else repr(text)
