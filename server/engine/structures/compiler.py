"""Tries schemas and grammars in processes of their own, a few at a time, each bounded and ended with its request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from collections import OrderedDict
from copy import copy
from dataclasses import astuple, dataclass
from typing import Any, Literal, cast

from vllm.tokenizers import TokenizerLike

from server.engine.structures.grammar import StructureError

MAX_PROCESSES = 2
MAX_REMEMBERED = 1_000
# An answer repeats a grammar of the request, whose body is bounded.
_MAX_LINE = 2**27

Kind = Literal["json", "regex", "grammar", "choice", "structural_tag"]


@dataclass(frozen=True)
class Trial:
    """One constraint to try, with the token ids that other fields of the request allow and ban at its first token."""

    kind: Kind
    spec: str
    allowed: tuple[int, ...] | None = None
    banned: tuple[int, ...] = ()

    def key(self) -> str:
        """What tells it from others."""
        return hashlib.sha256(repr(astuple(self)).encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """A constraint that can be followed; `lark` is a grammar or a structural tag as llguidance reads it."""

    lark: str | None
    meets: bool
    """Whether a token that the trial allows can begin a text that satisfies the constraint."""


class Compiler:
    """A pool of workers, started when they are first needed, and what they found out lately."""

    def __init__(self, tokenizer: TokenizerLike, vocabulary: int, cpu_s: float, compact: bool) -> None:
        self._head = json.dumps(_tokenizer_line(tokenizer, vocabulary))
        self._cpu_s = cpu_s
        self._compact = compact
        self._idle: list[asyncio.subprocess.Process] = []
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        """By size, then by arrival: nobody's small schema waits behind large ones."""
        self._free = MAX_PROCESSES
        self._count = 0
        self._known: OrderedDict[str, Outcome | StructureError] = OrderedDict()

    async def outcome(self, trial: Trial) -> Outcome:
        """Try one constraint; cancelling it ends the work.

        Raises:
            StructureError: it cannot be followed, or costs too much.
        """
        key = trial.key()
        found = self._known.get(key)
        if found is None:
            found = await self._try(trial)
            self._known[key] = found
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        if isinstance(found, StructureError):
            raise found
        return found

    async def close(self) -> None:
        """End the workers that wait for work."""
        while self._idle:
            await _end(self._idle.pop())

    async def _try(self, trial: Trial) -> Outcome | StructureError:
        await self._turn(len(trial.spec))
        worker = None
        try:
            worker = self._idle.pop() if self._idle else await self._start()
            answer = await self._ask(worker, trial)
            if answer is None:
                if await worker.wait() == -signal.SIGPROF:
                    return StructureError(f"it takes more than {self._cpu_s:g} s of processor time to compile")
                return StructureError("it takes more memory to compile than there is for it")
            self._idle.append(worker)
            worker = None
        finally:
            try:
                if worker is not None:
                    await _end(worker)
            finally:
                self._pass_on()
        if "error" in answer:
            return StructureError(answer["error"], answer["keyword"])
        return Outcome(answer["lark"], answer["meets"])

    async def _turn(self, size: int) -> None:
        if self._free:
            self._free -= 1
            return
        self._count += 1
        entry = (size, self._count, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await entry[2]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:  # its turn had come
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        entry = min(self._waiting, key=lambda waiting: waiting[:2])
        self._waiting.remove(entry)
        entry[2].set_result(None)

    async def _start(self) -> asyncio.subprocess.Process:
        # Its own standard error would mix with the server's log; a fault shows as a missing answer.
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server.engine.structures.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_MAX_LINE,
            env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        await _send(worker, self._head)
        return worker

    async def _ask(self, worker: asyncio.subprocess.Process, trial: Trial) -> dict[str, Any] | None:
        question = {
            "kind": trial.kind,
            "spec": trial.spec,
            "allowed": trial.allowed,
            "banned": trial.banned,
            "compact": self._compact,
            "cpu_s": self._cpu_s,
        }
        assert worker.stdout is not None
        try:
            await _send(worker, json.dumps(question))
            line = await worker.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return None
        return json.loads(line) if line else None


async def _end(worker: asyncio.subprocess.Process) -> None:
    """Returns when the process is gone and its pipes are closed: none is left to the collector, after the loop."""
    with contextlib.suppress(ProcessLookupError):
        worker.kill()
    await worker.communicate(b"")


async def _send(worker: asyncio.subprocess.Process, line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line.encode() + b"\n")
    await worker.stdin.drain()


def _tokenizer_line(tokenizer: TokenizerLike, vocabulary: int) -> dict[str, Any]:
    """As `llguidance.hf.from_tokenizer` reads a fast Hugging Face tokenizer, which needs no import of Transformers."""
    backend = copy(cast(Any, tokenizer).backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return {
        "tokenizer": backend.to_str(),
        "vocabulary": max(vocabulary, len(cast(Any, tokenizer))),
        "eos": tokenizer.eos_token_id,
    }
