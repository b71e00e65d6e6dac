"""Requests as OpenAI's reference allows them, where the request models of vLLM 0.32 do not: `null`, and allowed tools.

Each function takes a request's JSON before it is validated, and returns it as vLLM's models take it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from server.api.errors import RequestError
from server.errors import nearest

# `null` for which vLLM has a meaning of its own: as many tokens as fit, where leaving the field out asks for 16.
_NULL_IS_A_VALUE = ("max_tokens",)
ALLOWED_TOOLS = "allowed_tools"
MODES = ("auto", "required")


def without_nulls(model: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the fields that are `null` and have a default; vLLM refuses some, and stumbles over others later."""
    return {
        name: value
        for name, value in data.items()
        if value is not None or name in _NULL_IS_A_VALUE or name not in model.model_fields or _required(model, name)
    }


def _required(model: type[BaseModel], name: str) -> bool:
    return model.model_fields[name].is_required()


def with_allowed_tools(data: dict[str, Any]) -> dict[str, Any]:
    """Replace `tool_choice: {"type": "allowed_tools", ...}` by its mode, and the tools by those that it allows.

    Raises:
        RequestError: its mode or its tools cannot be used.
    """
    choice = data.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != ALLOWED_TOOLS:
        return data
    where, allowed = "tool_choice", choice
    if ALLOWED_TOOLS in choice:  # the chat's form; that of responses has the same keys one level higher
        where, allowed = f"tool_choice.{ALLOWED_TOOLS}", choice[ALLOWED_TOOLS]
        if not isinstance(allowed, dict):
            raise RequestError(f"{where}: an object with mode and tools is needed, not {allowed!r:.100}", where)
    mode, named = allowed.get("mode"), allowed.get("tools")
    if not isinstance(mode, str) or mode not in MODES:
        modes = " or ".join(map(repr, MODES))
        raise RequestError(f"{where}.mode: {modes} is needed, not {mode!r:.100}", f"{where}.mode")
    if not isinstance(named, list) or not named:
        raise RequestError(f"{where}.tools: at least one tool is needed, not {named!r:.100}", f"{where}.tools")
    given = data.get("tools")
    tools = {_name(tool): tool for tool in given} if isinstance(given, list) else {}
    names = []
    for index, tool in enumerate(named):
        name = _name(tool)
        if name is None or name not in tools:
            param = f"{where}.tools.{index}"
            hint = nearest(name or "", [known for known in tools if known is not None])
            raise RequestError(f"{param}: {tool!r:.100} is none of the request's tools; {hint}", param)
        names.append(name)
    return data | {"tool_choice": mode, "tools": [tool for name, tool in tools.items() if name in names]}


def _name(tool: Any) -> str | None:
    """The name of a tool, or of a mention of one, in the form of chat (`function.name`) or of responses (`name`)."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else tool.get("name")
    return name if isinstance(name, str) else None
