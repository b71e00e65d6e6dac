"""What a request wants its answer to follow: found by field, bounded, and tried before the engine sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from vllm.sampling_params import StructuredOutputsParams
from vllm.tokenizers import TokenizerLike
from vllm.v1.structured_output.backend_guidance import process_for_additional_properties

from server.api.errors import RequestError
from server.api.masks import field_of, masks_of
from server.config import Config
from server.engine.structures.compiler import Compiler, Kind, Trial
from server.engine.structures.grammar import StructureError, where_is
from server.engine.structures.limits import Budget, parsed
from server.engine.structures.tags import LENIENT

_OUTPUTS = "structured_outputs"
_OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
_KINDS: tuple[Kind, ...] = ("json", "regex", "grammar", "choice", "structural_tag")
# Of a tool that is not strict: all of its schema that can be followed.
_LENIENT = {"x-guidance": LENIENT}


@dataclass(frozen=True)
class Structure:
    """One constraint of a request, and the field that holds it."""

    field: str
    kind: Kind
    value: Any
    """A JSON schema as an object or a text, or the text of the others; of `choice` a list."""
    strict: bool | None = None
    """Of a tool's arguments alone: whether all of the schema is asked for."""


class Structures:
    """Checks the constraints of requests; one for the whole server."""

    def __init__(self, config: Config, tokenizer: TokenizerLike, compiler: Compiler) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._compiler = compiler

    async def check(self, request: BaseModel) -> None:
        """Try every constraint of a request, and put what the engine can read into its place.

        Raises:
            RequestError: one is too large, cannot be followed, or contradicts another field.
        """
        masks = masks_of(request, self._tokenizer)
        _check_with_tools(request)
        _settle_options(request, self._config.limits.max_json_depth)
        budget = Budget(self._config.structures, self._config.limits.max_json_depth)
        for name, field in _tool_names(request):
            _named(field, budget.count_name, name)
        for structure in _structures(request):
            spec = self._bounded(structure, budget)
            # The arguments of a call are not what an answer begins with.
            first = masks.first_token() if structure.strict is None else ()
            trial = Trial(structure.kind, spec, *first)
            try:
                outcome = await self._compiler.outcome(trial)
            except StructureError as error:
                raise _refusal(structure, error) from None
            if not outcome.meets:
                others = " and ".join(masks.fields)
                raise RequestError(
                    f"{structure.field} and {others} contradict each other: no token can begin the answer",
                    structure.field,
                )
            if outcome.lark is not None:
                request.structured_outputs = StructuredOutputsParams(grammar=outcome.lark)  # type: ignore[attr-defined]

    def _bounded(self, structure: Structure, budget: Budget) -> str:
        """The text of a constraint within the limits."""
        value, depth = structure.value, self._config.limits.max_json_depth
        match structure.kind:
            case "json" | "structural_tag":
                schema = _named(structure.field, parsed, value, depth) if isinstance(value, str) else value
                _named(structure.field, budget.count_schema, schema)
                return json.dumps(schema)
            case "choice":
                _named(structure.field, budget.count_choices, value)
                if not value:
                    raise RequestError(f"{structure.field}: at least one text is needed", structure.field)
                return json.dumps(value)
            case "grammar":
                _named(structure.field, budget.count_grammar, value)
            case "regex":
                _named(structure.field, budget.count_text, value)
        text: str = value
        return text


def _check_with_tools(request: Any) -> None:
    """Refuse what vLLM cannot put beside tools that the model may call or not, and would leave out without a word."""
    outputs = field_of(request, _OUTPUTS)
    if outputs is None or not field_of(request, "tools") or field_of(request, "tool_choice") != "auto":
        return
    tag = getattr(request, "structural_tag", None)
    if outputs.grammar is not None:  # free text, in the place of a tag
        field = f"{_OUTPUTS}.grammar" if tag is None else tag.field
        raise RequestError(f"{field}: it cannot stand beside tools whose tool_choice is 'auto'", field)


def _settle_options(request: Any, max_depth: int) -> None:
    """Write the options beside a JSON schema into it, where llguidance reads them; vLLM's engine would not."""
    outputs = field_of(request, _OUTPUTS)
    if outputs is None:
        return
    given = [name for name in _OPTIONS if getattr(outputs, name)]
    if not given:
        return
    schema = {"type": "object"} if outputs.json_object else outputs.json
    if schema is None:
        field = f"{_OUTPUTS}.{given[0]}"
        raise RequestError(f"{field}: it is for json and json_object only", field)
    schema = _named(f"{_OUTPUTS}.json", parsed, schema, max_depth) if isinstance(schema, str) else schema
    if not isinstance(schema, dict):
        return  # what is tried next says so
    if outputs.disable_additional_properties:
        schema = process_for_additional_properties(schema)
    options: dict[str, Any] = {"whitespace_flexible": False} if outputs.disable_any_whitespace else {}
    if outputs.whitespace_pattern is not None:
        # A pattern asks for white space, which the engine leaves out by default.
        options = {"whitespace_flexible": True, "whitespace_pattern": outputs.whitespace_pattern} | options
    request.structured_outputs = StructuredOutputsParams(json={"x-guidance": options} | schema)


def _structures(request: Any) -> Iterator[Structure]:
    tag = getattr(request, "structural_tag", None)
    if tag is not None:
        yield Structure(*tag)
    elif (outputs := field_of(request, _OUTPUTS)) is not None:
        if outputs.json_object is False:
            field = f"{_OUTPUTS}.json_object"
            raise RequestError(f"{field}: true is needed here; leave it out for free text", field)
        for kind in _KINDS:
            if (value := getattr(outputs, kind)) is not None:
                yield Structure(f"{_OUTPUTS}.{kind}", kind, value)
    response_format = field_of(request, "response_format")
    if response_format is not None and response_format.type == "json_schema" and response_format.json_schema:
        schema = response_format.json_schema.json_schema
        yield Structure("response_format.json_schema.schema", "json", {} if schema is None else schema)
    text_format = getattr(field_of(request, "text"), "format", None)
    if text_format is not None and text_format.type == "json_schema":
        yield Structure("text.format.schema", "json", text_format.schema_)
    if field_of(request, "tool_choice") != "none":
        yield from _tools(request)


def _tools(request: Any) -> Iterator[Structure]:
    for index, tool in enumerate(field_of(request, "tools") or ()):
        function = getattr(tool, "function", tool)
        for name in ("parameters", "input_schema"):
            schema = getattr(function, name, None)
            if not isinstance(schema, dict):
                continue
            where = f"tools.{index}.function.{name}" if function is not tool else f"tools.{index}.{name}"
            strict = getattr(function, "strict", None) is True
            yield Structure(where, "json", schema if strict else _LENIENT | schema, strict)


def _tool_names(request: Any) -> Iterator[tuple[str, str]]:
    for index, tool in enumerate(field_of(request, "tools") or ()):
        function = getattr(tool, "function", tool)
        name = getattr(function, "name", None)
        if isinstance(name, str):
            where = "function.name" if function is not tool else "name"
            if not name or json.dumps(name, ensure_ascii=False)[1:-1] != name:
                message = f"tools.{index}.{where}: a name without quotes and control characters is needed"
                raise RequestError(f"{message}, not {name!r:.100}", f"tools.{index}.{where}")
            yield name, f"tools.{index}.{where}"


def _named(field: str, count: Any, *values: Any) -> Any:
    try:
        return count(*values)
    except StructureError as error:
        raise RequestError(f"{field}: {error}", field) from None


def _refusal(structure: Structure, error: StructureError) -> RequestError:
    message, field = f"{structure.field}: {error}", structure.field
    if error.keyword is not None:
        schema = json.loads(structure.value) if isinstance(structure.value, str) else structure.value
        path = where_is(schema, error.keyword)
        message += f" (at {path})" if path else ""
    if structure.strict and error.keyword is not None:
        message += '; without "strict": true the arguments follow the rest of the schema'
    return RequestError(message, field)
