"""vLLM's text completions where `echo` meets `n`, `stream`, `logprobs` and `max_tokens: 0`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Any

from vllm import RequestOutput
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

_Results = AsyncIterator[tuple[int, RequestOutput]]


def only_echoes(request: Any) -> bool:
    """Whether a request wants its prompt back and nothing generated; vLLM 0.32 generates one token all the same."""
    return isinstance(request, CompletionRequest) and bool(request.echo) and request.max_tokens == 0


class Completions(OpenAIServingCompletion):
    """vLLM's class, with every choice given its own prompt and nothing that is not in the answer."""

    def completion_stream_generator(
        self, request: CompletionRequest, engine_inputs: Any, result_generator: _Results, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """As vLLM's."""
        results = _with_prompts(result_generator) if request.echo else result_generator
        if only_echoes(request):
            results = _without_generated(results)
        return super().completion_stream_generator(request, engine_inputs, results, *args, **kwargs)

    def request_output_to_completion_response(
        self, final_res_batch: list[RequestOutput], request: CompletionRequest, *args: Any, **kwargs: Any
    ) -> CompletionResponse:
        """As vLLM's."""
        if only_echoes(request):
            for result in final_res_batch:
                _drop_generated(result)
        return super().request_output_to_completion_response(final_res_batch, request, *args, **kwargs)


def attach_text_offsets(answer: dict[str, Any], special: Collection[str], hidden: dict[int, int]) -> None:
    """Correct the offsets of an answer, or of one event of a stream, that echoes its prompt.

    vLLM 0.32 counts the token that begins the prompt (`<s>`, one of the `special` ones), which the text leaves out.
    `hidden` keeps, by choice, for the stream's later events, how many characters that were.
    """
    for choice in answer.get("choices", ()):
        logprobs = choice.get("logprobs")
        if not logprobs or not logprobs["tokens"]:
            continue
        first = logprobs["tokens"][0]
        begins = choice["index"] not in hidden
        if begins:
            shown = first not in special or choice["text"].startswith(first)
            hidden[choice["index"]] = 0 if shown else len(first)
        shift, offsets = hidden[choice["index"]], logprobs["text_offset"]
        logprobs["text_offset"] = [max(0, offset - shift) for offset in offsets]


async def _with_prompts(results: _Results) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """vLLM 0.32 tells what the prompt was with the first output alone, and its stream asks for it at each choice's."""
    prompts: dict[int, tuple[Any, Any, Any]] = {}
    async for index, result in results:
        known = prompts.get(index)
        if known is None or (result.prompt_logprobs and not known[2]):
            prompts[index] = (result.prompt, result.prompt_token_ids, result.prompt_logprobs)
        result.prompt, result.prompt_token_ids, result.prompt_logprobs = prompts[index]
        yield index, result


async def _without_generated(results: _Results) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    async for index, result in results:
        _drop_generated(result)
        yield index, result


def _drop_generated(result: RequestOutput) -> None:
    for choice in result.outputs:
        choice.text, choice.token_ids, choice.logprobs = "", [], None
