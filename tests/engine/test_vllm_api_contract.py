"""What the API leans on in vLLM that is not said to be public: after an upgrade, the one that broke fails by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser


def source(thing: Any) -> str:
    return " ".join(inspect.getsource(thing).split())


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)[1:]


class TestResponses:
    """What `StoredResponses` replaces."""

    def test_the_stores_are_keyed_by_the_id(self) -> None:
        made = source(OpenAIServingResponses.__init__)
        for store in ("response_store", "msg_store", "event_store", "background_tasks"):
            assert f"self.{store}: dict[" in made
        assert "self.enable_store = envs." in made
        assert "never remove responses from the store" in made, "does vLLM bound its store now? Then drop the shelf"

    def test_what_generates_in_the_background(self) -> None:
        create = source(OpenAIServingResponses._create_responses)
        for method in ("_run_background_request", "_run_background_request_stream"):
            assert f"self.{method}( request," in create
            assert parameters(getattr(OpenAIServingResponses, method)) == ["request", "args", "kwargs"]
        assert "return self.responses_background_stream_generator(request.request_id)" in create
        assert "self.event_store[response_id]" in source(OpenAIServingResponses.responses_background_stream_generator)

    def test_the_answer_is_made_in_one_place(self) -> None:
        assert parameters(OpenAIServingResponses.responses_full_generator) == [
            "request",
            "sampling_params",
            "result_generator",
            "context",
            "model_name",
            "tokenizer",
            "request_metadata",
            "created_time",
        ]
        assert "self.response_store[response.id] = response" in source(OpenAIServingResponses.responses_full_generator)
        for model in (ResponsesRequest, ResponsesResponse):
            assert model.model_config["extra"] == "allow", "`error` and `fusion` are put into it"

    def test_it_is_still_needed(self) -> None:
        background = source(OpenAIServingResponses._run_background_request)
        assert "except" not in background, "does vLLM tell of failures now? Then look at StoredResponses again"
        assert not hasattr(OpenAIServingResponses, "delete_responses")


def test_cancelling_waits_for_the_task() -> None:
    cancel = source(OpenAIServingResponses.cancel_responses)
    assert 'response.status = "cancelled"' in cancel
    assert "task.cancel() try: await task" in cancel


def test_messages_are_translated_to_chat() -> None:
    assert "chat_req = self.to_chat_completion_request(" in source(AnthropicServingMessages.create_messages)
    assert "self.create_chat_completion(chat_req, raw_request)" in source(AnthropicServingMessages.create_messages)
    assert "self._merge_inline_system" in source(AnthropicServingMessages.__init__)
    assert "json.loads(tool_call.function.arguments)" in source(AnthropicServingMessages.messages_full_converter), (
        "no longer fails on arguments that are cut off? Then drop MessagesServing.messages_full_converter"
    )


def test_a_batch_asks_for_each_conversation() -> None:
    for method in ("render_batch_chat_request", "chat_completion_full_generator_batch"):
        assert "request.to_chat_completion_request(" in source(getattr(OpenAIServingChatBatch, method))
    assert "single_request.to_sampling_params(" in source(OpenAIServingChatBatch.create_batch_chat_completion)


def test_calls_that_are_cut_off_are_still_shown_as_text() -> None:
    assert parameters(Hermes2ProToolParser.extract_tool_calls_streaming)[:3] == [
        "previous_text",
        "current_text",
        "delta_text",
    ]
    assert "tools_called=False, tool_calls=[], content=model_output" in source(Hermes2ProToolParser.extract_tool_calls)
    assert "is_finish_reason_tool_calls = auto_tools_called or" in source(
        OpenAIServingChat.chat_completion_full_generator
    ), "does it look at why the answer ended now? Then drop CutOffCalls"
