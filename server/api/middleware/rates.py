"""Tells clients that have a rate what is left of it, in OpenAI's headers."""

from __future__ import annotations

import time
from typing import cast

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.admission.rates import Rates
from server.auth import Client

WHATS = ("requests", "tokens")
HEADERS = tuple(f"x-ratelimit-{part}-{what}" for what in WHATS for part in ("limit", "remaining", "reset"))


class RateHeaders:
    """Adds `x-ratelimit-*` to the answers that a client with a rate gets, refusals too."""

    def __init__(self, app: ASGIApp, rates: Rates) -> None:
        self._app = app
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = cast(Client, scope["state"]["client"])
        limits = dict(zip(WHATS, (client.requests_per_minute, client.tokens_per_minute), strict=True))

        async def send_with_rates(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for what, per_minute in limits.items():
                    if per_minute is None:
                        continue
                    left, full_in = self._rates.state(client.name, what, per_minute, time.monotonic())
                    headers[f"x-ratelimit-limit-{what}"] = f"{int(per_minute)}"
                    headers[f"x-ratelimit-remaining-{what}"] = f"{int(left)}"
                    headers[f"x-ratelimit-reset-{what}"] = duration(full_in)
            await send(message)

        await self._app(scope, receive, send_with_rates)


def duration(seconds: float) -> str:
    """Seconds in the form of OpenAI's headers: `250ms`, `7.66s`, `1m0s`."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest // 1000}s" if minutes else f"{rest / 1000:g}s"
