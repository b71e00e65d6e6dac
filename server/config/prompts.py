"""The `prompt` of an expert: what its members read in the place of a request's own prompt."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from server.config.section import Section

CONTEXT = "context"
"""The `name` by which a request marks the messages that `context: false` leaves out."""


class PromptWay(Section):
    """How a member's prompt is made of a request's messages. Where nothing is said, it is the request's own."""

    system: str | None = Field(
        None, description="The system message, in the place of those that the request has; empty: none at all."
    )
    context: bool = Field(True, description=f"`false` leaves out the messages that are marked `name: {CONTEXT}`.")
    turns: Literal["all", "last"] = Field(
        "all", description="`last` keeps the last message of the user alone, and the system message."
    )
    template: Literal["large", "own"] = Field(
        "large", description="Whose chat template writes the messages: the large model's or the member's own."
    )
    text: str | None = Field(None, description="This text, whatever the request says.")

    @model_validator(mode="after")
    def _text_alone(self) -> Self:
        if self.text is not None and self.changes_messages:
            raise ValueError("text is the whole prompt: leave out system, context, turns and template beside it")
        return self

    @property
    def changes_messages(self) -> bool:
        """Whether it makes another prompt of a request's messages."""
        return self.system is not None or not self.context or self.turns != "all" or self.template != "large"

    @property
    def is_own(self) -> bool:
        """Whether the member reads another prompt than the request's, where the request gives none."""
        return self.text is not None or self.changes_messages


class SidePrompts(Section):
    """The prompts of an expert's pair, each with a KV cache of its own where it is named."""

    expert: PromptWay | None = Field(None, alias="with", description="What the expert itself reads.")
    against: PromptWay | None = Field(
        None, description="What the member reads that it is compared with: the same keys as under `with`."
    )
