"""vLLM's serving class for Anthropic's protocol, with `fusion`, calls that are cut off, and plain errors in streams."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from pydantic_core import from_json
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest, AnthropicMessagesResponse
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse

from server.api.requests import CountTokensRequest, FusionMessagesRequest
from server.api.stream import MESSAGES
from server.api.tool_calls import CutOffCalls


class MessagesServing(CutOffCalls, AnthropicServingMessages):
    """`/v1/messages` and `/v1/messages/count_tokens`."""

    @classmethod
    def to_chat_completion_request(cls, anthropic_request: Any, **options: Any) -> ChatCompletionRequest:
        """As vLLM's; the translation of a request keeps its fusion."""
        chat = super().to_chat_completion_request(anthropic_request, **options)
        return (
            anthropic_request.as_chat(chat)
            if isinstance(anthropic_request, FusionMessagesRequest | CountTokensRequest)
            else chat
        )

    def translate(self, request: AnthropicMessagesRequest | Any) -> ChatCompletionRequest:
        """The request as vLLM will translate it.

        Raises:
            ValueError: it cannot be translated; pydantic's `ValidationError` where a field of the translation is wrong.
        """
        return self.to_chat_completion_request(request, merge_inline_system=self._merge_inline_system)

    def messages_full_converter(self, generator: ChatCompletionResponse) -> AnthropicMessagesResponse:
        """As vLLM's, which fails where a call's arguments are cut off: those have what is complete of them."""
        for choice in generator.choices:
            for call in choice.message.tool_calls:
                arguments = from_json(call.function.arguments or "{}", allow_partial=True)
                call.function.arguments = json.dumps(arguments if isinstance(arguments, dict) else {})
        return super().messages_full_converter(generator)

    async def message_stream_converter(self, generator: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """As vLLM's; where the chat's stream ends with an error, so does this one, in the protocol's form."""
        failed: list[str] = []

        async def until_an_error() -> AsyncGenerator[str, None]:
            async with aclosing(generator):
                async for event in generator:
                    error = _error_of(event)
                    if error is not None:
                        failed.append(MESSAGES.error_event(error["message"], HTTPStatus(error["code"])))
                        return
                    yield event

        async with aclosing(super().message_stream_converter(until_an_error())) as events:
            async for event in events:
                yield event
        for event in failed:
            yield event


def _error_of(event: str) -> dict[str, Any] | None:
    """The error that an event of a chat's stream carries."""
    if not event.startswith('data: {"error":'):
        return None
    error: dict[str, Any] = json.loads(event.removeprefix("data: "))["error"]
    return error
