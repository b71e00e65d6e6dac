"""The logits of a call's members, put together as the rows' pairs name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from vllm.utils import torch_utils

from server.engine.settings import ANY, LARGE, NOTHING
from server.engine.step import MemberRows


class Sides:
    """What stands on either side of the experts' pairs, over the N rows of a call."""

    def __init__(
        self, large: torch.Tensor, models: Mapping[int, Any], rows: Sequence[MemberRows | None], common: int
    ) -> None:
        self._logits: dict[int, torch.Tensor] = {LARGE: large}
        self._mixed: dict[bytes, torch.Tensor] = {}
        self._cut: dict[bytes, torch.Tensor] = {}
        self._large, self._models, self._rows, self._common = large, models, rows, common

    def experts(self, members: np.ndarray) -> torch.Tensor:
        """[N, V_m] logits of the members that `members` [N] names row by row; they share their weights."""
        key = members.tobytes()
        if key not in self._mixed:
            self._mixed[key] = self._mix(members)
        return self._mixed[key]

    def against(self, members: np.ndarray) -> torch.Tensor:
        """The same, of what experts are compared with: over the ids alone that all members share.

        What fuses compares over the ids that its arguments have. They must not depend on which members other requests
        of the batch use. Experts that are compared with the same get the same tensor.
        """
        key = members.tobytes()
        if key not in self._cut:
            self._cut[key] = self.experts(members)[:, : self._common]
        return self._cut[key]

    def member(self, number: int) -> torch.Tensor:
        """[N, V_m] logits of one member; of rows that do not use it, nothing that means anything."""
        return self._of(number)

    def _mix(self, members: np.ndarray) -> torch.Tensor:
        # A member that has read nothing yet is named by rows alone that nobody looks at.
        numbers = [int(number) for number in np.unique(members) if number != ANY and self._has_rows(int(number))]
        first, *others = numbers or [NOTHING]
        logits = self._of(first)
        if others:
            logits = logits.clone()
            for number in others:
                rows = np.flatnonzero(members == number).astype(np.int64)
                index = torch_utils.async_tensor_h2d(rows, device=logits.device)
                logits[index] = self._of(number)[index]
        return logits

    def _has_rows(self, member: int) -> bool:
        return member < 0 or self._rows[member] is not None

    def _of(self, member: int) -> torch.Tensor:
        if member not in self._logits:
            if member == NOTHING or self._rows[member] is None:
                self._logits[member] = self._nothing()
            else:
                self._logits |= self._heads(self._models[member])
        return self._logits[member]

    def _heads(self, model: Any) -> dict[int, torch.Tensor]:
        """The logits [N, V_m] of all members that are one model: its head is read once for all of them."""
        parts = {n: part for n, part in enumerate(self._rows) if part is not None and self._models.get(n) is model}
        hidden = [part.hidden for part in parts.values()]
        logits: torch.Tensor = model.compute_logits(hidden[0] if len(hidden) == 1 else torch.cat(hidden))
        split = torch.split(logits, [rows.shape[0] for rows in hidden])
        return {number: self._all_rows(own, part) for (number, part), own in zip(parts.items(), split, strict=True)}

    def _nothing(self) -> torch.Tensor:
        """The logits of no member: every token is as likely as every other."""
        # Of an even stride, for which the kernel is compiled.
        size = -(-self._common // 64) * 64
        return self._large.new_zeros(1, size).expand(self._large.shape[0], -1)[:, : self._common]

    def _all_rows(self, logits: torch.Tensor, part: MemberRows) -> torch.Tensor:
        """A member's logits [N, V_m] of all rows; those that do not use it are zeros, which nobody reads."""
        if part.rows is None:
            return logits
        # Of the same stride as the head's own output, for which the kernel is compiled.
        whole = logits.new_zeros(self._large.shape[0], logits.stride(0))[:, : logits.shape[1]]
        whole[part.rows] = logits
        return whole
