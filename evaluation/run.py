"""Asks everything that has not been answered yet, cell by cell, many examples at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.client import Client, Encoded
from evaluation.examples import Example, load_examples, read_examples
from evaluation.metrics import score
from evaluation.plan import JOINT, Cell, TablePlan, plan
from evaluation.serving import Known, Source, connected, look_up
from evaluation.store import Record, Store
from evaluation.suite import ROUTE, Suite, Task
from server.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evaluation.joint import Joint

# Traces cost time, and so many tell how the weights move.
TRACED = 32

Watch = Callable[[str, int, int, str], None]
"""Told what is being asked, how many of its answers are there and will be, and how far the whole run is."""


@dataclass(frozen=True)
class Results:
    """A suite, its tables' plans, its examples, and each cell's records in the examples' order."""

    suite: Suite
    tables: list[TablePlan]
    examples: dict[str, list[Example]]
    records: dict[Cell, list[Record]]


class Evaluation:
    """One suite on one pair of servers."""

    def __init__(self, suite: Suite, fused: Source, upper: Source | None, out: Path, concurrency: int) -> None:
        """Read the examples.

        Raises:
            ConfigError: a file of the suite is not as it should be.
        """
        self._suite = suite
        self._fused, self._upper = fused, upper
        self._out = out
        self._concurrency = concurrency
        self._examples = load_examples(suite)
        self._tables = plan(suite)
        self._cells = list(dict.fromkeys(cell for table in self._tables for cell in table.cells.values()))
        self._shots = {(c.task, c.shots): self._read_shots(c) for c in self._cells}
        self._encoded: dict[tuple[str, int, int], Encoded] = {}

    async def run(self, watch: Watch) -> Results:
        """Ask what is missing in the store, and return all records.

        Raises:
            ConfigError: the suite names what the servers do not have.
            ServerError: a server does not start, does not answer, or refuses a request.
        """
        records: dict[Cell, list[Record]] = {}
        with Store(self._out / "records.jsonl") as store:
            # One after the other: two engines at once would share the machine.
            for source, log, of_upper in ((self._fused, "server.log", False), (self._upper, "upper.log", True)):
                cells = [cell for cell in self._cells if (cell.upper is not None) == of_upper]
                if source is not None and cells:
                    records |= await self._complete(source, self._out / log, cells, store, watch)
        return Results(self._suite, self._tables, self._examples, records)

    async def _complete(
        self, source: Source, log: Path, cells: list[Cell], store: Store, watch: Watch
    ) -> dict[Cell, list[Record]]:
        """The records of one server's cells; it is not even started if all are there."""
        known = await look_up(source)
        self._check_names(known, cells)
        keys = {cell: self._keys(cell, known.fingerprint) for cell in cells}
        missing = {cell: [i for i, key in enumerate(keys[cell]) if key not in store] for cell in cells}
        if any(missing.values()):
            watch("starting the engine" if source.url is None else "connecting", 0, 0, "")
            async with connected(source, log) as client:
                await self._ask(client, known.presets[0], missing, keys, store, watch)
        return {cell: [store[key] for key in keys[cell]] for cell in cells}

    async def _ask(
        self,
        client: Client,
        default: str,
        missing: dict[Cell, list[int]],
        keys: dict[Cell, list[str]],
        store: Store,
        watch: Watch,
    ) -> None:
        total, done = sum(map(len, missing.values())), 0
        free = asyncio.Semaphore(self._concurrency)

        async def ask(cell: Cell, index: int, before: int) -> None:
            nonlocal done
            async with free:
                record = await self._answer(client, cell, cell.upper or default, index)
            store.add({"key": keys[cell][index], **record})
            done += 1
            watch(cell.name, done - before, len(missing[cell]), f"{done:,} of {total:,} answers")

        for cell, indices in missing.items():
            if not indices:
                continue
            watch(cell.name, 0, len(indices), "")
            try:
                async with asyncio.TaskGroup() as requests:
                    for index in indices:
                        requests.create_task(ask(cell, index, done))
            except ExceptionGroup as faults:
                # The first fault ended the others.
                raise faults.exceptions[0] from None

    async def _answer(self, client: Client, cell: Cell, model: str, index: int) -> Record:
        task, example = self._suite.tasks[cell.task], self._examples[cell.task][index]
        what = f"{cell.name}, example {index + 1}"
        key = (cell.task, cell.shots, index)
        if key not in self._encoded:
            self._encoded[key] = await client.encode(what, task, example, self._shots[cell.task, cell.shots])
        encoded, fusion = self._encoded[key], cell.fusion_field
        if (preset := fusion.get(ROUTE)) is not None:
            model, fusion = preset, await _routed(client, what, task, encoded, fusion)
        if task.metric == "exact":
            reply = await client.generate(what, model, fusion, task, encoded, cell.traced and index < TRACED)
        elif fusion.get("weighting") == JOINT:
            reply = self._joint.score(fusion, encoded)
        else:
            reply = await client.score(what, model, fusion, encoded)
        result = score(task, example, encoded, reply)
        record: Record = {"task": cell.task, "shots": cell.shots, "example": index}
        record |= {"upper": cell.upper} if cell.upper is not None else {"fusion": cell.fusion_field}
        record |= {"value": result.value, "weight": result.weight, "output": result.output}
        record |= {"tokens": reply.tokens, "started": round(reply.started, 4), "seconds": round(reply.seconds, 4)}
        return record | ({"trace": reply.trace} if reply.trace is not None else {})

    @cached_property
    def _joint(self) -> Joint:
        # Imported late: it needs torch and transformers, which the rest does not.
        from evaluation.joint import Joint

        return Joint(self._fused.config)

    def _keys(self, cell: Cell, fingerprint: str) -> list[str]:
        task, shots = self._suite.tasks[cell.task], self._shots[cell.task, cell.shots]
        return [cell.key(fingerprint, task, example, shots) for example in self._examples[cell.task]]

    def _read_shots(self, cell: Cell) -> Sequence[Example]:
        task = self._suite.tasks[cell.task]
        if not cell.shots or task.train is None:
            return ()
        shots = read_examples(cell.task, task, task.train, cell.shots)
        if len(shots) < cell.shots:
            raise ConfigError(f"{task.train}: {cell.shots} examples are needed for {cell.name}; it has {len(shots)}")
        return shots

    def _check_names(self, known: Known, cells: Iterable[Cell]) -> None:
        for cell in cells:
            if cell.fusion_field.get("weighting") == JOINT and self._fused.url is not None:
                raise ConfigError(f"{cell.name}: no server offers {JOINT}; leave out --url, or this setting")
            for expert in cell.fusion_field.get("experts", ()):
                if expert not in known.experts:
                    hint = nearest(expert, known.experts)
                    raise ConfigError(f"{cell.name}: the configuration has no expert '{expert}'; {hint}")
            preset = cell.fusion_field.get(ROUTE)
            if preset is not None and preset not in known.routed:
                hint = nearest(preset, known.routed)
                raise ConfigError(f"{cell.name}: the configuration has no preset '{preset}' that routes; {hint}")
            if cell.upper is not None and cell.upper not in known.presets:
                hint = nearest(cell.upper, known.presets)
                raise ConfigError(f"{cell.name}: the upper bound's configuration has no preset '{cell.upper}'; {hint}")


async def _routed(client: Client, what: str, task: Task, encoded: Encoded, fusion: dict[str, Any]) -> dict[str, Any]:
    """The `fusion` field of a request for a preset that routes.

    What is generated is routed as it is; an answer that is given has no prompt of its own to be routed by, so the
    choice is asked for first.
    """
    own = {key: value for key, value in fusion.items() if key != ROUTE}
    if task.metric == "exact":
        return own
    chosen = await client.route(what, fusion[ROUTE], encoded)
    return {**own, **chosen} if "experts" in chosen else chosen
