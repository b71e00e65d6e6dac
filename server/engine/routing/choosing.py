"""Routing in the worker: in the step in which a request's prompt ends, the base's states choose its experts.

The base runs first in that step. What a router chooses of its last state is written into the slot, and the chosen
experts' members read the whole prompt in the same step, before the large model's pass gives the first token: no prompt
is read twice by anybody. Blocks of the prefix cache hold the base's part alone for those that find them; a chosen
expert writes its own part again, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from server.engine.routing.router import Router

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch

    from server.engine.settings import FusionSettings, Route
    from server.engine.slots import SlotTable
    from server.engine.step import MemberRows

MAX_KEPT = 1 << 14


class Choice(NamedTuple):
    """What was chosen for a request, as it travels from the worker."""

    experts: list[int]
    """By their numbers in the configuration, the likeliest first."""
    probabilities: list[float]
    """By the router's classes."""
    shares: dict[int, list[float]]
    """Of chosen experts that are mixtures, those of their parts."""


class Choosing:
    """The routers of one worker, and what they chose."""

    def __init__(self, routers: list[dict[str, Any]], experts: list[dict[str, Any]]) -> None:
        self._routers = [Router.load(Path(each["file"])) for each in routers]
        self._classes: list[list[str]] = [expert["parts"] or [expert["name"]] for expert in experts]
        """What a router calls each expert: by its name, or its parts' where it is a mixture."""
        self._mixed = [bool(expert["parts"]) for expert in experts]
        self._choices: dict[str, Choice] = {}
        """By the name of the route, for all choices of a prompt: one that is preempted keeps its experts."""

    def choose(self, table: SlotTable, batch: InputBatch, ready: np.ndarray, base: MemberRows) -> None:
        """Choose the experts of the requests that `ready` [B] bool marks, of the base's rows of this step."""
        requests = np.flatnonzero(ready)
        keys = {n: _asked(table, batch, n)[1].name for n in requests}
        new = [n for n in requests if keys[n] not in self._choices]
        for n, probabilities in zip(new, self._probabilities(table, batch, new, base), strict=True):
            settings, (router, top, _) = _asked(table, batch, n)
            _keep(self._choices, keys[n], self._choose(self._routers[router], probabilities, settings.experts, top))
        for n in requests:
            choice = self._choices[keys[n]]
            table.decide(int(batch.idx_mapping_np[n]), choice.experts, choice.shares)
        table.flush()

    def _choose(self, router: Router, probabilities: np.ndarray, experts: Sequence[int], top: int | None) -> Choice:
        """Of some experts, those that steer a prompt of these probabilities [C]."""
        among = {name: expert for expert in experts for name in self._classes[expert]}
        weights = {name: float(probabilities[router.classes.index(name)]) for name in among}
        chosen = router.choose(probabilities, among, top)
        # Several of the names may be parts of one.
        found = list(dict.fromkeys(among[name] for name in chosen))
        shares = {}
        for expert in found:
            if self._mixed[expert]:
                of_parts = [weights[name] * (name in chosen) for name in self._classes[expert]]
                shares[expert] = [weight / sum(of_parts) for weight in of_parts]
        return Choice(found, probabilities.tolist(), shares)

    def take(self, name: str) -> Choice | None:
        """What was chosen for the request whose route has this name."""
        return self._choices.get(name)

    def _probabilities(
        self, table: SlotTable, batch: InputBatch, requests: list[int], base: MemberRows
    ) -> list[np.ndarray]:
        """[C] of each request."""
        if not requests:
            return []
        # A request's newest token gives its last row.
        wanted = torch.as_tensor(batch.cu_num_logits_np[np.array(requests) + 1] - 1, dtype=torch.int64)
        states = base.hidden
        if base.rows is None:
            states = states[wanted.to(states.device)]
        else:
            rows = base.rows.cpu()
            states = states[torch.stack([torch.nonzero(rows == row)[0, 0] for row in wanted]).to(states.device)]
        routers = [_asked(table, batch, n)[1].router for n in requests]
        found = {router: self._routers[router].probabilities(states).cpu().numpy() for router in set(routers)}
        return [found[router][place] for place, router in enumerate(routers)]


def _asked(table: SlotTable, batch: InputBatch, request: int) -> tuple[FusionSettings, Route]:
    """What a routed request of the step asks."""
    slot = table.slots[batch.idx_mapping_np[request]]
    assert slot is not None
    assert slot.settings.route is not None
    return slot.settings, slot.settings.route


def _keep(kept: dict[str, Choice], name: str, choice: Choice) -> None:
    kept[name] = choice
    while len(kept) > MAX_KEPT:
        kept.pop(next(iter(kept)))
