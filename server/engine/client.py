"""The engine as the API sees it: vLLM's asynchronous engine, and beside it the traces of requests that ask for one."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from vllm import RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM

from server.engine.bounds import check_bounds
from server.engine.contradiction import masking_fields, obeying
from server.engine.lens import Thought
from server.engine.members import Member
from server.engine.own_prompts import Alignment, Room
from server.engine.place import place
from server.engine.request_trace import PromptRows, Trace, unfused
from server.engine.routing.choosing import Choice
from server.engine.routing.routed import Routed, told
from server.engine.sequences import Tokens, seated
from server.engine.settings import BASE, FusionSettings, Pair
from server.engine.structures.pinned import leave_checks_to_api, readable
from server.engine.trace import TraceRow
from server.errors import ServerError

STAGING_SECONDS = 0.05


class FusionEngine(AsyncLLM):
    """vLLM's engine client, following the trace of requests that opened one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._traces: WeakValueDictionary[str, Trace] = WeakValueDictionary()
        self._routed: WeakValueDictionary[str, Routed] = WeakValueDictionary()
        fusion: dict[str, Any] = self.model_config.hf_config.fusion
        self._has_members = bool(fusion["members"] or fusion["twins"])
        self._twins = {twin["number"]: twin["of"] for twin in fusion["twins"]}
        self._member_names = {each["number"]: each["title"] for each in (*fusion["members"], *fusion["twins"])}
        self._routers: list[dict[str, Any]] = fusion["routers"]
        self._room = Room(self.vllm_config.cache_config.block_size, self.model_config.max_model_len)
        """Where layers are all alike; `learn_room` finds out."""
        self._ends_of_experts: list[list[int]] = [expert["ends"] for expert in fusion["experts"]]
        self._parts: list[list[str]] = [expert["parts"] for expert in fusion["experts"]]
        """Of experts that are mixtures, what they are mixed of."""
        self._adapters_put: Counter[int] = Counter()
        """By member, how often it became another adapter: what it left in the prefix cache is no longer its own."""
        self._compact = self.vllm_config.structured_outputs_config.disable_any_whitespace
        leave_checks_to_api(self.input_processor)
        self._eos = self.input_processor.renderer.get_eos_token_id()
        none = SamplingParams()
        none.update_from_generation_config(self.input_processor.generation_config_fields, self._eos)
        self._ends = frozenset(none.all_stop_token_ids)
        """What ends an answer whatever a request says."""
        self.asked = asyncio.Event()
        """Set whenever a sequence starts; whoever waits for it clears it."""

    @property
    def busy(self) -> bool:
        """Whether anything is being generated."""
        return bool(self.output_processor.has_unfinished_requests())

    def open_trace(self, speculates: bool = False) -> Trace:
        """Start to follow a request, whose settings name the trace's `prompt_key`s; hold on to it until the end."""
        trace = Trace(self.get_tokenizer(), speculates=speculates, names=self._member_names)
        self._traces[trace.key] = trace
        return trace

    def open_route(self, router: int, heard: Callable[[Choice], None]) -> Routed:
        """Start to follow what a router chooses for a request, whose settings name the `key` of what is returned."""
        routed = Routed(self._routers[router]["classes"], heard)
        self._routed[routed.key] = routed
        return routed

    async def on_workers(self, method: str, *args: Any) -> list[list[Any]]:
        """Call a method of every worker, between two steps; return each engine's results by worker.

        With data parallelism, vLLM 0.32's `collective_rpc` calls all engines and returns the first one's results only.
        """
        if self.vllm_config.parallel_config.data_parallel_size == 1:
            return [await self.collective_rpc(method, args=args)]
        core: Any = self.engine_core
        engines: list[list[Any]] = await core.call_utility_all_async("collective_rpc", method, None, args, None)
        return engines

    async def put_adapter(self, number: int, preset: int, adapter: Member) -> None:
        """Make an adapter, which has been checked, that of the spare member `number`, and of the preset of that index.

        No request may use either. The files are read beside the steps, which then wait for a copy in memory.

        Raises:
            ServerError: it cannot be read.
        """
        await self.on_workers("stage_adapter", str(adapter.folder), adapter.multimodal)
        while not all(done for done, _ in await self._staged()):
            await asyncio.sleep(STAGING_SECONDS)
        for _, fault in await self._staged():
            if fault is not None:
                raise ServerError(fault)
        await self.on_workers("put_adapter", number, preset)
        self._adapters_put[number] += 1
        self._ends_of_experts[number - 1] = list(adapter.end_ids)
        self._member_names[number] = adapter.name

    async def _staged(self) -> list[tuple[bool, str | None]]:
        engines = await self.on_workers("adapter_staged")
        return [(done, fault) for workers in engines for done, fault in workers]

    async def learn_room(self) -> None:
        """Ask the workers what the KV cache has for members that are ahead of a request.

        Raises:
            ServerError: a preset routes, and layers have sliding windows, which free what a late expert must write.
        """
        (room, *_), *_ = await self.on_workers("room_ahead")
        self._room = Room(*room)
        if self._routers and self._room.frees:
            raise ServerError("route: beside layers with sliding windows experts cannot be chosen late")

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `AsyncLLM.generate`; each output of a traced request comes after its tokens' trace.

        Raises:
            VLLMValidationError: the request asks for more than the sampler has room for.
        """
        settings = FusionSettings.of(sampling_params)
        ends = {token for expert in settings.experts for token in self._ends_of_experts[expert]}
        speculates = settings.drafter is not None
        check_bounds(sampling_params, self._ends | ends, self.get_tokenizer(), speculates=speculates)
        # As vLLM takes in what the large model's generation_config.json says, unless a request ignores such ends.
        sampling_params.update_from_generation_config({"eos_token_id": sorted(ends) or None}, self._eos)
        if sampling_params.structured_outputs is not None:
            sampling_params.structured_outputs = readable(sampling_params.structured_outputs, self._compact)
        if settings.prompts:
            settings = self._fitted(settings, prompt["prompt_token_ids"], sampling_params)
            settings.attach(sampling_params)
        if self._has_members:
            mixed = any(self._parts[expert] for expert in settings.experts)
            prompt = _salted(prompt, settings, self._adapters_put, mixed=mixed)
        here, choices = place.get(), sampling_params.n
        if settings.route is not None and (routed := self._routed.get(settings.route.name.partition("/")[0])):
            routed.expected += choices

        def start(params: SamplingParams, name: str) -> AsyncGenerator[RequestOutput, None]:
            self.asked.set()
            started = super(FusionEngine, self).generate(prompt, params, name, **kwargs)
            return started if settings.route is None else self._told(started, settings.route.name, choices)

        if here is None:
            outputs = start(sampling_params, request_id)
        else:
            own = len(prompt["prompt_token_ids"])
            read = own + sum(map(len, settings.prompts.values()))
            tokens = read + (sampling_params.max_tokens or 0)
            here.add(sampling_params.n, tokens)
            outputs = seated(here, Tokens(own, read, tokens), start, sampling_params, request_id)
        if len(masking_fields(sampling_params)) > 1:
            outputs = obeying(outputs, sampling_params, self.get_tokenizer())
        key, _, prompt_index = (settings.trace or "").partition("/")
        trace = self._traces.get(key)
        if trace is None:
            return outputs
        first_choice = int(prompt_index) * choices
        indices = range(first_choice, first_choice + choices)
        trace.own_prompts |= dict.fromkeys(indices, settings.own_prompt_tokens)
        sides = dict(zip(settings.experts, settings.sides, strict=True))
        trace.sides |= dict.fromkeys(indices, sides)
        if not settings.traced:
            return unfused(outputs, trace, first_choice)
        assert settings.trace is not None
        return self._follow(outputs, settings.trace, trace, first_choice)

    def _told(
        self, outputs: AsyncGenerator[RequestOutput, None], name: str, choices: int
    ) -> AsyncGenerator[RequestOutput, None]:
        key, _, prompt_index = name.partition("/")
        routed = self._routed.get(key)
        if routed is None:
            return outputs
        first = int(prompt_index) * choices
        return told(outputs, routed, range(first, first + choices), partial(self._choice, name))

    async def _choice(self, name: str) -> Choice | None:
        engines = await self.on_workers("take_fusion_choice", name)
        found = next((choice for workers in engines for choice in workers if choice is not None), None)
        # As a plain list it came from another process.
        return None if found is None else Choice(*found)

    def _fitted(self, settings: FusionSettings, prompt: list[int], params: SamplingParams) -> FusionSettings:
        """The settings without prompts that are the request's own, which cost nothing; the others have room.

        Raises:
            VLLMValidationError: a member's prompt and the answer are longer than the context.
        """
        same = {member for member, ids in settings.prompts.items() if ids == prompt}
        # A twin's original may read something else itself.
        same = {member for member in same if self._twins.get(member) not in settings.prompts.keys() - same}
        shared = {member: self._twins.get(member, member) for member in same}
        pairs = tuple(Pair(*(shared.get(side, side) for side in pair)) for pair in settings.pairs)
        prompts = {member: ids for member, ids in settings.prompts.items() if member not in same}
        most, asked = self.model_config.max_model_len, params.max_tokens or 0
        room = most - len(prompt)
        for member, ids in prompts.items():
            ahead = Alignment.of(len(prompt), len(ids), self._room.block_size).ahead
            room = min(room, most - len(ids), most - len(prompt) - ahead)
            if ahead > max(self._room.most_ahead, self._room.block_size):
                raise VLLMValidationError(
                    f"the prompt of {self._member_names[member]} has {len(ids)} tokens, the request's {len(prompt)}; "
                    f"beside layers with sliding windows it may be {self._room.most_ahead} longer at most",
                    parameter="fusion.prompts",
                )
            if room < 1 or (asked > room and settings.says_max_tokens):
                raise VLLMValidationError(
                    f"the prompt of {self._member_names[member]} has {len(ids)} tokens, the request's {len(prompt)}; "
                    f"with them at most {max(room, 0)} of the context's {most} tokens are left for the answer",
                    parameter="fusion.prompts",
                )
        params.max_tokens = min(asked, room) if asked else room
        return replace(settings, pairs=pairs, prompts=prompts)

    async def _follow(
        self, outputs: AsyncGenerator[RequestOutput, None], name: str, trace: Trace, first_choice: int
    ) -> AsyncGenerator[RequestOutput, None]:
        rows = PromptRows()
        try:
            async for output in outputs:
                if any(choice.token_ids for choice in output.outputs):
                    rows.add(await self._take(name))
                    for choice in output.outputs:
                        trace.pending[first_choice + choice.index] += rows.match(choice.index, list(choice.token_ids))
                yield output
        finally:
            await outputs.aclose()
            if not self.errored:
                # Whatever an aborted request leaves behind, and the row that follows the last token.
                await self._take(name, last=True)

    async def _take(self, name: str, last: bool = False) -> list[TraceRow]:
        engines = await self.on_workers("take_fusion_trace", name, last)
        rows = (TraceRow(*row) for workers in engines for rows in workers for row in rows)
        # As plain lists it came from another process.
        return [row._replace(lens=row.lens and [Thought(*thought) for thought in row.lens]) for row in rows]


def _salted(prompt: Any, settings: FusionSettings, puts: Mapping[int, int], *, mixed: bool) -> Any:
    """The prompt, whose cached prefixes only requests share that run the same members.

    A request leaves holes in the KV cache of the members that it does not run: another must not read its blocks. Nor
    what an adapter left that was a member before; `puts` counts them by member. What a client writes into `cache_salt`
    stands before the last slash, so it cannot be taken for a set of members.
    """
    members = [f"{number}.{puts[number]}" if number in puts else str(number) for number in settings.members_run]
    if settings.route is not None:
        # Which others have read it depends on what was chosen for whoever left the block.
        members = [f"{BASE};routed"]
        if mixed:
            # Of two requests neither has the other's mixture, and each would write over what the other reads.
            members = [f"{BASE};{settings.route.name}"]
    salt = f"{prompt.get('cache_salt') or ''}/members={','.join(members)}"
    if settings.shares:
        salt += f";shares={sorted(settings.shares.items())}"
    if settings.prompts:
        # Where a member's tokens lie depends on the length of both prompts, and what they are on its own.
        read = repr((len(prompt["prompt_token_ids"]), sorted(settings.prompts.items())))
        salt += f";prompts={hashlib.sha256(read.encode()).hexdigest()}"
    return {**prompt, "cache_salt": salt}
