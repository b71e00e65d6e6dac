"""The fields that rule tokens out, and whether together they leave any."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.tokenizers import TokenizerLike

from server.api.errors import RequestError


def field_of(request: Any, name: str) -> Any:
    """A field of a request's model; further ones, which some of vLLM's models keep unread, are none."""
    return getattr(request, name) if name in type(request).model_fields else None


@dataclass(frozen=True)
class Masks:
    """What a request allows and bans at the first token of its answer; `fields` do so."""

    allowed: frozenset[int] | None
    banned: frozenset[int]
    fields: tuple[str, ...]

    def first_token(self) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
        """The ids that are allowed, all if None, and those that are banned."""
        return None if self.allowed is None else tuple(sorted(self.allowed)), tuple(sorted(self.banned))


def masks_of(request: Any, tokenizer: TokenizerLike) -> Masks:
    """The masks of a request.

    Raises:
        RequestError: they leave nothing.
    """
    allowed = field_of(request, "allowed_token_ids")
    bans = {
        "bad_words": _single_tokens(field_of(request, "bad_words") or (), tokenizer),
        "min_tokens": _stops(request, tokenizer) if field_of(request, "min_tokens") else frozenset(),
    }
    fields = ["allowed_token_ids"] if allowed else []
    fields += [name for name, ids in bans.items() if ids]
    banned = frozenset().union(*bans.values())
    if allowed and banned.issuperset(allowed):
        guilty = [name for name, ids in bans.items() if ids.intersection(allowed)]
        raise RequestError(
            f"allowed_token_ids and {' and '.join(guilty)} contradict each other: no token is left", "allowed_token_ids"
        )
    return Masks(frozenset(allowed) if allowed else None, banned, tuple(fields))


def _single_tokens(words: Iterable[str], tokenizer: TokenizerLike) -> frozenset[int]:
    words = [word for word in words if word]
    if not words:
        return frozenset()
    # vLLM's own reading of the words.
    params = SamplingParams(bad_words=words)
    try:
        params.update_from_tokenizer(tokenizer)
    except VLLMValidationError:
        return frozenset()  # it refuses them itself, when it comes to them
    return frozenset(ids[0] for ids in params.bad_words_token_ids or () if len(ids) == 1)


def _stops(request: Any, tokenizer: TokenizerLike) -> frozenset[int]:
    stops = set(field_of(request, "stop_token_ids") or ())
    return frozenset(stops | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()))
