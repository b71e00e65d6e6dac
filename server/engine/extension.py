"""What the API may ask a worker between two steps: mixed into vLLM's worker, so that `collective_rpc` reaches it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from server.engine import self_check
from server.engine.weights import AdapterFiles

if TYPE_CHECKING:
    from server.engine.aggregates import Counts
    from server.engine.low_rank import Product
    from server.engine.routing.choosing import Choice
    from server.engine.trace import TraceRow


class FusionWorkerExtension:
    """The engine's `worker_extension_cls`; vLLM refuses names that its worker has too."""

    _staged: Future[dict[str, list[Product]]]

    def take_fusion_trace(self, trace: str, last: bool) -> list[TraceRow]:
        """Rows of `trace` since the last call; the first worker alone keeps any, as all would have the same."""
        rows: list[TraceRow] = self._state().trace_log.take(trace, last)
        return rows

    def take_fusion_choice(self, name: str) -> Choice | None:
        """What a router chose for the request whose route has this name; all workers of an engine know it."""
        choice: Choice | None = self._state().choosing.take(name)
        return choice

    def count_fusion_traces(self) -> tuple[int, int]:
        """How many traces and steps this worker keeps at the moment."""
        kept: tuple[int, int] = self._state().trace_log.kept
        return kept

    def read_fusion_counts(self) -> Counts:
        """Counters over all generated tokens; all workers of one engine have the same."""
        counts: Counts = self._state().aggregates.read()
        return counts

    def watch_fusion(self) -> None:
        """Keep what is fused from now on, and count none of it."""
        self._state().begin_watching()

    def judge_fusion(self) -> self_check.Judgement:
        """Compare what was kept with the reference, and keep no more."""
        state = self._state()
        steps, state.watched = state.watched, None
        return self_check.judge(steps)

    def read_weight_bytes(self) -> int:
        """What the weights of all members take on this worker, each counted once however many share it."""
        number: int = self.get_model().weight_bytes  # type: ignore[attr-defined]
        return number

    def stage_adapter(self, folder: str, multimodal: bool) -> None:
        """Begin to read an adapter's files into memory, beside the steps; `adapter_staged` tells when it is there."""
        stack = self.get_model().stack  # type: ignore[attr-defined]
        reader = ThreadPoolExecutor(1)
        self._staged = reader.submit(lambda: stack.products(AdapterFiles(folder, multimodal)))
        reader.shutdown(wait=False)

    def adapter_staged(self) -> tuple[bool, str | None]:
        """Whether the adapter has been read, and what is wrong with it."""
        if not self._staged.done():
            return False, None
        error = self._staged.exception()
        return True, None if error is None else f"{type(error).__name__}: {error}"

    def put_adapter(self, number: int, preset: int) -> None:
        """Make the staged adapter that of a member which no request uses, and count anew for it and its preset."""
        self.get_model().stack.put(number, self._staged.result())  # type: ignore[attr-defined]
        del self._staged
        self._state().aggregates.forget(preset, number - 1)

    def room_ahead(self) -> tuple[int, int, bool]:
        """What the KV cache has for members that are ahead (`server.engine.own_prompts.Room`)."""
        block_size, most_ahead, frees = self._state().room
        return block_size, most_ahead, frees

    def _state(self) -> Any:
        return self.get_model().state  # type: ignore[attr-defined]
