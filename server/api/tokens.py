"""A token as text for people: with its leading space, a special one by its name, a lone byte in hex."""

from __future__ import annotations

from functools import lru_cache

from transformers.convert_slow_tokenizer import bytes_to_unicode
from vllm.tokenizers import TokenizerLike
from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Byte-level tokenizers write each byte as one printable character.
BYTE_OF: dict[str, int] = {c: byte for byte, c in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


@lru_cache(maxsize=2**16)
def token_text(tokenizer: TokenizerLike, token_id: int) -> str:
    """The token's text, never empty for an id of the vocabulary.

    Bytes that are no character by themselves become `<0xE4>`, an id past the tokenizer's last (padding) `<id 32001>`.
    """
    (piece,) = tokenizer.convert_ids_to_tokens([token_id]) if token_id < len(tokenizer) else [None]
    if not piece:
        return f"<id {token_id}>"
    text = convert_ids_list_to_tokens(tokenizer, [token_id])[0]
    if text and REPLACEMENT not in text:
        return text
    if all(character in BYTE_OF for character in piece):
        try:
            return bytes(BYTE_OF[character] for character in piece).decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{BYTE_OF[character]:02X}>" for character in piece)
    return piece
