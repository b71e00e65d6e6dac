"""Keeps what one key's requests leave in the prefix cache from being found by another's."""

from __future__ import annotations

import hashlib

from server.auth import ANYBODY, Client


def cache_salt(client: Client, given: str | None, shared: bool) -> str | None:
    """The salt of a request's blocks in the prefix cache: the client's own, and the one that its request gives.

    Without it, how fast an answer begins, or how many tokens of a prompt were found, tells whether somebody else has
    sent the same beginning. There is one cache, `shared`, where the configuration says so or nobody has a key.
    """
    if shared or client is ANYBODY:
        return given
    # Hashed, so that no salt that a client gives is another's, and as short as vLLM wants it.
    return hashlib.sha256(f"{client.name}\0{given or ''}".encode("utf-8", "surrogatepass")).hexdigest()
