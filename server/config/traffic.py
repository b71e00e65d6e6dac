"""The sections on who may ask how much: admission, limits and auth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from server.config.section import Section, not_a_truth_value


def _whole(value: int) -> int:
    if value < 1:
        raise ValueError(f"{value} is not a whole number of 1 or more")
    return value


def _count(value: int) -> int:
    if value < 0:
        raise ValueError(f"{value} is not a whole number of 0 or more")
    return value


def _seconds(value: float) -> float:
    if not 0.0 < value <= 86_400.0:
        raise ValueError(f"{value:g} is not a number of seconds above 0 and up to a day (86400)")
    return value


def _file(text: str, info: ValidationInfo) -> str:
    folder = info.context["folder"] if info.context else Path.cwd()
    path = (folder / Path(text).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return str(path)


UnknownFields = Literal["warn", "refuse", "ignore"]
Whole = Annotated[int, BeforeValidator(not_a_truth_value), AfterValidator(_whole)]
Count = Annotated[int, BeforeValidator(not_a_truth_value), AfterValidator(_count)]
Seconds = Annotated[float, BeforeValidator(not_a_truth_value), AfterValidator(_seconds)]


class AdmissionConfig(Section):
    """How much work the engine holds at once, and how the rest waits."""

    max_running: Whole | None = Field(
        None,
        description="Sequences in the engine at once; a request counts once for each of its prompts and choices. "
        "Default: `engine.max_num_seqs`, or what vLLM makes of it.",
    )
    max_running_tokens: Whole | None = Field(
        None,
        description="Tokens in the engine at once: prompt plus `max_tokens` of each running sequence, times the weight "
        "of the members that it runs (1 for the large model alone). Default: what the KV cache holds.",
    )
    max_queued: Count = Field(256, description="Requests that may wait for a place. One more is answered with 429.")
    queue_timeout_s: Seconds = Field(
        30.0, description="How long a request may wait for a place before it is answered with 429."
    )
    aging_s: Seconds = Field(
        10.0,
        description="A waiting request is treated as one `priority` more urgent after every so many seconds, so that "
        "none starves.",
    )


class LimitsConfig(Section):
    """What one request may ask, and how long it may take."""

    max_body_bytes: Whole = Field(8 * 1024 * 1024, description="Size of a request's body; a larger one gets 413.")
    max_json_depth: Whole = Field(64, description="How deep a request's JSON may be nested; deeper gets 400.")
    max_json_objects: Whole = Field(
        10_000, description="Objects and lists that a request's JSON may hold in all; more get 400."
    )
    max_tokens: Whole | None = Field(
        None,
        description="The largest `max_tokens` of a request, and the value of those that leave it out. Default: what is "
        "left of the context after the prompt.",
    )
    unknown_fields: UnknownFields = Field(
        "warn",
        description="What becomes of a request's fields that nothing here reads, such as `temprature`: `warn` names "
        "them in the header `Warning` of the answer, `refuse` answers 400, `ignore` says nothing, as vLLM does.",
    )
    max_n: Whole = Field(64, description="The largest `n` of a request.")
    max_prompts: Whole = Field(
        256, description="Prompts in one request to `/v1/completions`, or conversations in one batch."
    )
    stored_responses: Count = Field(
        128,
        description="Answers of `/v1/responses` kept in memory for each key, for `previous_response_id`, `background` "
        "and reading them again; the oldest goes first. 0 keeps none.",
    )
    stored_bytes: Whole = Field(
        32 * 1024 * 1024, description="Size of the answers that are kept for each key, with their requests."
    )
    read_timeout_s: Seconds = Field(
        30.0, description="How long a client may take to send a request's headers, and then its body."
    )
    write_timeout_s: Seconds = Field(
        60.0, description="How long a client may leave a full connection unread before it is closed."
    )
    keep_alive_s: Seconds = Field(
        10.0,
        description="How long a stream may be silent before it sends a comment line, so that proxies keep it open. One "
        "that waits longer for its place has begun with 200, and is refused by an error event.",
    )
    request_timeout_s: Seconds = Field(
        600.0, description="How long a request may take in all. A stream ends with an error event, others get 504."
    )


class AuthConfig(Section):
    """Who may ask. Without keys everybody may."""

    keys_file: Annotated[str, AfterValidator(_file)] | None = Field(
        None,
        description="A YAML file of API keys, read again when it changes. The environment variable "
        "`LOGIT_FUSION_API_KEY` (one key, or several with commas) serves where one key is enough.",
    )
    share_prefix_cache: Annotated[bool, Field(strict=True)] = Field(
        False,
        description="Whether a key's requests may find what other keys' left in the prefix cache. It saves work where "
        "keys share long prompts, and lets each of them learn, by guessing, what the others have sent.",
    )
