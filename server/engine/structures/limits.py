"""Counts what a schema or a grammar holds against the configuration's limits, in one pass that stops at the first."""

from __future__ import annotations

import json
import re
from typing import Any

from server.config.structures import StructuresConfig
from server.engine.structures.grammar import StructureError

_LEAST = ("minItems", "minLength", "minProperties", "minContains")
# A string of a grammar in GBNF or Lark, or a regular expression of the latter.
_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)*/')
_RULE = re.compile(r"^\s*[?!]?[A-Za-z_][\w.-]*(?:\[[^\]\n]*\])?\s*(?:::=|:)", re.MULTILINE)
_REPEAT = re.compile(r"\{(\d+)(?:,\d*)?\}")


class Budget:
    """What is left of one request's share; its structures are counted together."""

    def __init__(self, limits: StructuresConfig, max_depth: int) -> None:
        self._limits = limits
        self._max_depth = max_depth
        self._nodes = 0

    def count_schema(self, schema: Any) -> None:
        """Count a JSON schema, or a tag that holds schemas.

        Raises:
            StructureError: it is too large, too deep, or asks for too much.
        """
        pending: list[tuple[Any, int]] = [(schema, 1)]
        while pending:
            value, depth = pending.pop()
            self._nodes += 1
            if self._nodes > self._limits.max_schema_nodes:
                raise _above("values", "structures.max_schema_nodes", self._limits.max_schema_nodes)
            if depth > self._max_depth:
                raise _above("levels", "limits.max_json_depth", self._max_depth)
            if isinstance(value, dict):
                self._count_keywords(value)
                pending += [(part, depth + 1) for part in value.values()]
            elif isinstance(value, list):
                pending += [(part, depth + 1) for part in value]

    def _count_keywords(self, schema: dict[str, Any]) -> None:
        limits = self._limits
        for key, value in schema.items():
            self.count_name(key)
            if key == "enum" and isinstance(value, list):
                self.count_choices(value, "enum")
            elif key in ("pattern", "const") and isinstance(value, str):
                self.count_text(value, key)
            elif key in _LEAST and isinstance(value, int) and value > limits.max_required_count:
                raise _above(f"as {key}", "structures.max_required_count", limits.max_required_count, key)

    def count_name(self, name: str) -> None:
        """Count the name of a tool or a property.

        Raises:
            StructureError: it is too long.
        """
        if len(name) > self._limits.max_name_length:
            raise _above("characters of a name", "structures.max_name_length", self._limits.max_name_length)

    def count_choices(self, values: list[Any], keyword: str | None = None) -> None:
        """Count the values of an `enum`, or the texts of a choice.

        Raises:
            StructureError: there are too many, or one is too long.
        """
        if len(values) > self._limits.max_enum_values:
            raise _above("values to choose from", "structures.max_enum_values", self._limits.max_enum_values, keyword)
        for value in values:
            if isinstance(value, str):
                self.count_text(value, keyword)

    def count_text(self, text: str, keyword: str | None = None) -> None:
        """Count a pattern, a regular expression or a literal.

        Raises:
            StructureError: it is too long, or repeats too often.
        """
        if len(text) > self._limits.max_text_length:
            raise _above("characters in one text", "structures.max_text_length", self._limits.max_text_length, keyword)
        if keyword in (None, "pattern"):
            for least in _REPEAT.findall(text):
                if len(least) > 9 or int(least) > self._limits.max_required_count:
                    allowed = self._limits.max_required_count
                    raise _above("required repetitions", "structures.max_required_count", allowed, keyword)

    def count_grammar(self, grammar: str) -> None:
        """Count the rules and literals of a grammar.

        Raises:
            StructureError: there are too many, or one is too long.
        """
        limits = self._limits
        # A rule takes a line or more; so does nothing else in numbers.
        if (
            grammar.count("\n") > 20 * limits.max_grammar_rules
            or len(_RULE.findall(grammar)) > limits.max_grammar_rules
        ):
            raise _above("rules", "structures.max_grammar_rules", limits.max_grammar_rules)
        if len(grammar) > limits.max_grammar_rules * limits.max_text_length:
            raise _above("characters in one text", "structures.max_text_length", limits.max_text_length)
        if any(len(literal) > limits.max_text_length for literal in _LITERAL.findall(grammar)):
            raise _above("characters in one text", "structures.max_text_length", limits.max_text_length)


def parsed(text: str, max_depth: int) -> Any:
    """A JSON text that is nested no deeper than `max_depth`.

    Raises:
        StructureError: it is nested deeper, or no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise _above("levels", "limits.max_json_depth", max_depth) from None
    except ValueError as error:
        raise StructureError(f"it is not valid JSON: {error}") from None


def _above(what: str, setting: str, allowed: int, keyword: str | None = None) -> StructureError:
    named = f"the keyword '{keyword}' has " if keyword else "it has "
    return StructureError(f"{named}more than {allowed:,} {what}, this server's {setting}", keyword)
