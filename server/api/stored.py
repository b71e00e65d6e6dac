"""vLLM's responses, stored and in the background: bounded, every client its own, and with an end in every case.

vLLM 0.32 never forgets what it stores, keys it by the id alone, leaves a background answer `queued` when it fails, and
lets the readers of such a stream wait for ever. Its stores are public attributes, replaced here; the two coroutines
that generate in the background are not (`_run_background_request`, `_run_background_request_stream`), and
`tests/engine/test_vllm_api_contract.py` fails when they change.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

from fastapi import Request
from openai.types.responses import ResponseErrorEvent
from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse, StreamingResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, UsageInfo
from vllm.v1.engine.exceptions import EngineDeadError

from server.admission import AdmissionError
from server.api.claim import Claim
from server.api.errors import ENGINE_DEAD, RequestError
from server.api.requests import FusionResponsesRequest
from server.api.shelf import OwnItems, Shelf
from server.api.trace import attach_to_response
from server.config import Config
from server.engine.place import place

logger = logging.getLogger(__name__)

RUNNING = ("queued", "in_progress")


class Events(deque[StreamingResponsesResponse]):
    """The events of a background answer, as they are made."""

    complete = False
    """Whether no more will come."""


class StoredResponses(OpenAIServingResponses):
    """`/v1/responses` and what it keeps, each client's own."""

    def __init__(self, *args: Any, config: Config, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._config = config
        self.enable_store = config.limits.stored_responses > 0
        self.response_store = cast(Any, OwnItems())
        self.msg_store = cast(Any, OwnItems())
        self.event_store = cast(Any, OwnItems())
        self.background_tasks = cast(Any, OwnItems())
        self._shelf = Shelf(config.limits.stored_responses, config.limits.stored_bytes, self._forget)

    def _forget(self, response_id: str) -> None:
        for store in (self.response_store, self.msg_store, self.event_store):
            store.pop(response_id, None)

    async def create_responses(self, request: Any, raw_request: Request | None = None) -> Any:
        """As vLLM's, which is told whether the request's fields fit what is stored.

        Raises:
            RequestError: they do not.
        """
        stored = bool(request.store) and self.enable_store
        self._check(request)
        if stored:
            # The messages of the responses before it are held with its own.
            body = b"" if raw_request is None else await raw_request.body()
            self._shelf.put(request.request_id, len(body) + self._shelf.size(request.previous_response_id or ""))
            if request.background:
                self._shelf.pin(request.request_id)
        try:
            answer = await super().create_responses(request, raw_request)
        except BaseException:
            if stored:
                self._shelf.drop(request.request_id)
            raise
        if stored and isinstance(answer, ErrorResponse):
            self._shelf.drop(request.request_id)
        return answer

    def _check(self, request: FusionResponsesRequest) -> None:
        if request.background and not self.enable_store:
            message = (
                "background: this server keeps no responses (limits.stored_responses is 0), so it makes none later"
            )
            raise RequestError(message, "background")
        if request.store and self.enable_store and request.request_id in self.response_store:
            raise RequestError("request_id: a response of this id is stored already", "request_id")
        if request.previous_response_id is not None:
            previous = self._stored(request.previous_response_id, "previous_response_id")
            if previous.status in RUNNING:
                message = f"previous_response_id: that response is {previous.status}; wait for its end"
                raise RequestError(message, "previous_response_id")

    def _stored(self, response_id: str, param: str = "response_id") -> ResponsesResponse:
        response: ResponsesResponse | None = self.response_store.get(response_id)
        if response is None:
            message = f"{param}: there is no response {response_id!r:.100}, or it is not kept any more"
            raise RequestError(message, param, HTTPStatus.NOT_FOUND)
        return response

    async def retrieve_responses(self, response_id: str, starting_after: int | None, stream: bool | None) -> Any:
        """As vLLM's.

        Raises:
            RequestError: there is no such response, or it has no events to stream.
        """
        self._stored(response_id)
        if stream and response_id not in self.event_store:
            message = "stream: only a response that was made with background and stream has events to send again"
            raise RequestError(message, "stream")
        return await super().retrieve_responses(response_id, starting_after, stream)

    async def cancel_responses(self, response_id: str) -> Any:
        """As vLLM's.

        Raises:
            RequestError: there is no such response, or it is not being made.
        """
        response = self._stored(response_id)
        if response.status not in RUNNING:
            message = f"response_id: this response is {response.status}; only one in the background can be cancelled"
            raise RequestError(message, "response_id")
        return await super().cancel_responses(response_id)

    async def delete_responses(self, response_id: str) -> dict[str, Any]:
        """Forget a response, and stop making it; vLLM has no such method.

        Raises:
            RequestError: there is no such response.
        """
        if self._stored(response_id).status in RUNNING:
            await super().cancel_responses(response_id)
        self._shelf.drop(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    async def responses_full_generator(
        self,
        request: Any,
        sampling_params: Any,
        result_generator: Any,
        context: Any,
        model_name: str,
        tokenizer: Any,
        request_metadata: RequestResponseMetadata,
        created_time: int | None = None,
    ) -> ErrorResponse | ResponsesResponse:
        """As vLLM's; with the trace, the size on the shelf, and what was used for admission's accounts."""
        if request.store and request.request_id not in self._shelf:
            request.store = False  # newer ones have pushed out what was kept of it
        answer = await super().responses_full_generator(
            request, sampling_params, result_generator, context, model_name, tokenizer, request_metadata, created_time
        )
        if isinstance(answer, ErrorResponse):
            return answer
        if answer.status == "incomplete" and answer.output and answer.output[-1].type == "function_call":
            answer.output[-1].status = "incomplete"
        if answer.usage is not None:
            request_metadata.final_usage_info = UsageInfo(
                prompt_tokens=answer.usage.input_tokens,
                completion_tokens=answer.usage.output_tokens,
                total_tokens=answer.usage.total_tokens,
            )
        if not request.stream:
            self._attach_trace(request, answer)
        if request.store:
            self._shelf.put(request.request_id, len(answer.model_dump_json()))
        return answer

    def _attach_trace(self, request: FusionResponsesRequest, part: Any) -> None:
        """Put the trace of the tokens since the last time into an answer or an event that is kept."""
        if (traced := request.traced) is None:
            return
        trace, settings = traced
        held: dict[str, Any] = {}
        attach_to_response(trace, list(self._config.experts), settings.experts)(held)
        if held:
            part.fusion = held["fusion"]

    async def _run_background_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        run = super()._run_background_request
        await self._until_its_end(request, lambda: run(request, *args, **kwargs))

    async def _run_background_request_stream(self, request: Any, *args: Any, **kwargs: Any) -> None:
        events, signal = Events(), asyncio.Event()
        self.event_store[request.request_id] = (events, signal)

        async def run() -> None:
            async for event in self.responses_stream_generator(request, *args, **kwargs):
                self._attach_trace(request, event)
                self._shelf.put(request.request_id, len(event.model_dump_json()))
                events.append(event)
                signal.set()

        try:
            await self._until_its_end(request, run)
            response = self.response_store.get(request.request_id)
            error = getattr(response, "error", None)
            if error is not None:
                number = len(events)
                events.append(cast(Any, ResponseErrorEvent(type="error", param=None, sequence_number=number, **error)))
        finally:
            events.complete = True
            signal.set()

    async def _until_its_end(self, request: FusionResponsesRequest, run: Callable[[], Awaitable[None]]) -> None:
        """Make an answer in the background: in its place, in time, with its failure told, and its place freed."""
        claim = cast(Claim, place.get())
        seconds = self._config.limits.request_timeout_s
        code, message = "server_error", ""
        try:
            async with asyncio.timeout(seconds) as timeout:
                await claim.wait()
                if (response := self.response_store.get(request.request_id)) is not None:
                    response.status = "in_progress"
                await run()
            if timeout.expired():  # vLLM turns the cancellation into an answer, "Client disconnected"
                raise TimeoutError
        except AdmissionError as refused:
            code, message = "rate_limit_exceeded", str(refused)
        except TimeoutError:
            message = f"the request took longer than the {seconds:g} s that it may take"
        except EngineDeadError:
            message = ENGINE_DEAD
        except asyncio.CancelledError:
            if self._status(request.request_id) != "cancelled":
                raise  # the server ends
        except Exception:
            logger.exception("A response in the background failed.")
            message = "the engine failed at this request"
        finally:
            claim.close()
            self._shelf.unpin(request.request_id)
        if message:
            self._fail(request.request_id, code, message)

    def _status(self, response_id: str) -> str | None:
        response = self.response_store.get(response_id)
        return None if response is None else response.status

    def _fail(self, response_id: str, code: str, message: str) -> None:
        response: Any = self.response_store.get(response_id)
        if response is not None and response.status in (*RUNNING, "failed"):
            response.status, response.error = "failed", {"code": code, "message": message}

    async def responses_background_stream_generator(
        self, response_id: str, starting_after: int | None = None
    ) -> AsyncGenerator[StreamingResponsesResponse, None]:
        """As vLLM's, but it ends when the answer does, however that is."""
        events, signal = cast(tuple[Events, asyncio.Event], self.event_store[response_id])
        sent = 0 if starting_after is None else starting_after + 1
        while True:
            signal.clear()
            while sent < len(events):
                yield events[sent]
                sent += 1
            if events.complete:
                return
            await signal.wait()
