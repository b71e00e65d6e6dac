"""What one request asks of the fusion, as it travels from the API to the worker.

The settings ride in `SamplingParams.extra_args["fusion"]`, a plain dictionary, because that is what vLLM sends to
its engine process unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fusion_kernels import Weighting

if TYPE_CHECKING:
    from vllm import SamplingParams

EXTRA_ARG = "fusion"
SIDES = ("with", "against")
"""Of an expert's pair, as clients call them."""

# The members as sides of a pair name them: the small ones are 0 (the base), 1 + t (expert t), and 1 + T + t (what
# expert t of T is compared with, where that has a KV cache of its own).
LARGE, NOTHING = -1, -2
ANY = -3
"""The side of a pair that nobody looks at."""
FUSED = -4
"""No member: what came of all of them, where both are told of."""
BASE = 0


class Route(NamedTuple):
    """How a request's experts are chosen when its prompt has been read."""

    router: int
    """The number of the preset's router."""
    top: int | None
    """At most so many experts; `None`: any number."""
    name: str
    """The name under which the worker keeps what was chosen."""

    def of_prompt(self, index: int) -> Route:
        """The same for one prompt of a request."""
        return self._replace(name=f"{self.name}/{index}")


class Pair(NamedTuple):
    """The members whose difference is an expert's term, alpha (expert - against)."""

    expert: int
    against: int


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """One request's weighting, with experts by their index in the configuration."""

    weighting: Weighting = Weighting.NONE
    experts: tuple[int, ...] = ()
    """Those that steer; before a `route` has chosen, those that there are to choose from."""
    alpha: tuple[float, ...] = ()
    """Weights of `experts`, in the same order; used by `STATIC` alone."""
    alpha_max: float = 2.0
    preset: int = 0
    """The preset's index in the configuration, under which the metrics count."""
    trace: str | None = None
    """The name under which the worker keeps this request's trace; `None` keeps none."""
    trace_top: bool = False
    """Whether its trace has the likeliest tokens of every member too, and of the fusion."""
    drafter: int | None = None
    """The member that drafts for the request, by its number; `None`: it does not speculate."""
    pairs: tuple[Pair, ...] = ()
    """The members of `experts`, in the same order; left out, each is expert t against the base."""
    prompts: Mapping[int, list[int]] = field(default_factory=dict)
    """The token ids of members that read a prompt of their own, by the members' numbers."""
    shares: Mapping[int, list[float]] = field(default_factory=dict)
    """Of experts that are mixtures, those of their parts; left out, each is what its parts have in common."""
    route: Route | None = None
    """What chooses among `experts`; `None`: all of them steer."""
    says_max_tokens: bool = True
    """Whether it is the request that says how long the answer may be; else it takes what room there is."""

    def __post_init__(self) -> None:
        if not self.pairs:
            object.__setattr__(self, "pairs", tuple(Pair(1 + expert, BASE) for expert in self.experts))

    @property
    def traced(self) -> bool:
        """Whether the worker keeps a trace; of the large model alone only the likeliest tokens are news."""
        return self.trace is not None and (bool(self.experts) or self.trace_top or self.route is not None)

    @property
    def sides(self) -> tuple[Pair, ...]:
        """The pairs as the weighting looks at them. One expert `ALONE` is compared with none."""
        return self.pairs if self.weighting.fuses else tuple(Pair(pair.expert, ANY) for pair in self.pairs)

    @property
    def members_used(self) -> tuple[int, ...]:
        """The small members that steer the request."""
        if self.weighting is Weighting.NONE:
            return ()
        return tuple(sorted({side for pair in self.sides for side in pair if side >= 0}))

    @property
    def members_run(self) -> tuple[int, ...]:
        """The small members that read the request: those that steer it, and the one that drafts for it.

        The base reads all of one that is routed, so that each that continues it can be routed again.
        """
        drafter = () if self.drafter is None else (self.drafter,)
        base = () if self.route is None else (BASE,)
        return tuple(sorted({*self.members_used, *drafter, *base}))

    def of_experts(self, chosen: Collection[int]) -> FusionSettings:
        """The settings with some of the experts alone; without any, the large model answers by itself."""
        kept = [place for place, expert in enumerate(self.experts) if expert in chosen]
        return replace(
            self,
            weighting=self.weighting if kept else Weighting.NONE,
            experts=tuple(self.experts[place] for place in kept),
            pairs=tuple(self.pairs[place] for place in kept),
            alpha=tuple(self.alpha[place] for place in kept if place < len(self.alpha)),
        )

    @property
    def own_prompt_tokens(self) -> dict[int, dict[str, int]]:
        """By expert, how many tokens its sides (`with`, `against`) read in the place of the request's prompt."""
        found = {}
        for expert, pair in zip(self.experts, self.pairs, strict=True):
            read = {side: len(self.prompts[n]) for side, n in zip(SIDES, pair, strict=True) if n in self.prompts}
            if read:
                found[expert] = read
        return found

    def attach(self, params: SamplingParams) -> None:
        """Write the settings into `params.extra_args`, over whatever stood there under the same name."""
        plain = {"weighting": int(self.weighting), "prompts": list(self.prompts.items())}
        plain["shares"] = list(self.shares.items())
        params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: {**asdict(self), **plain}}

    @classmethod
    def of(cls, params: SamplingParams) -> FusionSettings:
        """Read the settings back; a request without any runs the large model alone."""
        values: dict[str, Any] | None = (params.extra_args or {}).get(EXTRA_ARG)
        if values is None:
            return cls()
        return cls(
            weighting=Weighting(values["weighting"]),
            experts=tuple(values["experts"]),
            pairs=tuple(Pair(*pair) for pair in values["pairs"]),
            prompts=dict(values["prompts"]),
            shares=dict(values["shares"]),
            says_max_tokens=values["says_max_tokens"],
            alpha=tuple(values["alpha"]),
            alpha_max=values["alpha_max"],
            preset=values["preset"],
            trace=values["trace"],
            trace_top=values["trace_top"],
            drafter=values["drafter"],
            route=None if values["route"] is None else Route(*values["route"]),
        )
