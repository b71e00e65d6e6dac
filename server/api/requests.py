"""vLLM's request models with the `fusion` field, which they write into the sampling parameters they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

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
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError
from vllm.renderers import TokenizeParams

from server.api.admission import MAX_TOKENS_FIELDS
from server.api.errors import RequestError
from server.api.faults import named_early
from server.api.field import FusionField
from server.api.reference import with_allowed_tools, without_nulls
from server.api.texts import cut
from server.engine.request_trace import Trace
from server.engine.settings import FusionSettings

_ENGINES_OWN = ("kv_transfer_params", "ec_transfer_params")
CHAT = "/v1/chat/completions"
FREE_TEXT = r"start: /(.|\n)*/"


class SetAside(NamedTuple):
    """A structural tag, and the field that holds it; the order is `Structure`'s."""

    field: str
    kind: Literal["structural_tag"]
    value: Any


def without_tag(data: Any) -> tuple[Any, SetAside | None]:
    """A request's fields with free text in the place of a structural tag, and the tag.

    vLLM 0.32 compiles a tag while it reads the request, without a bound, and for a backend that is not used.
    """
    if not isinstance(data, dict):
        return data, None
    free = {"grammar": FREE_TEXT}
    asked = data.get("response_format")
    if isinstance(asked, dict) and asked.get("type") == "structural_tag":
        asked = {key: value for key, value in asked.items() if key != "type"}
        rest = {key: value for key, value in data.items() if key != "response_format"}
        return rest | {"structured_outputs": free}, SetAside("response_format", "structural_tag", asked)
    outputs = data.get("structured_outputs")
    if isinstance(outputs, dict) and isinstance(outputs.get("structural_tag"), str | dict):
        others = {key: value for key, value in outputs.items() if key != "structural_tag"}
        tag = SetAside("structured_outputs.structural_tag", "structural_tag", outputs["structural_tag"])
        return data | {"structured_outputs": others | free}, tag
    return data, None


class FusionRequest(BaseModel):
    """What the three request models share."""

    fusion: FusionField | None = Field(
        None, description="How the experts steer the large model; the preset named by `model` decides what is left out."
    )
    _settings: FusionSettings = PrivateAttr(default_factory=FusionSettings)
    _trace: Trace | None = PrivateAttr(None)
    _prompts: int = PrivateAttr(0)
    _structural_tag: SetAside | None = PrivateAttr(None)

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_fault(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """vLLM 0.32 looks into some fields before their types are checked, and stumbles over wrong ones."""
        if isinstance(data, dict):
            data = with_allowed_tools(without_nulls(cls, data))
        data, tag = without_tag(data)
        try:
            request = handler(data)
            request._structural_tag = tag
            return request
        except VLLMValidationError as error:
            raise named_early(error, cls.model_fields) from error
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
            name, message = _fault(cls, data)
            raise RequestError(f"{name}: {message}" if name else message, name or "body") from error

    @property
    def structural_tag(self) -> SetAside | None:
        """The structural tag that the client wrote, set aside until it has been checked."""
        return self._structural_tag

    def fuse_with(self, settings: FusionSettings, trace: Trace | None, first_prompt: int = 0) -> None:
        """Settle what this request asks of the engine, before vLLM's serving class takes it.

        `first_prompt` is the index of its first prompt among those that the trace follows.
        """
        self._settings, self._trace, self._prompts = settings, trace, first_prompt

    def settle(self, settings: FusionSettings) -> None:
        """Take `settings` in the place of those that it had."""
        self._settings = settings

    @property
    def traced(self) -> tuple[Trace, FusionSettings] | None:
        """The trace that follows this request, and its settings; `None` where nobody asked for one."""
        return None if self._trace is None else (self._trace, self._settings)

    @property
    def parts(self) -> Sequence[FusionRequest]:
        """The requests that vLLM makes of it: itself, or one for each conversation of a batch."""
        return (self,)

    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        """As vLLM's own, with no more of a text for the tokenizer than the context can hold."""
        return cut(super().build_tok_params(model_config))  # type: ignore[misc]

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """As vLLM's own, with the fusion settings attached; vLLM calls it once for each prompt, in order."""
        params: SamplingParams = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        settings = self._settings
        if self._trace is not None:
            settings = replace(settings, trace=self._trace.prompt_key(self._prompts))
        if settings.route is not None:
            settings = replace(settings, route=settings.route.of_prompt(self._prompts))
        self._prompts += 1
        given = any(getattr(self, name, None) is not None for name in MAX_TOKENS_FIELDS)
        replace(settings, says_max_tokens=given).attach(params)
        return params


def check_extra_arguments(request: Any) -> None:
    """Refuse arguments that would reach vLLM's cache transfer by the back door.

    Raises:
        RequestError: one is there.
    """
    given = request.vllm_xargs if "vllm_xargs" in type(request).model_fields else None
    for name in given or ():
        if name in _ENGINES_OWN:
            raise RequestError(f"vllm_xargs.{name}: it is the engine's own", f"vllm_xargs.{name}")


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


class _OpenAI(FusionRequest):
    """What OpenAI's reference has of whom a request is for, and vLLM 0.32 does not."""

    safety_identifier: str | None = Field(None, description="Whom the request is for: a preset may split by it.")
    prompt_cache_key: str | None = Field(None, description="As `safety_identifier`, where there is none and no `user`.")


class FusionChatCompletionRequest(_OpenAI, ChatCompletionRequest):
    """`POST /v1/chat/completions`."""


class FusionCompletionRequest(_OpenAI, CompletionRequest):
    """`POST /v1/completions`."""

    _begins_a_document: bool = PrivateAttr(False)

    @model_validator(mode="wrap")
    @classmethod
    def _without_a_prompt(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """OpenAI's reference lets `prompt` be `null`, which vLLM's model refuses: nothing stands before the text."""
        blank = isinstance(data, dict) and "prompt" in data and data["prompt"] is None
        blank = blank and data.get("prompt_embeds") is None
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


class FusionResponsesRequest(_OpenAI, ResponsesRequest):
    """`POST /v1/responses`."""


class FusionBatchRequest(_OpenAI, BatchChatCompletionRequest):
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

    @property
    def parts(self) -> Sequence[FusionRequest]:
        """Its conversations."""
        return self.chats

    def fuse_with(self, settings: FusionSettings, trace: Trace | None, first_prompt: int = 0) -> None:
        """As for one conversation, for each of them."""
        for index, chat in enumerate(self.chats):
            chat.fuse_with(settings, trace, first_prompt + index)

    def to_chat_completion_request(self, messages: Any) -> FusionChatCompletionRequest:
        """The request of one of `messages`' conversations, the same one each time that vLLM asks."""
        chat = next(chat for chat, own in zip(self.chats, self.messages, strict=True) if own is messages)
        chat.cache_salt = self.cache_salt  # which the server may have settled since
        return chat


class _Anthropic(FusionRequest):
    cache_salt: str | None = Field(None, description="As in chat: a part of the prefix cache of its own.")

    def as_chat(self, chat: ChatCompletionRequest) -> FusionChatCompletionRequest:
        """vLLM's translation of this request, with its fusion, and with its text bounded as every other one's."""
        fields = {name: getattr(chat, name) for name in ChatCompletionRequest.model_fields}
        fused = FusionChatCompletionRequest.model_construct(chat.model_fields_set, **fields)
        fused.cache_salt = self.cache_salt
        fused.fuse_with(self._settings, self._trace)
        return fused


class FusionMessagesRequest(_Anthropic, AnthropicMessagesRequest):
    """`POST /v1/messages`, in Anthropic's protocol."""


class CountTokensRequest(_Anthropic, AnthropicCountTokensRequest):
    """`POST /v1/messages/count_tokens`, in Anthropic's protocol."""
