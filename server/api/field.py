"""The `fusion` field of a request: its schema, as clients see it in `/docs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fusion_kernels.weighting import SEARCHING
from server.config.setting import WEIGHTING, AlphaMax, Alphas, WeightingName


def _trace(value: Any) -> Any:
    if value is None:
        return False
    if not isinstance(value, bool) and value != "full":
        raise ValueError(f'false, true or "full" is needed here, not {value!r:.100}')
    return value


GivenPrompt = list[dict[str, Any]] | list[int] | str
"""Messages, token ids or a text."""


Share = Annotated[float, Field(ge=0, le=1)]


class SidesField(BaseModel):
    """Prompts of their own for an expert and for what it is compared with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    with_: GivenPrompt | None = Field(None, alias="with", description="What the expert reads.")
    against: GivenPrompt | None = Field(None, description="What the member reads that the expert is compared with.")


class FusionField(BaseModel):
    """How the experts steer the large model in this request. Whatever is left out is the preset's."""

    # Strict: "1.0" is text and not a number.
    model_config = ConfigDict(extra="forbid", strict=True)

    experts: list[str] | None = Field(None, description="The experts to use, by name. Default: the preset's.")
    weighting: WeightingName | None = Field(
        None,
        description=f"{WEIGHTING} Default: the preset's.",
    )
    alpha: Alphas | None = Field(
        None,
        description="The weight of `static`, of any sign: a number for all experts, or `{expert: number}` for each.",
    )
    alpha_max: AlphaMax | None = Field(
        None, description=f"The largest weight that {SEARCHING} may choose. Default: the preset's."
    )
    prompts: dict[str, SidesField] | None = Field(
        None,
        description="By expert, what it (`with`) and the member that it is compared with (`against`) read in the place "
        "of this request's prompt: messages, a text or token ids.",
    )
    parts: dict[str, dict[str, Share]] | None = Field(
        None,
        description="Of experts that are mixtures, by name, the share of each part, from 0 to 1. Default: none, "
        "or what the preset's router makes of the prompt.",
    )
    trace: Annotated[Literal[False, True, "full"], BeforeValidator(_trace)] = Field(
        False,
        description='`true`: return the weights and divergences of every generated token. `"full"`: also the likeliest '
        "tokens before and after fusion.",
    )
    speculate: bool | None = Field(
        None,
        description="`false`: no member drafts for this request. Default: as the server's configuration says. It "
        "changes no token, only the speed.",
    )
