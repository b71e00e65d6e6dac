"""What one request asks of the fusion, as it travels from the API to the worker.

The settings ride in `SamplingParams.extra_args["fusion"]`, a plain dictionary, because that is what vLLM sends to
its engine process unchanged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fusion_kernels import Weighting

if TYPE_CHECKING:
    from vllm import SamplingParams

EXTRA_ARG = "fusion"


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """One request's weighting, with experts by their index in the configuration."""

    weighting: Weighting = Weighting.NONE
    experts: tuple[int, ...] = ()
    alpha: tuple[float, ...] = ()
    """Weights of `experts`, in the same order; used by `STATIC` alone."""
    alpha_max: float = 2.0
    preset: int = 0
    """The preset's index in the configuration, under which the metrics count."""
    trace: str | None = None
    """The name under which the worker keeps this request's trace; `None` keeps none."""
    trace_top: bool = False
    """Whether its trace has the likeliest tokens too, before and after fusion."""
    drafter: int | None = None
    """The member that drafts for the request, numbered as in `members_used`; `None`: it does not speculate."""

    @property
    def traced(self) -> bool:
        """Whether the worker keeps a trace; of the large model alone only the likeliest tokens are news."""
        return self.trace is not None and (bool(self.experts) or self.trace_top)

    @property
    def members_used(self) -> tuple[int, ...]:
        """The small members that steer the request: 0 is the base, 1 + t expert t. One expert `ALONE` needs no base."""
        if self.weighting is Weighting.NONE:
            return ()
        experts = tuple(sorted(1 + expert for expert in self.experts))
        return experts if not self.weighting.fuses or not experts else (0, *experts)

    @property
    def members_run(self) -> tuple[int, ...]:
        """The small members that read the request: those that steer it, and the one that drafts for it."""
        return tuple(sorted({*self.members_used, *(() if self.drafter is None else (self.drafter,))}))

    def attach(self, params: SamplingParams) -> None:
        """Write the settings into `params.extra_args`, over whatever stood there under the same name."""
        params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: {**asdict(self), "weighting": int(self.weighting)}}

    @classmethod
    def of(cls, params: SamplingParams) -> FusionSettings:
        """Read the settings back; a request without any runs the large model alone."""
        values: dict[str, Any] | None = (params.extra_args or {}).get(EXTRA_ARG)
        if values is None:
            return cls()
        return cls(
            weighting=Weighting(values["weighting"]),
            experts=tuple(values["experts"]),
            alpha=tuple(values["alpha"]),
            alpha_max=values["alpha_max"],
            preset=values["preset"],
            trace=values["trace"],
            trace_top=values["trace_top"],
            drafter=values["drafter"],
        )
