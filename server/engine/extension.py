"""What the API may ask a worker between two steps: mixed into vLLM's worker, so that `collective_rpc` reaches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.engine import self_check

if TYPE_CHECKING:
    from server.engine.aggregates import Counts
    from server.engine.trace import TraceRow


class FusionWorkerExtension:
    """The engine's `worker_extension_cls`; vLLM refuses names that its worker has too."""

    def take_fusion_trace(self, trace: str, last: bool) -> list[TraceRow]:
        """Rows of `trace` since the last call; the first worker alone keeps any, as all would have the same."""
        rows: list[TraceRow] = self._state().trace_log.take(trace, last)
        return rows

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

    def room_ahead(self) -> tuple[int, int]:
        """What the KV cache has for members that are ahead (`server.engine.own_prompts.Room`)."""
        block_size, most_ahead = self._state().room
        return block_size, most_ahead

    def _state(self) -> Any:
        return self.get_model().state  # type: ignore[attr-defined]
