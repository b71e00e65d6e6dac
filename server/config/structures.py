"""The section on structured outputs: how much of a grammar, schema or tool one request may bring."""

from __future__ import annotations

from pydantic import Field

from server.config.section import Section
from server.config.traffic import Seconds, Whole

STRUCTURES_BACKEND = "guidance"
"""The one backend of structured outputs: vLLM's name for llguidance.

vLLM's own default, `auto`, chooses for each request and keeps the first choice for all, so that the next request of
another kind fails. llguidance says what it cannot follow, where xgrammar drops it with a warning in the log; and it
compiles lazily, so that a schema costs milliseconds.
"""


class StructuresConfig(Section):
    """What a request's schemas, grammars and tools may cost, counted over all of them."""

    max_schema_nodes: Whole = Field(
        50_000, description="Values in the request's JSON schemas: keys, numbers, texts and brackets, at any depth."
    )
    max_enum_values: Whole = Field(10_000, description="Values of one `enum`, or texts of one `choice`.")
    max_name_length: Whole = Field(1_024, description="Characters of a tool's or a property's name.")
    max_text_length: Whole = Field(
        16_384, description="Characters of a pattern, a regular expression, a `const`, or one literal of a grammar."
    )
    max_grammar_rules: Whole = Field(1_000, description="Rules of a grammar.")
    max_required_count: Whole = Field(
        10_000, description="How many items, properties or characters a schema or a repetition may require at least."
    )
    compile_cpu_s: Seconds = Field(
        5.0, description="Processor time that one schema or grammar may take to compile, tried apart from the engine."
    )
