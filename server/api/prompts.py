"""The prompts that members read in the place of a request's own: what its `fusion.prompts` and its preset say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.utils import construct_input_messages, construct_tool_dicts
from vllm.exceptions import VLLMValidationError

from server.api.errors import RequestError
from server.api.field import FusionField, GivenPrompt, SidesField
from server.api.requests import (
    FusionChatCompletionRequest,
    FusionCompletionRequest,
    FusionMessagesRequest,
    FusionRequest,
    FusionResponsesRequest,
)
from server.api.state import ServerState
from server.config import PresetConfig
from server.config.prompts import CONTEXT, PromptWay
from server.engine.pairs import Pairs
from server.engine.settings import LARGE, NOTHING, SIDES, FusionSettings, Pair

Message = Mapping[str, Any]


async def with_own_prompts(
    request: FusionRequest,
    field: FusionField | None,
    settings: FusionSettings,
    preset: PresetConfig,
    state: ServerState,
) -> FusionSettings:
    """The settings of one conversation or text, with the prompts that its members read; `field` is the whole request's.

    Raises:
        RequestError: a prompt that it gives, or that its preset asks for, cannot be had; the field is named.
    """
    given = (field and field.prompts) or {}
    return await _OwnPrompts(request, given, settings, preset, state).settled()


class _OwnPrompts:
    def __init__(
        self,
        request: FusionRequest,
        given: Mapping[str, SidesField],
        settings: FusionSettings,
        preset: PresetConfig,
        state: ServerState,
    ) -> None:
        self._request, self._settings, self._preset, self._state = request, settings, preset, state
        self._names = list(state.config.experts)
        self._pairs = Pairs(state.config)
        self._given = given
        self._prompts: dict[int, list[int]] = {}
        self._readers: dict[int, str] = {}
        """Which side reads with a member, by the member's number."""

    async def settled(self) -> FusionSettings:
        """See `with_own_prompts`.

        Raises:
            RequestError: a prompt cannot be had.
        """
        settings = self._settings
        if settings.route is not None:
            self._refuse_beside_router()
            return settings
        used = [self._names[expert] for expert in settings.experts]
        for name in self._given:
            if name not in used:
                raise RequestError(
                    f"fusion.prompts.{name}: the request does not use this expert; it uses {', '.join(used) or 'none'}",
                    f"fusion.prompts.{name}",
                )
        pairs = tuple([await self._pair(expert) for expert in settings.experts])
        if not self._prompts:
            return replace(settings, pairs=pairs)
        self._refuse_prompt_logprobs("a member reads a prompt of its own")
        drafter = None if settings.drafter in self._prompts else settings.drafter
        return replace(settings, pairs=pairs, prompts=self._prompts, drafter=drafter)

    async def _pair(self, expert: int) -> Pair:
        shared, own = self._pairs.shared(expert), self._pairs.own(expert)
        fuses = self._settings.weighting.fuses
        name = self._names[expert]
        if not fuses and name in self._given and self._given[name].against is not None:
            field = f"fusion.prompts.{name}.against"
            raise RequestError(f"{field}: this weighting compares the expert with nothing", field)
        sides = [await self._side(expert, SIDES[0], shared.expert, own.expert)]
        sides.append(await self._side(expert, SIDES[1], shared.against, own.against) if fuses else shared.against)
        return Pair(*sides)

    async def _side(self, expert: int, side: str, shared: int, own: int) -> int:
        """The number of the member on one side of an expert's pair, whose prompt is noted."""
        name = self._names[expert]
        field = f"fusion.prompts.{name}.{side}"
        sides = self._given.get(name)
        given = None if sides is None else sides.with_ if side == SIDES[0] else sides.against
        way = self._way(name, side)
        if given is None and (way is None or not way.is_own):
            self._note(shared, None, field)
            return shared
        if given is None:
            assert way is not None
            # Whoever has a way has a KV cache too: the configuration's check sees to it.
            ids = await self._written(way, own, field)
        elif own == NOTHING:
            raise RequestError(f"{field}: the expert is compared with none", field)
        elif own == LARGE:
            raise RequestError(
                f"{field}: the large model reads the request itself; for a prompt of its own the configuration must "
                f"give it a KV cache there, by experts.{name}.prompt: {{{side}: {{}}}}",
                field,
            )
        else:
            ids = await self._ids(given, self._template(way, own), field)
        self._note(own, ids, field)
        return own

    def _way(self, name: str, side: str) -> PromptWay | None:
        sides = [self._preset.prompts.get(name), self._state.config.experts[name].prompt]
        ways = [each.expert if side == SIDES[0] else each.against for each in sides if each is not None]
        return next((way for way in ways if way is not None), None)

    def _note(self, member: int, ids: list[int] | None, field: str) -> None:
        """A member reads one prompt of a request."""
        if member < 0:
            return
        if member in self._readers and self._prompts.get(member) != ids:
            raise RequestError(
                f"{field}: {self._readers[member]} is the same member, which reads one prompt of a request; give both "
                "the same, or one of them a KV cache of its own in the configuration",
                field,
            )
        self._readers[member] = field
        if ids is not None:
            if self._state.report.members.numbered[member].is_chunked:
                raise RequestError(f"{field}: the member's chunked attention reads the request's prompt alone", field)
            self._prompts[member] = ids

    async def _ids(self, given: GivenPrompt, template: str | None, field: str) -> list[int]:
        """A prompt that the request gives: token ids, a text or messages, which are written by a template."""
        if not given:
            raise RequestError(f"{field}: at least one message, token or character is needed", field)
        if isinstance(given, str):
            return await self._of_text(given, field)
        if isinstance(given[0], int):
            size = self._state.engine_client.model_config.get_vocab_size()
            ids = [each for each in given if isinstance(each, int)]
            if len(ids) != len(given) or not all(0 <= each < size for each in ids):
                raise RequestError(f"{field}: ids from 0 to {size - 1} are needed", field)
            return ids
        try:
            messages = FusionChatCompletionRequest.model_validate({"messages": given}).messages
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"][1:2]))
            raise RequestError(f"{field}.{place}: {error.errors()[0]['msg']}", field) from error
        except RequestError as error:
            raise RequestError(f"{field}: {error}", field) from error
        return await self._of_messages(list(messages), template, field)

    async def _written(self, way: PromptWay, member: int, field: str) -> list[int]:
        """A prompt that the preset, or the expert, makes of the request."""
        if way.text is not None:
            return await self._of_text(way.text, field)
        messages = self._messages(field)
        if not way.context:
            messages = [message for message in messages if message.get("name") != CONTEXT]
        if way.turns == "last":
            last = next((m for m in reversed(messages) if m.get("role") == "user"), None)
            messages = [m for m in messages if m.get("role") in ("system", "developer") or m is last]
        if way.system is not None:
            messages = [m for m in messages if m.get("role") not in ("system", "developer")]
            if way.system:
                messages = [{"role": "system", "content": way.system}, *messages]
        return await self._of_messages(messages, self._template(way, member), field)

    def _template(self, way: PromptWay | None, member: int) -> str | None:
        """The chat template of a member, where its prompts are written by it; `None`: the large model's."""
        return self._state.report.templates.get(member) if way is not None and way.template == "own" else None

    def _messages(self, field: str) -> list[Message]:
        request = self._request
        if isinstance(request, FusionChatCompletionRequest):
            return list(request.messages)
        if isinstance(request, FusionMessagesRequest):
            try:
                return [*self._state.messages.translate(request).messages]
            except ValueError as error:
                raise RequestError(f"messages: {error}", "messages") from error
        if isinstance(request, FusionResponsesRequest) and request.previous_response_id is None:
            messages: list[Message] = construct_input_messages(
                request_instructions=request.instructions, request_input=request.input
            )
            return messages
        what = "a text" if isinstance(request, FusionCompletionRequest) else "an answer that came before"
        raise RequestError(
            f"{field}: this model makes it of a request's messages, and there is {what}; give the prompt itself", field
        )

    async def _of_text(self, text: str, field: str) -> list[int]:
        online = self._state.chat.online_renderer
        request = FusionCompletionRequest(model=None, prompt=text)
        try:
            (found,) = await online.preprocess_completion(request, prompt_input=text, prompt_embeds=None)
        except (ValueError, VLLMValidationError) as error:
            raise RequestError(f"{field}: {error}", field) from error
        return _ids_in(found)

    async def _of_messages(self, messages: Sequence[Message], template: str | None, field: str) -> list[int]:
        online = self._state.chat.online_renderer
        if not messages:
            raise RequestError(f"{field}: no message is left for it", field)
        try:
            chat, tools = self._written_as(messages)
            _, (found,) = await online.preprocess_chat(
                chat,
                list(messages),
                default_template=template or online.chat_template,
                default_template_content_format=online.chat_template_content_format,
                default_template_kwargs=online.default_chat_template_kwargs,
                tool_dicts=tools,
            )
        except (ValueError, TypeError, KeyError, VLLMValidationError) as error:
            raise RequestError(f"{field}: {error}", field) from error
        return _ids_in(found)

    def _written_as(self, messages: Sequence[Message]) -> tuple[Any, list[dict[str, Any]] | None]:
        """What says how messages are written, the request where it has any; and its tools."""
        request: Any = self._request
        if isinstance(request, FusionResponsesRequest):
            return request, construct_tool_dicts(request.tools, request.tool_choice)
        if isinstance(request, FusionMessagesRequest):
            request = self._state.messages.translate(request)
        elif not isinstance(request, ChatCompletionRequest):
            request = FusionChatCompletionRequest.model_validate({"messages": list(messages)})
        return request, None if request.tools is None else [tool.model_dump() for tool in request.tools]

    def _refuse_beside_router(self) -> None:
        if self._given:
            raise RequestError(
                "fusion.prompts: the experts that a router chooses read the request's prompt; name those that should "
                "steer in fusion.experts",
                "fusion.prompts",
            )
        self._refuse_prompt_logprobs("a router chooses experts when the prompt has been read")

    def _refuse_prompt_logprobs(self, why: str) -> None:
        request = self._request
        field = "echo" if getattr(request, "echo", False) else "prompt_logprobs"
        if getattr(request, "prompt_logprobs", None) is not None or (
            getattr(request, "echo", False) and getattr(request, "logprobs", None) is not None
        ):
            raise RequestError(
                f"{field}: {why}, so the request's prompt has no fused logprobs; ask for weighting 'none'",
                field,
            )


def _ids_in(found: Any) -> list[int]:
    ids: list[int] = list(found["prompt_token_ids"])
    return ids
