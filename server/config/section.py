"""What every mapping of the configuration file has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from server.errors import nearest


class Section(BaseModel):
    """A mapping of the file. It refuses keys that it does not know, and names the nearest one that it does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    hint = nearest(str(key), known)
                    raise PydanticCustomError("unknown_key", "{hint}", {"key": str(key), "hint": hint})
        return data


def not_a_truth_value(value: object) -> object:
    """Refuse `true` where a number is meant: pydantic would take it for 1.

    Raises:
        ValueError: it is a truth value.
    """
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    return value


def fault(where: tuple[str, ...], message: str) -> PydanticCustomError:
    """Make a fault that belongs deeper than the section whose validator found it."""
    return PydanticCustomError("fault", "{message}", {"where": where, "message": message})
