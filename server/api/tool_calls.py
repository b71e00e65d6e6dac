"""Tool calls that the end of an answer cuts off: the whole answer says of them what the stream says.

vLLM 0.32 reads a whole answer's calls as complete JSON and, where one is not, shows the markup as the answer's text;
and it calls every answer with a call one that ended with `tool_calls`, also where `max_tokens` ended it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from vllm import RequestOutput
from vllm.entrypoints.generate.base.protocol import ExtractedToolCallInformation, FunctionCall, ToolCall
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.tool_parsers import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
from vllm.tool_parsers.utils import partial_tag_overlap

# How a model writes its tool calls: <tool_call>{"name": ..., "arguments": ...}</tool_call>, the form of Qwen's and many
# others' chat templates. Calls that the request requires have it forced by a grammar, so any model makes them.
TOOL_PARSER = "hermes_cut_off"


class CutOffToolParser(Hermes2ProToolParser):
    """vLLM's parser of that form, with calls that are not complete."""

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """As vLLM's, but for an answer that ends within a call: what a stream would have shown of it."""
        if not self._ends_within_a_call(model_output, forced=request.tool_choice not in ("auto", None)):
            return super().extract_tool_calls(model_output, request)
        streaming = type(self)(self.model_tokenizer, list(self.tools))
        shown = streaming.extract_tool_calls_streaming("", model_output, model_output, [], [], [], request)
        calls: dict[int, ToolCall] = {}
        for delta in shown.tool_calls if shown is not None else ():
            call = calls.setdefault(delta.index, ToolCall(function=FunctionCall(name="", arguments="")))
            call.id = delta.id or call.id
            if delta.function is not None:
                call.function.name += delta.function.name or ""
                call.function.arguments += delta.function.arguments or ""
        return ExtractedToolCallInformation(
            # Without a name there is no call yet; the markup is no text of the answer all the same.
            tools_called=True,
            tool_calls=list(calls.values()),
            content=shown.content if shown is not None else None,
        )

    def _ends_within_a_call(self, text: str, forced: bool) -> bool:
        _, start, call = text.rpartition(self.tool_call_start_token)
        if not start:
            # A model that may answer freely may end with "<"; one that must call has begun to.
            return forced and bool(partial_tag_overlap(text, self.tool_call_start_token))
        if self.tool_call_end_token in call:
            return False
        try:
            json.loads(call)
        except ValueError:
            return True
        return False


ToolParserManager.register_module(TOOL_PARSER, module=CutOffToolParser)


class CutOffCalls(OpenAIServingChat):
    """vLLM's chat, which says of a whole answer why it really ended, as it does of a stream."""

    async def chat_completion_full_generator(
        self, request: Any, result_generator: AsyncIterator[RequestOutput], *args: Any, **kwargs: Any
    ) -> ErrorResponse | ChatCompletionResponse:
        """As vLLM's; `finish_reason` is `tool_calls` only where the model ended by itself."""
        reasons: dict[int, str | None] = {}

        async def watched() -> AsyncIterator[RequestOutput]:
            async for output in result_generator:
                reasons.update((choice.index, choice.finish_reason) for choice in output.outputs)
                yield output

        answer = await super().chat_completion_full_generator(request, watched(), *args, **kwargs)
        if isinstance(answer, ChatCompletionResponse):
            for choice in answer.choices:
                reason = reasons.get(choice.index)
                if choice.finish_reason == "tool_calls" and reason not in ("stop", None):
                    choice.finish_reason = reason
        return answer
