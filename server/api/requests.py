"""vLLM's request models with the `fusion` field, which they write into the sampling parameters they make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from vllm import SamplingParams
from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError
from vllm.renderers import TokenizeParams

from server.api.field import FusionField
from server.api.texts import cut
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

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_fault(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """vLLM 0.32 looks into some fields before their types are checked, and stumbles over wrong ones."""
        try:
            return handler(data)
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
            name, message = _fault(cls, data)
            raise VLLMValidationError(message, parameter=name) from error

    def fuse_with(self, settings: FusionSettings, trace: Trace | None) -> None:
        """Settle what this request asks of the engine, before vLLM's serving class takes it."""
        self._settings, self._trace, self._prompts = settings, trace, 0

    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        """As vLLM's own, with no more of a text for the tokenizer than the context can hold."""
        return cut(super().build_tok_params(model_config))  # type: ignore[misc]

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """As vLLM's own, with the fusion settings attached; vLLM calls it once for each prompt, in order."""
        params: SamplingParams = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        settings = self._settings
        if self._trace is not None:
            settings = replace(settings, trace=self._trace.prompt_key(self._prompts))
        self._prompts += 1
        settings.attach(params)
        return params


def _fault(model: type[BaseModel], data: Any) -> tuple[str | None, str]:
    """The first field whose value is of the wrong type, and what is wrong with it."""
    for name, field in model.model_fields.items():
        if isinstance(data, dict) and name in data:
            try:
                TypeAdapter(field.rebuild_annotation()).validate_python(data[name])
            except ValidationError as error:
                return name, f"{error.errors()[0]['msg']}, not {data[name]!r:.100}"
            except Exception:
                return name, f"a value that can be used is needed here, not {data[name]!r:.100}"
    return None, "the fields do not fit together"


class FusionChatCompletionRequest(FusionRequest, ChatCompletionRequest):
    """`POST /v1/chat/completions`."""


class FusionCompletionRequest(FusionRequest, CompletionRequest):
    """`POST /v1/completions`."""


class FusionResponsesRequest(FusionRequest, ResponsesRequest):
    """`POST /v1/responses`."""
