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
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError

from server.api.errors import RequestError
from server.api.field import FusionField
from server.api.reference import with_allowed_tools, without_nulls
from server.engine.client import Trace
from server.engine.settings import FusionSettings

CHAT = "/v1/chat/completions"


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
        if isinstance(data, dict):
            data = with_allowed_tools(without_nulls(cls, data))
        try:
            return handler(data)
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
            name, message = _fault(cls, data)
            raise VLLMValidationError(message, parameter=name) from error

    def fuse_with(self, settings: FusionSettings, trace: Trace | None, first_prompt: int = 0) -> None:
        """Settle what this request asks of the engine, before vLLM's serving class takes it.

        `first_prompt` is the place of its first prompt among those that the trace follows.
        """
        self._settings, self._trace, self._prompts = settings, trace, first_prompt

    @property
    def traced(self) -> tuple[Trace, FusionSettings] | None:
        """The trace that follows this request, and its settings; `None` where nobody asked for one."""
        return None if self._trace is None else (self._trace, self._settings)

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

    _begins_a_document: bool = PrivateAttr(False)

    @model_validator(mode="wrap")
    @classmethod
    def _without_a_prompt(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """OpenAI's reference lets `prompt` be `null`, which vLLM's model refuses: nothing stands before the text."""
        blank = isinstance(data, dict) and "prompt" in data and data["prompt"] is None and not data.get("prompt_embeds")
        request = handler({**data, "prompt": [0]} if blank else data)
        request._begins_a_document = blank
        return request

    def begin_with(self, token_id: int | None) -> None:
        """Where there is no prompt, begin with the token that begins documents.

        Raises:
            RequestError: the tokenizer has none.
        """
        if self._begins_a_document:
            if token_id is None:
                raise RequestError("prompt: this tokenizer has no token to begin with, so a prompt is needed", "prompt")
            self.prompt = [token_id]


class FusionResponsesRequest(FusionRequest, ResponsesRequest):
    """`POST /v1/responses`."""


class FusionBatchRequest(FusionRequest, BatchChatCompletionRequest):
    """`POST /v1/chat/completions/batch`: several conversations, one choice for each."""

    _chats: list[FusionChatCompletionRequest] | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _one_answer_without_tools(cls, data: Any) -> Any:
        """vLLM's model takes any further field, and its serving class answers as if these were not there."""
        for name in ("stream", "tools"):
            if isinstance(data, dict) and data.get(name):
                raise RequestError(f"{name}: a batch cannot have it; send each conversation to {CHAT}", name)
        return data

    @property
    def chats(self) -> list[FusionChatCompletionRequest]:
        """The conversations as requests of their own.

        Raises:
            ValidationError: a field is wrong that the batch's model does not check.
        """
        if self._chats is None:
            fields = self.model_dump(exclude={"messages", "fusion"}, exclude_none=True)
            self._chats = [
                FusionChatCompletionRequest.model_validate({**fields, "messages": messages})
                for messages in self.messages
            ]
        return self._chats

    def fuse_with(self, settings: FusionSettings, trace: Trace | None, first_prompt: int = 0) -> None:
        """As for one conversation, for each of them."""
        for place, chat in enumerate(self.chats):
            chat.fuse_with(settings, trace, first_prompt + place)

    def to_chat_completion_request(self, messages: Any) -> FusionChatCompletionRequest:
        """The request of one of `messages`' conversations, the same one each time that vLLM asks."""
        chat = next(chat for chat, own in zip(self.chats, self.messages, strict=True) if own is messages)
        chat.cache_salt = self.cache_salt  # which the server may have settled since
        return chat


class FusionMessagesRequest(FusionRequest, AnthropicMessagesRequest):
    """`POST /v1/messages`, in Anthropic's protocol."""

    def as_chat(self, chat: ChatCompletionRequest) -> FusionChatCompletionRequest:
        """vLLM's translation of this request, with its fusion."""
        fields = {name: getattr(chat, name) for name in ChatCompletionRequest.model_fields}
        fused = FusionChatCompletionRequest.model_construct(chat.model_fields_set, **fields)
        fused.fuse_with(self._settings, self._trace)
        return fused


class CountTokensRequest(FusionRequest, AnthropicCountTokensRequest):
    """`POST /v1/messages/count_tokens`, in Anthropic's protocol."""
