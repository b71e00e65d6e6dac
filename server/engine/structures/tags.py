"""Structural tags, in which vLLM's tool parsers say what a call looks like, as grammars that llguidance reads.

vLLM 0.32's guidance backend knows the older form alone (`structures` and `triggers`), and its tool parsers write the
newer one (xgrammar's `StructuralTag`), so that tools and that backend do not go together in plain vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import llguidance

from server.engine.structures.grammar import StructureError

LENIENT = {"lenient": True, "coerce_one_of": True}
"""llguidance's options of a schema that is followed as far as it can be."""

_TEXT = r"/(.|\n)*/"


def lark_of_tag(tag: str, compact: bool = False, lenient: bool = False) -> str:
    """The Lark grammar of a structural tag in JSON, of the older form or the newer.

    `compact` leaves out white space of JSON; `lenient` follows schemas as far as they can be.

    Raises:
        StructureError: it is no such tag, or holds a format that cannot be followed.
    """
    try:
        data = json.loads(tag)
        if "structures" in data:
            data = {"format": _of_older_form(data)}
        return _Lark(compact, lenient).grammar(data["format"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, StructureError):
            raise
        raise StructureError(f"it is no structural tag: {error!r:.100}") from None


def _of_older_form(data: Mapping[str, Any]) -> dict[str, Any]:
    tags = [
        {"type": "tag", "begin": part["begin"], "content": _schema_format(part["schema"]), "end": part["end"]}
        for part in data["structures"]
    ]
    return {"type": "triggered_tags", "triggers": data["triggers"], "tags": tags}


def _schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": json.loads(schema) if isinstance(schema, str) else schema}


class _Lark:
    """Writes one grammar: a rule for each part that needs a name."""

    def __init__(self, compact: bool, lenient: bool) -> None:
        self._rules: list[str] = []
        self._options: dict[str, bool] = (LENIENT if lenient else {}) | {"whitespace_flexible": not compact}
        self._makers: dict[str, Callable[[Any], str]] = {
            "const_string": lambda part: _quoted(part["value"]),
            "json_schema": self._json,
            "regex": self._regex,
            "any_text": self._any_text,
            "sequence": lambda part: " ".join(self._part(element) for element in part["elements"]),
            "or": lambda part: f"({' | '.join(self._part(element) for element in part['elements'])})",
            "optional": lambda part: f"({self._part(part['content'])})?",
            "plus": lambda part: f"({self._part(part['content'])})+",
            "star": lambda part: f"({self._part(part['content'])})*",
            "tag": self._tag,
            "triggered_tags": self._triggered,
            "tags_with_separator": self._separated,
        }

    def grammar(self, part: Any) -> str:
        start = self._part(part)
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules]) + "\n"

    def _part(self, part: Any) -> str:
        make = self._makers.get(part["type"])
        if make is None:
            raise StructureError(f"the format {part['type']!r:.50} of a structural tag cannot be followed here")
        return make(part)

    def _rule(self, body: str, kind: str = "part", mark: str = "") -> str:
        name = f"{kind}_{len(self._rules)}"
        self._rules.append(f"{name}{mark}: {body}")
        return name

    def _json(self, part: Any) -> str:
        if part.get("style", "json") != "json" or part.get("any_order") or part.get("excludes"):
            raise StructureError("style, any_order and excludes of a structural tag's schema cannot be followed here")
        schema = part["json_schema"]
        schema = schema if isinstance(schema, dict) else {"anyOf": [schema]}
        schema = schema | {"x-guidance": self._options | schema.get("x-guidance", {})}
        return self._rule(f"%json {json.dumps(schema)}")

    def _regex(self, part: Any) -> str:
        if part.get("excludes"):
            raise StructureError("excludes of a structural tag's pattern cannot be followed here")
        return f"/{llguidance.regex_to_lark(part['pattern'], '')}/"

    def _any_text(self, part: Any) -> str:
        if part.get("excludes") or part.get("max_tokens") is not None or part.get("max_chars") is not None:
            raise StructureError("the limits of a structural tag's free text cannot be followed here")
        return _TEXT

    def _tag(self, part: Any) -> str:
        return self._after(part["begin"], part)

    def _after(self, begin: Any, part: Any) -> str:
        ends = part["end"] if isinstance(part["end"], list) else [part["end"]]
        if not isinstance(begin, str) or not all(isinstance(end, str) for end in ends):
            raise StructureError("tokens as a structural tag's begin or end cannot be followed here")
        content = part["content"]
        if content["type"] == "any_text" and all(ends):
            # Free text goes on until the end is there.
            stops = [self._rule(f"{_TEXT} {_quoted(end)}", "end", "[lazy]") for end in ends]
            return f"{_quoted(begin)} ({' | '.join(stops)})"
        return f"{_quoted(begin)} {self._part(content)} ({' | '.join(map(_quoted, ends))})"

    def _triggered(self, part: Any) -> str:
        """Free text, in which a trigger begins one of its tags."""
        if part.get("excludes"):
            raise StructureError("excludes of triggered tags cannot be followed here")
        tags: dict[str, list[str]] = {trigger: [] for trigger in part["triggers"]}
        for tag in part["tags"]:
            trigger = next((known for known in tags if tag["begin"].startswith(known)), None)
            if trigger is None:
                raise StructureError(f"a structural tag begins with none of its triggers: {tag['begin']!r:.100}")
            tags[trigger].append(self._rule(self._after(tag["begin"].removeprefix(trigger), tag)))
        bodies = {trigger: f"({' | '.join(rules)})" for trigger, rules in tags.items() if rules}
        heads = {trigger: self._rule(f"{_TEXT} {_quoted(trigger)}", "trigger", "[lazy]") for trigger in bodies}
        in_text = f"({' | '.join(f'{heads[trigger]} {body}' for trigger, body in bodies.items())})"
        at_once = f"({' | '.join(f'{_quoted(trigger)} {body}' for trigger, body in bodies.items())})"
        once, first = part.get("stop_after_first", False), part.get("at_least_one", False)
        if first:
            return at_once if once else f"{at_once} {in_text}* {_TEXT}"
        return f"({in_text} | {_TEXT})" if once else f"{in_text}* {_TEXT}"

    def _separated(self, part: Any) -> str:
        tags = f"({' | '.join(self._rule(self._tag(tag)) for tag in part['tags'])})"
        if not part.get("stop_after_first", False):
            tags = f"{tags} ({_quoted(part['separator'])} {tags})*"
        return tags if part.get("at_least_one", False) else f"({tags})?"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
