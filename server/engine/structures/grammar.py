"""One constraint of a request as the grammar that llguidance reads, and its complaints in words for the client.

Knows nothing of vLLM: a process of its own compiles the result (`compiler`).
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

Kind = Literal["json", "regex", "grammar", "choice"]

_UNKNOWN_KEYS = re.compile(r"Unimplemented keys: (\[.*?\])")
_FORMAT = re.compile(r"Unknown format: (\S+)")
_ENDS_NOWHERE = "no text can satisfy it"
_ONE_OF = (
    "the keyword 'oneOf' can be followed only if no value can satisfy two of its branches, told by their types or by a "
    "required property with a `const` of its own; use 'anyOf'"
)


class StructureError(ValueError):
    """A constraint that cannot be followed; `keyword` is the JSON schema keyword to blame, where there is one."""

    def __init__(self, message: str, keyword: str | None = None) -> None:
        super().__init__(message)
        self.keyword = keyword


def lark_of(grammar: str) -> str:
    """A grammar in Lark's syntax, from Lark's or GBNF's.

    Raises:
        StructureError: it is neither.
    """
    if is_lark_syntax(grammar):
        return grammar
    try:
        return gbnf_to_lark(grammar)
    except Exception as error:
        raise StructureError(f"it is neither a GBNF grammar (root ::= ...) nor a Lark one: {error}") from None


def compiled_form(kind: Kind, spec: str, compact: bool = False) -> str:
    """What vLLM's backend would give llguidance for the same constraint; `compact` leaves out white space.

    Raises:
        StructureError: the text cannot be read.
    """
    if kind == "json":
        try:
            return llguidance.LLMatcher.grammar_from_json_schema(spec, defaults={"whitespace_flexible": not compact})
        except ValueError as error:
            raise StructureError(f"it is no JSON schema, an object: {error}") from None
    if kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(spec)
    if kind == "choice":
        return llguidance.grammar_from("choice", spec)
    return llguidance.LLMatcher.grammar_from_lark(lark_of(spec))


def tried(tokenizer: llguidance.LLTokenizer, form: str) -> llguidance.LLMatcher:
    """A matcher of a compiled form, at its first token.

    Raises:
        StructureError: llguidance cannot follow it, or no text does.
    """
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(tokenizer, form, log_level=0, limits=limits)
    if matcher.is_error() and (complaint := matcher.get_error()):
        raise _plain(complaint)
    if not first_tokens(matcher):
        raise StructureError(_ENDS_NOWHERE)
    return matcher


def first_tokens(matcher: llguidance.LLMatcher) -> set[int]:
    """The ids that may come next; none, where no text can satisfy the constraint."""
    mask = int.from_bytes(matcher.compute_bitmask(), "little")
    if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
        return set()
    return {index for index, bit in enumerate(reversed(f"{mask:b}")) if bit == "1"}


def _plain(complaint: str) -> StructureError:
    """llguidance's complaint without what only its authors understand."""
    if found := _UNKNOWN_KEYS.search(complaint):
        keywords = json.loads(found[1])
        names = ", ".join(f"'{keyword}'" for keyword in keywords)
        plural = "s" if len(keywords) > 1 else ""
        return StructureError(f"the keyword{plural} {names} cannot be followed here", keywords[0])
    if found := _FORMAT.search(complaint):
        return StructureError(f"the keyword 'format' cannot be followed with the value '{found[1]}'", "format")
    if "oneOf constraints are not supported" in complaint:
        return StructureError(_ONE_OF, "oneOf")
    if "min/maxProperties only supported" in complaint:
        keyword = "minProperties" if "minProperties" in complaint else "maxProperties"
        return StructureError(f"the keyword '{keyword}' can be followed only if every property is required", keyword)
    if "is not present in a registry" in complaint:
        return StructureError("the keyword '$ref' can be followed only within the schema itself (#/...)", "$ref")
    if "lookarounds not supported" in complaint:
        return StructureError("look-around, of which word boundaries are a kind, is not supported")
    # The last "error: ..." of a regular expression's complaint is its cause; the lines before it draw where.
    causes = re.findall(r"^\s*error: (.+)$", complaint, re.MULTILINE)
    return StructureError(causes[-1] if causes else complaint.strip().splitlines()[0])


def where_is(schema: Any, keyword: str) -> str | None:
    """The dotted path of the first schema that holds `keyword`; "" is the top."""
    pending: list[tuple[str, Any]] = [("", schema)]
    while pending:
        path, value = pending.pop(0)
        if isinstance(value, dict):
            if keyword in value and not path.endswith("properties"):
                return path.lstrip(".")
            pending += [(f"{path}.{key}", part) for key, part in value.items() if key not in ("const", "enum")]
        elif isinstance(value, list):
            pending += [(f"{path}.{number}", part) for number, part in enumerate(value)]
    return None
