"""The `engine` section: names and plain values of vLLM's engine arguments, checked before anything is built."""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from server.config.structures import STRUCTURES_BACKEND
from server.errors import nearest

_MEMBERS = "the models come from large, base and experts"
_FUSED = "the fused model sets it"
_LORA = "adapters are experts here: list them under experts, or make room for them by adapters"
_WHOLE = "every device holds whole requests of all members; use tensor_parallel_size"
_MULTIMODAL = "the members are text models"
_DRAFTS = "the members draft: see `speculation`"
_PREFETCH = "vLLM fetches the layers of one model ahead; cpu_offload_gb takes those of all members"
OWNED: dict[str, str] = {
    "model": _MEMBERS,
    "model_weights": _MEMBERS,
    "tokenizer": "the tokenizer is the large model's",
    "tokenizer_revision": "the tokenizer is the large model's",
    "revision": "set it beside the model, as large.revision",
    "code_revision": "members with code of their own are not served",
    "trust_remote_code": "members with code of their own are not served",
    "served_model_name": "clients see the names under presets",
    "hf_config_path": _FUSED,
    "hf_overrides": _FUSED,
    "model_class_overrides": _FUSED,
    "model_impl": _FUSED,
    "runner": "the server generates text",
    "convert": "the server generates text",
    "pooler_config": "the server generates text",
    "skip_tokenizer_init": "the server needs the tokenizer",
    "logits_processors": _FUSED,
    "worker_extension_cls": _FUSED,
    "scheduler_cls": "the scheduler makes room for members that read prompts of their own",
    "enable_prompt_embeds": "members have embeddings of their own",
    "pipeline_parallel_size": "the members' hidden states travel together; use tensor_parallel_size",
    "prefill_context_parallel_size": _WHOLE,
    "decode_context_parallel_size": _WHOLE,
    "enable_dbo": "a member reads its own part of a batch, which halves of the batch would not have",
    "ubatch_size": "a member reads its own part of a batch, which halves of the batch would not have",
    "kv_transfer_config": "a connector would move a step's KV cache before the members have read it",
    "kv_offloading_size": "a connector would move a step's KV cache before the members have read it",
    "kv_offloading_backend": "a connector would move a step's KV cache before the members have read it",
    "ec_transfer_config": _MULTIMODAL,
    "kv_sharing_fast_prefill": "the members' prompts are read whole",
    "worker_cls": _FUSED,
    "speculative_config": _DRAFTS,
    "spec_method": _DRAFTS,
    "spec_model": _DRAFTS,
    "spec_tokens": _DRAFTS,
    "offload_group_size": _PREFETCH,
    "offload_num_in_group": _PREFETCH,
    "offload_prefetch_step": _PREFETCH,
    "offload_params": _PREFETCH,
    "enable_lora": _LORA,
    "lora_target_modules": _LORA,
    "default_mm_loras": _LORA,
    "max_loras": _LORA,
    "max_lora_rank": _LORA,
    "limit_mm_per_prompt": _MULTIMODAL,
    "language_model_only": _MULTIMODAL,
}
"""Engine arguments that are not the user's to set, and why."""


class EngineArgumentError(ValueError):
    """One engine argument is unknown, not the user's to set, or of the wrong type."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument


def check_engine_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the names and, as far as YAML has them, the types of engine arguments.

    Imports vLLM, which takes seconds, and only when there is something to look up.

    Raises:
        EngineArgumentError: an argument is unknown, owned by the server, or of the wrong type.
    """
    for name in arguments:
        if name in OWNED:
            raise EngineArgumentError(name, f"engine.{name} cannot be set: {OWNED[name]}")
    structured = arguments.get("structured_outputs_config")
    if isinstance(structured, dict) and structured.get("backend", STRUCTURES_BACKEND) != STRUCTURES_BACKEND:
        name = "structured_outputs_config"
        raise EngineArgumentError(name, f"engine.{name}.backend cannot be set: it is always {STRUCTURES_BACKEND}")
    if not arguments:
        return
    valid = _argument_types()
    for name, value in arguments.items():
        if name not in valid:
            close = nearest(name, (key for key in valid if key not in OWNED))
            hint = close if close.startswith("did") else "it must be one of vLLM's engine arguments, by its Python name"
            raise EngineArgumentError(name, f"unknown key '{name}' in engine; {hint}")
        adapter: TypeAdapter[Any] = TypeAdapter(valid[name])
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            faults = {fault["msg"].removeprefix("Input should be ") for fault in error.errors(include_url=False)}
            wanted = " or ".join(sorted(faults))
            raise EngineArgumentError(name, f"engine.{name}: {value!r} does not fit; it should be {wanted}") from None
        if isinstance(value, dict) and (section := _section_types().get(name)) is not None:
            _check_section(name, section, value)


def _check_section(name: str, section: type, values: dict[str, Any]) -> None:
    """Make vLLM's own class of an argument that is a mapping, as vLLM will.

    Raises:
        EngineArgumentError: it takes no such key, or not this value.
    """
    try:
        section(**(values | {"backend": STRUCTURES_BACKEND} if name == "structured_outputs_config" else values))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(["engine", name, *map(str, fault["loc"])])
        if fault["type"] == "unexpected_keyword_argument":
            keys = [field.name for field in dataclasses.fields(section) if field.init]
            message = f"unknown key '{fault['loc'][-1]}' in engine.{name}; {nearest(str(fault['loc'][-1]), keys)}"
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            message = f"{place}: {reason[:1].lower()}{reason[1:]}" + (
                f", not {fault['input']!r}" if fault["loc"] else ""
            )
        raise EngineArgumentError(name, message) from None


@functools.cache
def _section_types() -> dict[str, type]:
    """Return those of vLLM's engine arguments that are mappings of a class of their own."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    hints = {field.name: field.type for field in dataclasses.fields(AsyncEngineArgs)}
    parts = {name: (hint, *typing.get_args(hint)) for name, hint in hints.items()}
    return {
        name: part
        for name, of in parts.items()
        for part in of
        if isinstance(part, type) and dataclasses.is_dataclass(part)
    }


@functools.cache
def _argument_types() -> dict[str, Any]:
    """Return vLLM's public engine arguments with the types that a YAML value can have."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = dataclasses.fields(AsyncEngineArgs)
    return {
        field.name: functools.reduce(operator.or_, _yaml_types(field.type), None)
        for field in fields
        if not field.name.startswith("_")
    }


def _yaml_types(hint: Any) -> list[Any]:
    """Reduce a type to those that YAML can say: a configuration class becomes a mapping, Python objects go."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (bool, int, float, str) or origin is typing.Literal:
        return [hint]
    if origin in (typing.Union, types.UnionType):
        return [part for argument in arguments for part in _yaml_types(argument)]
    if origin is typing.Annotated:
        return _yaml_types(arguments[0])
    if origin in (list, set, tuple):
        return [list[Any]]
    if hint is dict or origin is dict or dataclasses.is_dataclass(hint):
        return [dict[str, Any]]
    # What is left: enumerations by name, classes of Python objects, and hints that are text.
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [str]
    return [] if isinstance(hint, type) or origin is type else [Any]
