"""How many tokens to draft ahead: what the last steps gave, divided by what they took.

With K drafts a step of n requests gives each of them

    g(K) = 1 + kept_1 + ... + kept_K   tokens,   kept_j = the share of requests whose first j drafts were accepted,

and takes t(n, K) seconds. Both are measured while serving, t by the number of requests at once and kept over all of
them, and the K of the greatest g(K) / t(n, K) is taken, 0 among them. Prompts and load change, so what is not in use is
tried again now and then; the more that costs, the less often.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

_SAMPLES = 4
"""A time of fewer is not known yet."""
_REMEMBERED = 15
"""Times of which the median counts: one slow step changes nothing."""
_MEMORY, _DOUBTED = 96, 4
"""Requests' steps over which kept is averaged, and as how many of them counts what is about to be tried again."""
_GAIN, _START_GAIN = 1.03, 1.1
"""By so much another number must be faster to be taken, and by so much where nothing is drafted: to be safe of it."""
_BLOCK = 1 + _SAMPLES
"""Steps with one number: the first is a change, which gives no time."""
_TRIAL_BLOCKS = 13
"""Between two trials at least; more where these would take more than about `_TRIAL_SHARE` of the time."""
_TRIAL_SHARE = 0.01
_ATTEMPTS = 3
"""Blocks that are given to a number whose time is not known, until nothing is drafted for a while."""


class Pace:
    """Chooses the number of drafts of the next step.

    Args:
        most: The greatest number.
    """

    def __init__(self, most: int) -> None:
        self._kept = _Kept(most)
        self._loads: dict[int, _Load] = {}
        self._number, self._left = most, 0

    def choose(self, requests: int) -> int:
        """How many tokens to draft ahead in a step of so many requests."""
        if not self._left:
            self._number, self._left = self._load(requests).plan(), _BLOCK
        self._left -= 1
        return self._number

    def took(self, requests: int, drafts: int, seconds: float) -> None:
        """A step of decoding alone that verified and made so many drafts for each request that speculates."""
        self._load(requests).times[drafts].append(seconds)

    def gave(self, drafts: int, accepted: Sequence[int]) -> None:
        """Of each request of a step: how many of up to `drafts` drafts were accepted; 0 where nothing drafts for it."""
        for number in accepted:
            self._kept.add(drafts, number)

    def _load(self, requests: int) -> _Load:
        """What is known of so many requests; at first, that it pays less than with fewer, where that does not pay."""
        number = _class_of(requests)
        if number not in self._loads:
            fewer = [other for other in self._loads if other < number]
            waits = self._loads[max(fewer)].waits if fewer else 0
            self._loads[number] = _Load(self._kept, waits)
        return self._loads[number]


def _class_of(requests: int) -> int:
    """Loads that share their times: each number up to three, then two for each doubling."""
    return round(2 * math.log2(max(1, requests)))


class _Kept:
    """The share of requests whose first j drafts were accepted, for each j from 1 on."""

    def __init__(self, most: int) -> None:
        self.shares = [1.0] * most
        self._seen = [0] * most

    def add(self, drafts: int, accepted: int) -> None:
        for place in range(drafts):
            self._seen[place] = min(self._seen[place] + 1, _MEMORY)
            self.shares[place] += ((accepted > place) - self.shares[place]) / self._seen[place]

    def doubt(self, drafts: int) -> None:
        """What is known beyond so many drafts is old."""
        self._seen[drafts:] = [min(number, _DOUBTED) for number in self._seen[drafts:]]


class _Load:
    """What is known of steps of about so many requests."""

    def __init__(self, kept: _Kept, waits: int) -> None:
        self.waits = waits
        """Blocks without drafts until these are tried again; 0 where they pay."""
        self._kept = kept
        self._until_attempt = waits
        self._now = len(kept.shares)
        self._ends = (self._now, 0)
        self.times: list[deque[float]] = [deque(maxlen=_REMEMBERED) for _ in range(self._now + 1)]
        self._attempts = 0
        self._trial: list[int] = []
        """Numbers of the next blocks, whatever is known."""
        self._until_trial: int | None = None

    def plan(self) -> int:
        """The number of the next block."""
        if self._trial:
            return self._trial.pop()
        for number in self._ends:
            if len(self.times[number]) < _SAMPLES:
                self._until_attempt -= 1
                return 0 if self._until_attempt > 0 else self._attempt(number)
        seconds = self._seconds()
        rates = self._rates(seconds)
        best = max(range(len(rates)), key=rates.__getitem__)
        if rates[best] > (_GAIN if self._now else _START_GAIN) * rates[self._now]:
            self._now = best
        others = [number for number in self._ends if number != self._now]
        if self._until_trial is None:
            # What they take longer, and do not make good by what they give.
            lost = sum(seconds[number] / seconds[self._now] - rates[number] / rates[self._now] for number in others)
            self._until_trial = max(_TRIAL_BLOCKS, round(lost / _TRIAL_SHARE))
            self.waits = 0 if self._now else self._until_trial
        self._until_trial -= 1
        if self._until_trial > 0:
            return self._now
        self._trial, self._until_trial = others, None
        self._kept.doubt(self._now)
        return self._trial.pop()

    def _attempt(self, number: int) -> int:
        """Try a number whose time is not known; where no step tells it, as prompts are read in all, draft nothing."""
        self._attempts = (self._attempts + 1) % (2 * _ATTEMPTS + _TRIAL_BLOCKS)
        return number if self._attempts < 2 * _ATTEMPTS else 0

    def _rates(self, seconds: Sequence[float]) -> list[float]:
        """A request's tokens per second, by the number of drafts."""
        tokens, rates = 1.0, []
        for share, time in zip([0.0, *self._kept.shares], seconds, strict=True):
            tokens += share
            rates.append(tokens / time)
        return rates

    def _seconds(self) -> list[float]:
        """A step's time, by the number of drafts; on a line between its neighbours where it is not known."""
        known = [number for number, times in enumerate(self.times) if len(times) >= _SAMPLES]
        found = []
        for number in range(len(self.times)):
            low = max(k for k in known if k <= number)
            high = min(k for k in known if k >= number)
            below, above = median(self.times[low]), median(self.times[high])
            found.append(below if low == high else below + (above - below) * (number - low) / (high - low))
        # More drafts never take less; a number whose few times were disturbed is not shunned for good.
        return [min(found[number:]) for number in range(len(found))]
