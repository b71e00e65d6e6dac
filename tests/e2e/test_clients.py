"""Clients that users have, against the live server: the OpenAI SDK's helpers, LiteLLM and LangChain."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.server_process import ServerProcess

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me something."}]
FUSION: dict[str, Any] = {"fusion": {"weighting": "kl", "experts": ["red"]}}


class Verdict(BaseModel):
    ok: bool
    colour: Literal["red", "blue"]


class TestOpenAI:
    """Helpers of the SDK beyond plain calls."""

    def test_parsed_chat(self, client: OpenAI) -> None:
        answer = client.chat.completions.parse(
            model="giant-red", messages=MESSAGES, response_format=Verdict, max_tokens=150, extra_body=FUSION
        )
        assert isinstance(answer.choices[0].message.parsed, Verdict)

    def test_parsed_chat_under_its_older_name(self, client: OpenAI) -> None:
        answer = client.beta.chat.completions.parse(
            model="giant-red", messages=MESSAGES, response_format=Verdict, max_tokens=150
        )
        assert isinstance(answer.choices[0].message.parsed, Verdict)

    def test_parsed_response(self, client: OpenAI) -> None:
        answer = client.responses.parse(
            model="giant-red", input="Tell me.", text_format=Verdict, max_output_tokens=150, extra_body=FUSION
        )
        assert isinstance(answer.output_parsed, Verdict)

    def test_streaming_helper(self, client: OpenAI) -> None:
        with client.chat.completions.stream(
            model="giant-red", messages=MESSAGES, max_tokens=150, response_format=Verdict, extra_body=FUSION
        ) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert text == stream.get_final_completion().choices[0].message.content

    async def test_async_streaming_helper(self, async_client: AsyncOpenAI) -> None:
        async with async_client.chat.completions.stream(
            model="giant-all", messages=MESSAGES, max_tokens=150, response_format=Verdict
        ) as stream:
            kinds = [event.type async for event in stream]
        assert kinds[-1] == "content.done"

    def test_responses_streaming_helper(self, client: OpenAI) -> None:
        with client.responses.stream(
            model="giant-red", input="Tell me.", max_output_tokens=8, extra_body=FUSION
        ) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            assert stream.get_final_response().output_text == text


class TestLiteLLM:
    """`litellm`, with the server as an OpenAI-compatible provider."""

    @pytest.fixture
    def options(self, server: ServerProcess) -> dict[str, Any]:
        return {"api_base": server.url + "/v1", "api_key": "none", "max_retries": 0}

    def test_chat(self, options: dict[str, Any]) -> None:
        litellm: Any = pytest.importorskip("litellm")
        answer = litellm.completion(
            model="openai/giant-red", messages=MESSAGES, max_tokens=8, extra_body=FUSION, **options
        )
        assert answer.choices[0].message.content
        assert answer.usage.completion_tokens <= 8

    def test_stream_is_the_whole_answer(self, options: dict[str, Any]) -> None:
        litellm: Any = pytest.importorskip("litellm")
        body = {"model": "openai/giant-red", "messages": MESSAGES, "max_tokens": 8, "seed": 3} | options
        whole = litellm.completion(**body).choices[0].message.content
        parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**body, stream=True)]
        assert "".join(parts) == whole

    async def test_async_text_completion(self, options: dict[str, Any]) -> None:
        litellm: Any = pytest.importorskip("litellm")
        answer = await litellm.atext_completion(
            model="text-completion-openai/giant-all", prompt="Hello", max_tokens=4, **options
        )
        assert answer.choices[0].text

    def test_error_has_its_own_class(self, options: dict[str, Any]) -> None:
        litellm: Any = pytest.importorskip("litellm")
        with pytest.raises(litellm.NotFoundError, match="there is no preset"):
            litellm.completion(model="openai/gaint", messages=MESSAGES, **options)


class TestLangChain:
    """`langchain-openai`'s chat model."""

    @pytest.fixture
    def model(self, server: ServerProcess) -> Any:
        langchain: Any = pytest.importorskip("langchain_openai")
        return langchain.ChatOpenAI(
            model="giant-red",
            base_url=server.url + "/v1",
            api_key="none",
            max_retries=0,
            max_tokens=150,
            extra_body=FUSION,
        )

    def test_invoke_and_stream(self, model: Any) -> None:
        assert model.invoke("Tell me something.", max_tokens=8, seed=2).content
        whole = model.invoke("Tell me something.", max_tokens=8, seed=2).content
        streamed = "".join(chunk.content for chunk in model.stream("Tell me something.", max_tokens=8, seed=2))
        assert streamed == whole

    async def test_batch(self, model: Any) -> None:
        answers = await model.abatch(["One.", "Two.", "Three."], max_tokens=4)
        assert len(answers) == 3

    def test_structured_output(self, model: Any) -> None:
        answer = model.with_structured_output(Verdict, method="json_schema").invoke("Tell me something.")
        assert isinstance(answer, Verdict)

    def test_tool_call(self, model: Any) -> None:
        answer = model.bind_tools([Verdict], tool_choice="Verdict").invoke("Tell me something.")
        (call,) = answer.tool_calls
        assert Verdict.model_validate(call["args"])
