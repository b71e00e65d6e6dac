"""The process that tries schemas and grammars out, so that a bad one costs nobody else anything.

`python -m server.engine.structures.worker`: reads one JSON object a line from standard input and answers each with one
on standard output. The first line is the tokenizer. Whoever started it kills it when a trial has lost its request; the
kernel kills it when a trial has used up its processor time or memory.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

import llguidance

from server.engine.structures.grammar import StructureError, compiled_form, first_tokens, lark_of, tried
from server.engine.structures.tags import lark_of_tag

# Of two that want a core, the model's thread gets nine tenths.
NICENESS = 10
MAX_BYTES = 4 * 2**30


def main() -> None:
    """Answer trials until standard input ends."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    first = json.loads(sys.stdin.readline())
    tokenizer = llguidance.LLTokenizer(first["tokenizer"], n_vocab=first["vocabulary"], eos_token=first["eos"])
    for line in sys.stdin:
        request = json.loads(line)
        # Counts the processor time of this process; the signal's own action ends it.
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        answer = _answer(tokenizer, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _answer(tokenizer: llguidance.LLTokenizer, request: dict[str, Any]) -> dict[str, Any]:
    kind, spec, compact = request["kind"], request["spec"], request["compact"]
    try:
        if kind == "structural_tag":
            kind, spec = "grammar", lark_of_tag(spec, compact)
        elif kind == "grammar":
            spec = lark_of(spec)
        matcher = tried(tokenizer, compiled_form(kind, spec, compact))
        possible = first_tokens(matcher).difference(request["banned"])
        if request["allowed"] is not None:
            possible.intersection_update(request["allowed"])
        return {"lark": spec if kind == "grammar" else None, "meets": bool(possible)}
    except StructureError as error:
        return {"error": str(error), "keyword": error.keyword}
    except MemoryError:
        return {"error": "it needs too much memory to compile", "keyword": None}
    except Exception as error:
        return {"error": f"it cannot be compiled: {error!r:.200}", "keyword": None}


if __name__ == "__main__":
    main()
