"""The `fusion` field of a request: its schema, as clients see it in `/docs`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fusion_kernels.weighting import SEARCHING
from server.config import WeightingName
from server.config.schema import ALPHA_LIMIT, WEIGHTING


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a number is needed here, not {value!r:.100}")
    if not math.isfinite(value) or abs(value) > ALPHA_LIMIT:
        raise ValueError(f"a finite number between -{ALPHA_LIMIT:g} and {ALPHA_LIMIT:g} is needed here, not {value}")
    return float(value)


def _number_or_numbers(value: Any) -> Any:
    return value if isinstance(value, dict) else _number(value)


def _positive(value: float) -> float:
    if value <= 0.0:
        raise ValueError(f"a number above 0 is needed here, not {value:g}")
    return value


def _trace(value: Any) -> Any:
    if value is None:
        return False
    if not isinstance(value, bool) and value != "full":
        raise ValueError(f'false, true or "full" is needed here, not {value!r:.100}')
    return value


Alpha = Annotated[float, BeforeValidator(_number)]


class FusionField(BaseModel):
    """How the experts steer the large model in this request. Whatever is left out is the preset's."""

    model_config = ConfigDict(extra="forbid")

    experts: list[str] | None = Field(None, description="The experts to use, by name. Default: the preset's.")
    weighting: WeightingName | None = Field(
        None,
        description=f"{WEIGHTING} Default: the preset's.",
    )
    alpha: Annotated[float | dict[str, Alpha], BeforeValidator(_number_or_numbers)] | None = Field(
        None,
        description="The weight of `static`, of any sign: a number for all experts, or `{expert: number}` for each.",
    )
    alpha_max: Annotated[float, BeforeValidator(_number), AfterValidator(_positive)] | None = Field(
        None, description=f"The largest weight that {SEARCHING} may choose. Default: the preset's."
    )
    trace: Annotated[Literal[False, True, "full"], BeforeValidator(_trace)] = Field(
        False,
        description='`true`: return the weights and divergences of every generated token. `"full"`: also the likeliest '
        "tokens before and after fusion.",
    )
