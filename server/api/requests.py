"""vLLM's request models with the `fusion` field, which they write into the sampling parameters they make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr
from vllm import SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from server.api.field import FusionField
from server.engine.client import Trace
from server.engine.settings import FusionSettings


class FusionRequest(BaseModel):
    """What the three request models share."""

    fusion: FusionField | None = Field(
        None, description="How the experts steer the large model; the preset named by `model` decides what is left out."
    )
    _settings: FusionSettings = PrivateAttr(default_factory=FusionSettings)
    _trace: Trace | None = PrivateAttr(None)
    _prompts: int = PrivateAttr(0)

    def fuse_with(self, settings: FusionSettings, trace: Trace | None) -> None:
        """Settle what this request asks of the engine, before vLLM's serving class takes it."""
        self._settings, self._trace, self._prompts = settings, trace, 0

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """As vLLM's own, with the fusion settings attached; vLLM calls it once for each prompt, in order."""
        params: SamplingParams = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        settings = self._settings
        if self._trace is not None:
            settings = replace(settings, trace=self._trace.prompt_key(self._prompts))
        self._prompts += 1
        settings.attach(params)
        return params


class FusionChatCompletionRequest(FusionRequest, ChatCompletionRequest):
    """`POST /v1/chat/completions`."""


class FusionCompletionRequest(FusionRequest, CompletionRequest):
    """`POST /v1/completions`."""


class FusionResponsesRequest(FusionRequest, ResponsesRequest):
    """`POST /v1/responses`."""
