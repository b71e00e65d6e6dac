"""Presets with a shadow: when an answer is complete, how often another preset would have chosen another token of it.

The text of an answer is read once under each of the two presets, as a prompt whose logprobs are asked for. So both are
judged alike: of a sampled answer too, what differs is their likeliest next tokens (before temperature, penalties and
masks), and whatever rounding sets decoding apart from reading is in neither. One text is read at a time, where
admission has a place that nobody waits for, with a rest after it where others run; of those that come meanwhile a few
wait, and the others count as skipped.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import starmap
from operator import ne
from typing import Any, NamedTuple, cast

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind

from server.admission import Ticket
from server.api.admission import Admission
from server.api.allowed import Allowed
from server.api.completions import only_echoes
from server.api.field import FusionField
from server.api.fusion import resolve
from server.auth import ANYBODY, Client
from server.config import Config
from server.engine.client import FusionEngine
from server.engine.place import Seat, Text, place
from server.engine.settings import FusionSettings

logger = logging.getLogger(__name__)

PENDING = 8
"""Texts that may wait to be read."""
PATIENCE_SECONDS = 1.0
"""How long one waits for a place."""
PAUSE_SECONDS = 0.02
"""What an answer has to leave the process before its text is read again."""
REST = 4.0
"""How much longer than it read it rests where requests run: four fifths of the time they have the engine alone."""
LAST = 2**31
"""A priority that every request's comes before."""
FREE = 1e9
"""The weight of a client whose reading nobody charges it for."""
REASONS = ("busy", "request", "unfinished", "failed")
SIDES = ("answer", "beside")
CHANGING = ("experts", "weighting", "alpha", "alpha_max", "prompts", "parts")
"""What in a request's `fusion` makes it another preset than the one that was to be compared."""


class Scored(NamedTuple):
    """What one preset says of an answer's tokens."""

    likeliest: list[int]
    """By token, the id that was the likeliest in its place."""
    nats: float
    """-log p of all of them."""


class _Waiting(NamedTuple):
    preset: str
    client: Client
    salt: str | None
    text: Text


class _BusyError(Exception):
    """There is no place that nobody waits for."""


class Shadows:
    """The shadows of one server's presets."""

    def __init__(
        self, engine: FusionEngine, admission: Admission, config: Config, registry: CollectorRegistry = REGISTRY
    ) -> None:
        self._engine, self._admission, self._config = engine, admission, config
        self._sides = {name: _sides(name, config) for name, preset in config.presets.items() if preset.shadow}
        self._waiting: deque[_Waiting] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._metrics = _Metrics(list(self._sides), registry)

    def listen(
        self, preset: str, client: Client, request: Any
    ) -> tuple[Callable[[Seat], None], Callable[[], None]] | None:
        """What hears each sequence of a request for `preset`, and what is called at its end; `None`: it has no shadow.

        Call it when the request's `cache_salt` is settled: what its text leaves in the prefix cache is its client's.
        """
        shadow = self._config.presets[preset].shadow
        if shadow is None:
            return None
        comparable = _comparable(request)
        heard: list[Text | None] = []
        over = False

        def hear(seat: Seat) -> None:
            if random.random() < shadow.share:
                heard.append(seat.text)
            if over:  # of a client that went away
                end()

        def end() -> None:
            nonlocal over
            over = True
            while heard:
                text = heard.pop()
                if not comparable:
                    self._metrics.skip(preset, "request")
                elif text is None:
                    self._metrics.skip(preset, "unfinished")
                elif len(self._waiting) >= PENDING:
                    self._metrics.skip(preset, "busy")
                elif text.answer:
                    self._waiting.append(_Waiting(preset, client, request.cache_salt, text))
            if self._waiting and (self._reading is None or self._reading.done()):
                self._reading = asyncio.create_task(self._read_all())

        return hear, end

    async def _read_all(self) -> None:
        place.set(None)  # that of the request in whose context this task was made
        clock = asyncio.get_running_loop().time
        while self._waiting:
            await asyncio.sleep(PAUSE_SECONDS)
            began = clock()
            waiting = self._waiting.popleft()
            try:
                await self._compare(waiting)
            except _BusyError:
                self._metrics.skip(waiting.preset, "busy")
            except Exception as error:
                self._metrics.skip(waiting.preset, "failed")
                if not self._engine.errored:
                    logger.warning("An answer of '%s' could not be scored: %s", waiting.preset, error)
            if self._admission.gate.policy.running:
                await asyncio.sleep(REST * (clock() - began))

    async def _compare(self, waiting: _Waiting) -> None:
        prompt, answer = waiting.text
        # The engine takes no prompt that leaves no room for a token after it.
        ids = [*prompt, *answer][: self._engine.model_config.max_model_len - 1]
        sides = self._sides[waiting.preset]
        gate, client = self._admission.gate, waiting.client
        weight = max(map(self._admission.weight, sides))
        ticket = Ticket(client.name, FREE, LAST, tokens=(len(ids) + 1) * weight, wide=True, extra=True)
        if gate.draining:
            raise _BusyError
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await gate.enter(ticket)
        except TimeoutError:
            raise _BusyError from None
        try:
            async with asyncio.timeout(self._config.limits.request_timeout_s):
                scored = [await self._score(ids, len(prompt), side, waiting.salt) for side in sides]
        finally:
            gate.leave(ticket, 0.0)
        self._metrics.count(waiting.preset, scored)

    async def _score(self, ids: list[int], first: int, settings: FusionSettings, salt: str | None) -> Scored:
        """Read `ids` under `settings`; what follows the `first` of them is scored."""
        params = SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=1,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        settings.attach(params)
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if salt is not None:
            prompt["cache_salt"] = salt
        name = f"shadow-{uuid.uuid4().hex}"
        found: FlatLogprobs | None = None
        async for output in self._engine.generate(prompt, params, name, priority=LAST):
            found = cast(FlatLogprobs | None, output.prompt_logprobs) or found
        assert found is not None
        # In each place the text's own token comes first, and then the likeliest.
        places = found.start_indices[first:]
        return Scored([found.token_ids[at + 1] for at in places], -sum(found.logprobs[at] for at in places))


def _sides(name: str, config: Config) -> tuple[FusionSettings, FusionSettings]:
    """What a text is read under: the preset that answers, and the one beside it.

    Tokens that are generated behind a text count under the index of the preset with the shadow, which shows none.
    """
    shadow = config.presets[name].shadow
    assert shadow is not None
    allowed, index = Allowed.to(ANYBODY, config), list(config.presets).index(name)
    plain = FusionField(speculate=False)
    answer, beside = (resolve(plain, config.presets[side], config, allowed) for side in (shadow.answer, shadow.beside))
    return replace(answer, preset=index), replace(beside, preset=index)


def _comparable(request: Any) -> bool:
    """Whether the answer to a request is one of its preset's."""
    field: FusionField | None = request.fusion
    changed = field is not None and any(getattr(field, name) is not None for name in CHANGING)
    return not changed and not getattr(request, "use_beam_search", False) and not only_echoes(request)


class _Metrics:
    def __init__(self, presets: list[str], registry: CollectorRegistry) -> None:
        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(f"fusion_shadow_{name}", description, ["preset", *labels], registry=registry)

        self._answers = counter("answers", "Answers whose text was scored under the preset beside, too.")
        self._tokens = counter("tokens", "Tokens of the answers that were scored.")
        self._differing = counter("differing_tokens", "Those at which the likeliest token of the two presets differs.")
        self._nats = counter("nats", "-log p of the answers' tokens under either preset.", "side")
        self._skipped = counter("skipped", "Answers that were to be scored and were not, by reason.", "reason")
        for preset in presets:
            for family in (self._answers, self._tokens, self._differing):
                family.labels(preset)
            for side in SIDES:
                self._nats.labels(preset, side)
            for reason in REASONS:
                self._skipped.labels(preset, reason)

    def skip(self, preset: str, reason: str) -> None:
        """An answer was not scored."""
        self._skipped.labels(preset, reason).inc()

    def count(self, preset: str, scored: list[Scored]) -> None:
        """An answer was scored, in the order of `SIDES`."""
        likeliest = [each.likeliest for each in scored]
        self._answers.labels(preset).inc()
        self._tokens.labels(preset).inc(len(likeliest[0]))
        self._differing.labels(preset).inc(sum(starmap(ne, zip(*likeliest, strict=True))))
        for side, each in zip(SIDES, scored, strict=True):
            self._nats.labels(preset, side).inc(max(0.0, each.nats))
