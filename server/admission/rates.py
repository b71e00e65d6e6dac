"""How much each client may ask for per minute: token buckets that hold one minute's worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.admission.policy import AdmissionError, Reason

SECONDS = 60.0


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float

    def fill(self, per_minute: float, now: float) -> None:
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / SECONDS)
        self.at = now


class Rates:
    """Requests and tokens per minute of every client that has a limit. Times `now` as in `Policy`."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def take(self, client: str, what: str, amount: float, per_minute: float | None, now: float) -> None:
        """Take `amount` of `what` (`requests` or `tokens`) from the client's bucket.

        Raises:
            AdmissionError: the bucket does not hold as much now, or never will.
        """
        if per_minute is None:
            return
        if amount > per_minute:
            message = f"this request may need {amount:g} {what}; your key allows {per_minute:g} a minute"
            raise AdmissionError(Reason.RATE_LIMIT, message, None)
        bucket = self._buckets.setdefault((client, what), _Bucket(per_minute, now))
        bucket.fill(per_minute, now)
        if amount > bucket.level:
            wait = max(1, math.ceil((amount - bucket.level) * SECONDS / per_minute))
            message = f"your key's limit of {per_minute:g} {what} a minute is reached; try again in {wait} s"
            raise AdmissionError(Reason.RATE_LIMIT, message, wait)
        bucket.level -= amount

    def state(self, client: str, what: str, per_minute: float, now: float) -> tuple[float, float]:
        """What the client's bucket of `what` holds now, and the seconds until it is full."""
        bucket = self._buckets.get((client, what))
        if bucket is None:
            return per_minute, 0.0
        bucket.fill(per_minute, now)
        return bucket.level, (per_minute - bucket.level) * SECONDS / per_minute

    def give_back(self, client: str, what: str, amount: float, per_minute: float | None, now: float) -> None:
        """Return what was taken and not used."""
        bucket = self._buckets.get((client, what))
        if bucket is not None and per_minute is not None:
            bucket.fill(per_minute, now)
            bucket.level = min(per_minute, bucket.level + amount)
