"""From a request to its claim on the engine: what it may ask, and who pays."""

from __future__ import annotations

import time

from fastapi import Request
from pydantic import BaseModel
from vllm.config import VllmConfig

from server.admission import AdmissionError, Gate, Policy, Rates
from server.api.claim import Claim
from server.api.errors import RequestError
from server.api.masks import field_of
from server.auth import Client
from server.engine.checks import Report
from server.engine.settings import FusionSettings

# The fields that bound the output, by the API's name for it.
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# vLLM tokenizes them where it serves everybody else, before it counts that they are 1,024 tokens at most.
MAX_BAD_WORDS_CHARACTERS = 16 * 1024


class Admission:
    """What every request passes before vLLM's serving classes see it."""

    def __init__(self, report: Report, vllm_config: VllmConfig) -> None:
        config = report.config
        self._limits = config.limits
        self._max_model_len = vllm_config.model_config.max_model_len
        parameters = {each.member.name: each.parameters for each in report.reports}
        self._large = parameters[report.members.large.name]
        self._small = {number: parameters[member.name] for number, member in report.members.numbered.items()}
        max_running = config.admission.max_running or vllm_config.scheduler_config.max_num_seqs
        # The heaviest requests there are fill the KV cache too.
        kv_tokens = (vllm_config.cache_config.kv_cache_size_tokens or 0) or max_running * self._max_model_len
        heaviest = (self._large + sum(self._small.values())) / self._large
        self.gate = Gate(
            Policy(
                max_running=max_running,
                max_running_tokens=config.admission.max_running_tokens or kv_tokens * heaviest,
                max_queued=config.admission.max_queued,
                queue_timeout_s=config.admission.queue_timeout_s,
                aging_s=config.admission.aging_s,
            )
        )
        self.rates = Rates()

    def claim(self, client: Client, request: BaseModel, raw_request: Request, settings: FusionSettings) -> Claim:
        """Check what a request asks for against the limits, and begin its way to a place.

        Raises:
            RequestError: a field is above its limit.
            AdmissionError: there is no room, or the client's rate is used up.
        """
        self._check_fields(request)
        self.admit(client)
        return Claim(self, client, request, raw_request, self.weight(settings))

    def admit(self, client: Client) -> None:
        """Refuse a request that needs no place when one that does would be refused too.

        Raises:
            AdmissionError: the server drains, the queue is full, or the client's rate is used up.
        """
        self.gate.check(client.name, client.weight)
        self._take(client, "requests", 1.0, client.requests_per_minute)

    def _check_fields(self, request: BaseModel) -> None:
        limits = self._limits
        caps = [(name, limits.max_tokens) for name in MAX_TOKENS_FIELDS] + [("n", limits.max_n)]
        for name, cap in caps:
            value = getattr(request, name, None)
            if cap is not None and isinstance(value, int) and value > cap:
                raise RequestError(f"{name}: at most {cap} is allowed here, not {value}", name)
        words: list[str] | None = field_of(request, "bad_words")
        if words and (characters := sum(map(len, words))) > MAX_BAD_WORDS_CHARACTERS:
            raise RequestError(
                f"bad_words: at most {MAX_BAD_WORDS_CHARACTERS:,} characters are allowed in all, not {characters:,}",
                "bad_words",
            )
        prompts = getattr(request, "prompt", None)
        if (
            isinstance(prompts, list)
            and not isinstance(next(iter(prompts), 0), int)
            and len(prompts) > limits.max_prompts
        ):
            raise RequestError(
                f"prompt: at most {limits.max_prompts} prompts are allowed in one request, not {len(prompts)}", "prompt"
            )

    def weight(self, settings: FusionSettings) -> float:
        """Parameters of the members that a request runs, relative to the large model's."""
        return (self._large + sum(self._small[member] for member in settings.members_run)) / self._large

    def _take(self, client: Client, what: str, amount: float, per_minute: float | None) -> None:
        try:
            self.rates.take(client.name, what, amount, per_minute, time.monotonic())
        except AdmissionError as error:
            self.gate.count(error)
            raise

    def take_tokens(self, client: Client, tokens: float) -> None:
        """Charge a request's largest size to its client's rate.

        Raises:
            AdmissionError: the rate is used up.
        """
        self._take(client, "tokens", tokens, client.tokens_per_minute)

    def give_back_tokens(self, client: Client, tokens: float) -> None:
        """Correct the charge at the end."""
        self.rates.give_back(client.name, "tokens", tokens, client.tokens_per_minute, time.monotonic())

    def worst_case(self, request: BaseModel, body_bytes: int) -> int:
        """The most tokens that one sequence of a request can have: a token is at least one byte of its body."""
        asked = next((value for name in MAX_TOKENS_FIELDS if (value := getattr(request, name, None))), None)
        return min(self._max_model_len, body_bytes + asked) if asked else self._max_model_len
