"""The one backend of structured outputs in vLLM: chosen for the engine, and given only what it can read."""

from __future__ import annotations

from typing import Any, cast

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine.input_processor import InputProcessor

from server.config.structures import STRUCTURES_BACKEND
from server.engine.structures.grammar import StructureError
from server.engine.structures.tags import lark_of_tag


def pinned(section: dict[str, Any] | None) -> dict[str, Any]:
    """vLLM's `structured_outputs_config` with the backend that this server uses.

    JSON is compact unless the section says otherwise: of white space between its tokens a model can write no end.
    """
    return {"disable_any_whitespace": True, **(section or {}), "backend": STRUCTURES_BACKEND}


def leave_checks_to_api(processor: InputProcessor) -> None:
    """Stop vLLM from compiling every constraint once more, on the thread that serves everybody.

    The API has tried each in a process of its own (`server.api.structures`). vLLM 0.32 skips its own check where it has
    no configuration to check against.
    """
    processor.structured_outputs_config = cast(Any, None)


def readable(params: StructuredOutputsParams, compact: bool) -> StructuredOutputsParams:
    """A request's constraint as the engine's backend reads it: a structural tag, which it cannot, as a grammar.

    Raises:
        VLLMValidationError: a tool parser wrote a tag that cannot be read either.
    """
    if params.structural_tag is not None:
        try:
            # The schemas in it were checked where they must be followed to the letter.
            params = StructuredOutputsParams(grammar=lark_of_tag(params.structural_tag, compact, lenient=True))
        except StructureError as error:
            raise VLLMValidationError(f"tools: {error}", parameter="tools") from None
    # What vLLM's own check would have noted, and the engine reads.
    params._backend = STRUCTURES_BACKEND
    return params
