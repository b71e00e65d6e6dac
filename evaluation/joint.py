"""`kl-joint`, all weights at once: an experiment that no server offers, so log-likelihoods are computed here.

With Hugging Face models and the search of `evaluation.joint_search`, one answer at a time: slow.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from evaluation.client import Encoded, Reply
from evaluation.joint_search import fuse_jointly
from server.config import load_config
from server.engine.members import Member, fetch_weights, resolve_members
from server.errors import ConfigError


class Joint:
    """The members of a configuration, loaded when first used, float32."""

    def __init__(self, config: Path | None) -> None:
        self._config = config
        self._models: dict[str, Any] = {}

    def score(self, fusion: dict[str, Any], encoded: Encoded) -> Reply:
        """Return the log-likelihood of each candidate answer, in nats, as a server would.

        Raises:
            ConfigError: an expert in use is no model of its own, but an adapter or a merge.
        """
        started = time.time()
        totals = [self._log_likelihood(fusion, ids, encoded.start) for ids in encoded.whole]
        tokens = sum(map(len, encoded.whole))
        return Reply(started, time.time() - started, tokens, log_likelihoods=totals)

    def _log_likelihood(self, fusion: dict[str, Any], ids: Sequence[int], start: int) -> float:
        names = ("large", "base", *fusion["experts"])
        with torch.no_grad():
            large, base, *experts = (self._model(name)(torch.tensor([ids])).logits[0, start - 1 : -1] for name in names)
        logits, _ = fuse_jointly(large, base, experts, float(fusion["alpha_max"]))
        return float(logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None]).sum())

    @cached_property
    def _members(self) -> dict[str, Member]:
        members = resolve_members(load_config(self._config))
        fetch_weights(members)
        return {member.name: member for member in members.all}

    def _model(self, name: str) -> Any:
        member = self._members[name]
        if member.kind != "model":
            raise ConfigError(f"kl-joint: expert '{name}' is given as '{member.kind}'; only those given as model serve")
        if name not in self._models:
            self._models[name] = AutoModelForCausalLM.from_pretrained(member.folder, dtype=torch.float32)
        return self._models[name]
