"""The `speculation` section: which member drafts, and how far ahead."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from server.config.section import Section, not_a_truth_value

AUTO = "auto"
BASE = "base"
MAX_TOKENS = 8


class SpeculationConfig(Section):
    """Tokens drafted by a small member and verified by the fused model in one step: faster, and the same answers."""

    draft: str = Field(
        AUTO,
        description="The member that drafts: `auto` takes each request's own (heaviest) expert, and the base where it "
        "uses none; `base` or an expert's name takes that member for every request.",
    )
    tokens: Annotated[int, BeforeValidator(not_a_truth_value)] = Field(
        3, ge=1, le=MAX_TOKENS, description="How many tokens are drafted ahead at most."
    )
    adapt: bool = Field(
        True,
        description="Draft fewer tokens, or none, where the last steps show that it pays more: measured while serving, "
        "by how many requests run at once. `false`: always `tokens`.",
    )

    def says_who(self) -> str:
        """Who drafts, as the beginning of a sentence."""
        if self.draft == AUTO:
            return "each request's own expert drafts (the base where it has none),"
        return f"{self.draft} drafts for every request,"
