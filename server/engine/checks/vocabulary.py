"""Whether the members read the same tokens: one id, one text, and logits for every id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.engine.members import Member, Members
from server.errors import ConfigError

SHOWN = 3


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as far as members must agree on it."""

    texts: Mapping[int, str]
    added: frozenset[int]
    """Ids of tokens that were added to what was learnt from text: special ones, and those of chat templates."""
    special: Mapping[str, int | None]
    """The ids of `bos`, `eos` and `pad`."""
    starts_with: int | None
    """The id that it sets before every text."""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.texts, default=-1) + 1

    def show(self, token_id: int) -> str:
        """An id and its text."""
        text = self.texts.get(token_id)
        return f"id {token_id}" if text is None else f"id {token_id} ({text!r})"


def read_vocabularies(members: Members) -> dict[str, Vocabulary]:
    """Return by name the tokenizers of the members that have their own: an adapter may read the base's, as merges do.

    Raises:
        ConfigError: a model has no tokenizer, or one cannot be loaded.
    """
    return {
        member.name: _read_vocabulary(member)
        for member in members.all
        if member.kind == "model" or (member.kind == "adapter" and not member.spare and _has_tokenizer(member))
    }


def check_vocabularies(members: Members, vocabularies: Mapping[str, Vocabulary]) -> list[str]:
    """Check that members agree on their tokenizers and have logits for all ids. Return remarks that are no faults.

    What training adds to a tokenizer is no fault: an instruct model has another `eos` than the model that it came
    from, and ids that were unused before.

    Raises:
        ConfigError: a tokenizer differs, or a member has no logits for some of the ids.
    """
    large = vocabularies[members.large.name]
    remarks = []
    for member in members.all[1:]:
        if member.name in vocabularies:
            _compare(members.large, large, member, vocabularies[member.name])
            remarks += _remarks(members.large, large, member, vocabularies[member.name])
    for member in members.all:
        rows = member.vocabulary_rows
        if rows < large.size:
            raise ConfigError(
                f"{member.where}: the model has logits for {rows} ids, but the tokenizer has {large.size}; the first "
                f"one past the end is id {rows} ({large.texts.get(rows, '')!r}). Resize the model's embeddings, or "
                "remove the added tokens from the large model's tokenizer"
            )
    return remarks


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
        special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        first = tokenizer("")["input_ids"][:1]
    except Exception as error:  # tokenizer libraries raise errors of every kind, some of Rust
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{member.where}: the tokenizer in {member.folder} cannot be loaded: {reason}") from None
    starts_with = first[0] if first and first[0] == special["bos"] else None
    return Vocabulary(texts, frozenset(tokenizer.added_tokens_decoder), special, starts_with)


def _has_tokenizer(member: Member) -> bool:
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
    return any((member.folder / name).is_file() for name in files)


def _compare(large: Member, ours: Vocabulary, member: Member, theirs: Vocabulary) -> None:
    pair = f"{member.where}: its tokenizer differs from the large model's"
    differing = [
        i
        for i in sorted(ours.texts.keys() & theirs.texts.keys())
        # Where both were added, one renamed a token that was kept free for that.
        if ours.texts[i] != theirs.texts[i] and not (i in ours.added and i in theirs.added)
    ]
    if differing:
        shown = "; ".join(
            f"id {i} is {ours.texts[i]!r} in {large.name} and {theirs.texts[i]!r} in {member.name}"
            for i in differing[:SHOWN]
        )
        more = f" (and {len(differing) - SHOWN} more ids)" if len(differing) > SHOWN else ""
        raise ConfigError(f"{pair}: {shown}{more}. All members must come from models that share one tokenizer")
    one, other = ours.starts_with, theirs.starts_with
    if one is not None and other is not None and one != other:
        raise ConfigError(
            f"{pair}: it sets {theirs.show(other)} before every text, and the large model's sets {ours.show(one)}. "
            "Set bos_token alike in both tokenizer_config.json"
        )


def _remarks(large: Member, ours: Vocabulary, member: Member, theirs: Vocabulary) -> list[str]:
    remarks = []
    both = ours.texts.keys() & theirs.texts.keys()
    renamed = sorted(i for i in both if ours.texts[i] != theirs.texts[i])
    if renamed:
        listed = _list(f"{theirs.show(i)} is {ours.texts[i]!r} in {large.name}" for i in renamed)
        remarks.append(f"{member.name}: its tokenizer gives added tokens other texts: {listed}")
    new = sorted(theirs.texts.keys() - both)
    if new:
        listed = _list(map(theirs.show, new))
        remarks.append(
            f"{member.name}: its tokenizer has {len(new):,} ids that {large.name}'s has not, which no prompt holds: "
            f"{listed}"
        )
    for name, meaning in (("eos", ""), ("pad", ", which nothing here uses")):
        one, other = ours.special[name], theirs.special[name]
        if one is not None and other is not None and one != other:
            remarks.append(
                f"{member.name}: its {name} is {theirs.show(other)}, {large.name}'s is {ours.show(one)}{meaning}"
            )
    return remarks


def _list(shown: Iterable[str]) -> str:
    parts = list(shown)
    return ", ".join(parts[:SHOWN]) + (f" and {len(parts) - SHOWN:,} more" if len(parts) > SHOWN else "")
