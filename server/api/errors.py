"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from server.admission import AdmissionError
from server.admission.policy import Reason
from server.api.field import FusionField
from server.errors import nearest

_UNREADABLE = "There was an error parsing the body"  # FastAPI's, of a body that json.loads cannot decode

ERRORS: dict[int | str, dict[str, Any]] = {
    status.value: {"model": ErrorResponse}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    )
}
"""What a route's documentation says of its errors."""

MAX_REPORTED_FAULTS = 3
MAX_VALUE_CHARACTERS = 100
# About what a small server takes to be started again; a large one takes longer, and is not there to say so.
RESTART_RETRY_SECONDS = 15
ENGINE_DEAD = "the engine has died; the server stops, and answers again when it has been restarted"


class RequestError(Exception):
    """A request that cannot be served as it is; `param` names the field, if one is to blame."""

    def __init__(self, message: str, param: str | None, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


class FieldError(HTTPException):
    """A fault that is found while the body is read, where FastAPI lets only its own errors through."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, message)
        self.param = param


def register(app: FastAPI) -> None:
    """Answer every error of the app in OpenAI's form: vLLM's handlers, with plainer words for invalid requests."""
    init_exception_handler(app)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestError)(_request_error)
    app.exception_handler(AdmissionError)(_admission_error)
    app.exception_handler(EngineDeadError)(_engine_dead)
    app.exception_handler(EngineGenerateError)(_engine_failed)
    app.exception_handler(RequestValidationError)(_validation_error)


def error_response(
    message: str, param: str | None, status: HTTPStatus, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The JSON response of one error; its type is the status' own, as in vLLM ("BadRequestError")."""
    body = create_error_response(message, err_type=error_type(status), status_code=status, param=param)
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def error_type(status: HTTPStatus) -> str:
    """The type of an error, which clients may branch on: "BadRequestError", "TooManyRequestsError"."""
    return "".join(status.phrase.split()) + "Error"


# By status, what Anthropic's protocol calls an error; https://docs.anthropic.com/en/api/errors.
ANTHROPIC_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


def anthropic_error(message: str, status: HTTPStatus) -> dict[str, Any]:
    """An error in the form of Anthropic's protocol: `{"type": "error", "error": {"type", "message"}}`."""
    otherwise = "api_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"type": "error", "error": {"type": ANTHROPIC_TYPES.get(status, otherwise), "message": message}}


async def _request_error(request: Request, error: RequestError) -> JSONResponse:
    return error_response(str(error), error.param, error.status)


def admission_status(error: AdmissionError) -> HTTPStatus:
    """The status of a request that may not come in."""
    return HTTPStatus.SERVICE_UNAVAILABLE if error.reason is Reason.DRAINING else HTTPStatus.TOO_MANY_REQUESTS


async def _admission_error(request: Request, error: AdmissionError) -> JSONResponse:
    status = admission_status(error)
    headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return error_response(str(error), None, status, headers)


async def _engine_dead(request: Request, error: EngineDeadError) -> JSONResponse:
    headers = {"Retry-After": str(RESTART_RETRY_SECONDS)}
    return error_response(ENGINE_DEAD, None, HTTPStatus.SERVICE_UNAVAILABLE, headers)


async def _engine_failed(request: Request, error: EngineGenerateError) -> JSONResponse:
    cause = error.__cause__
    if isinstance(cause, UnicodeEncodeError | OverflowError):
        # Half a character, or a number of more than 64 bits, that no check minded and that cannot be sent on.
        return error_response(f"a value cannot be passed on to the engine: {cause}", None, HTTPStatus.BAD_REQUEST)
    return error_response("the engine failed at this request", None, HTTPStatus.INTERNAL_SERVER_ERROR)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    status = HTTPStatus(error.status_code)
    if isinstance(error, FieldError):
        return error_response(error.detail, error.param, status)
    if error.detail == _UNREADABLE:
        return error_response("body: it is not UTF-8 text", "body", status)
    if error.detail == status.phrase:  # such as "Not Found", of a path that there is not
        return error_response(
            f"{request.method} {request.url.path}: {error.detail}", None, status, dict(error.headers or {})
        )
    return error_response(error.detail, None, status, dict(error.headers or {}))


async def _validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = error.errors()
    field_paths = [_field_path(fault, error.body) for fault in faults]
    lines = [_sentence(fault, field_path) for fault, field_path in zip(faults, field_paths, strict=True)]
    # A field that may have one of several types fails once for each of them.
    lines = list(dict.fromkeys(lines))
    message = "; ".join(lines[:MAX_REPORTED_FAULTS])
    if len(lines) > MAX_REPORTED_FAULTS:
        message += f"; and {len(lines) - MAX_REPORTED_FAULTS} more"
    return error_response(message or "invalid request", next(iter(field_paths), None), HTTPStatus.BAD_REQUEST)


def _field_path(fault: Any, body: Any) -> str | None:
    """The field's dotted name as the client wrote it: `fusion.alpha`, `messages.0.role`."""
    if not isinstance(fault, dict):
        # vLLM's check of the content type reports a bare sentence.
        return "Content-Type"
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, VLLMValidationError) and cause.parameter:
        return str(cause.parameter)
    if fault["type"] == "json_invalid":
        return "body"
    where, *loc = fault["loc"]
    if where != "body":
        return clean_loc_for_param(tuple(fault["loc"])).removeprefix("query.")
    written = []
    for number, part in enumerate(loc, 1):
        # Pydantic also names the branches of its unions, by the names of vLLM's and OpenAI's classes.
        if (isinstance(body, dict) and part in body) or (
            isinstance(body, list) and isinstance(part, int) and part < len(body)
        ):
            body = body[part]
        elif not (fault["type"] == "missing" and number == len(loc)):
            continue
        written.append(str(part))
    return ".".join(written) or "body"


def _sentence(fault: Any, field_path: str | None) -> str:
    if not isinstance(fault, dict):
        return f"{field_path}: {fault}"
    if fault["type"] == "json_invalid":
        position = fault["loc"][-1]
        return f"body: not valid JSON at character {position}: {fault.get('ctx', {}).get('error', '')}"
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        return f"{field_path}: there is no such field; {nearest(name, FusionField.model_fields)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in ("value_error", "missing"):
        return f"{field_path}: {message}"
    value = repr(fault.get("input"))
    if len(value) > MAX_VALUE_CHARACTERS:
        value = value[:MAX_VALUE_CHARACTERS] + "..."
    return f"{field_path}: {message}, not {value}"
