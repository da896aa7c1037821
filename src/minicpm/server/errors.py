"""Every answer that is no success, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

A client's fault is named with the field; a fault of ours says no more than that it is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from minicpm.errors import FormatError, GenerationError, QueueFull, one_line

CLIENT_GONE = 499  # nginx's number for it; nobody reads the answer

# Fields of OpenAI's that this server knows and refuses, and what to do instead.
_REFUSED = {
    "functions": "it is deprecated, use 'tools'",
    "function_call": "it is deprecated, use 'tool_choice'",
    "suffix": "MiniCPM was not trained to fill gaps; put all text into 'prompt'",
    "audio": "this server writes text only",
    "web_search_options": "this server searches nothing",
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class APIError(Exception):
    """An answer to a request that cannot be fulfilled."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.headers = status, kind, param, code, headers

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def json(self) -> bytes:
        # Escaped: a message may quote what is no Unicode.
        return json.dumps(self.body()).encode()

    def response(self) -> Response:
        return Response(self.json(), self.status, dict(self.headers or {}), "application/json")


def internal_error() -> APIError:
    return APIError(
        500,
        "the server failed on this request; its log says more under the request's x-request-id",
        kind="server_error",
        code="internal_error",
    )


def client_gone() -> APIError:
    return APIError(CLIENT_GONE, "the client closed the connection", code="client_gone")


def shutting_down() -> APIError:
    headers = {"Retry-After": "10", "Connection": "close"}
    return APIError(503, "the server is shutting down", kind="server_error", code="shutting_down", headers=headers)


def as_api_error(error: Exception) -> APIError:
    """What a client is told of an exception of the engine or of a check."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, QueueFull):
        headers = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        return APIError(429, str(error), kind="rate_limit_error", code="queue_full", headers=headers)
    if isinstance(error, FormatError):
        # A stranger's chat template refuses the conversation. Where its file lies is nobody's business.
        return APIError(400, one_line(str(error).removeprefix(f"{error.path}: "), 500), code="invalid_value")
    if isinstance(error, GenerationError | ValueError):
        return APIError(400, one_line(str(error), 500), code="invalid_value")
    return internal_error()


def add_handlers(app: FastAPI) -> None:
    """Give every error that can leave the routes OpenAI's shape."""

    @app.exception_handler(APIError)
    async def of_ours(request: Request, error: APIError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        return _validation_error(error.errors(), error.body).response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {one_line(request.url.path, 100)} here; see /openapi.json for what there is"
        elif error.status_code == 405:
            message = f"{one_line(request.method, 20)} is not allowed here; see the Allow header"
        elif error.status_code == 400:
            message = "the body is no JSON in UTF-8, or nested too deeply"
        code = _CODES.get(error.status_code)
        return APIError(error.status_code, message, code=code, headers=error.headers).response()


def _validation_error(problems: Sequence[Mapping[str, Any]], body: object) -> APIError:
    """The first problem as a sentence. What was sent is not repeated: it may be long, and it may be secret."""
    # A value that fits no branch of a union has a problem for each; the one found deepest is of the branch meant.
    problem = max(problems, key=lambda p: len(p["loc"]))
    kind = str(problem["type"])
    if kind == "json_invalid":
        return APIError(400, "the body is no JSON: " + one_line(str(problem.get("ctx", {}).get("error", ""))))
    place = [part for part in problem["loc"] if part not in ("body", "query", "path")]
    if not place:
        return APIError(400, "the body must be a JSON object, sent with 'Content-Type: application/json'")
    field = one_line(str(place[-1]), 100)
    path = _path([*_in_body(place, body), *(place[-1:] if kind == "missing" else ())])
    if kind == "extra_forbidden":
        advice = _REFUSED.get(field, "see docs/serving.md for what there is")
        return APIError(400, f"unknown argument {field}: {advice}", param=path, code="unknown_parameter")
    message = one_line(str(problem["msg"]).removeprefix("Value error, "), 300)
    return APIError(400, f"{path}: {message}" if path else message, param=path or None, code="invalid_value")


def _in_body(place: Sequence[str | int], body: Any) -> list[str | int]:
    """The part of a problem's place that is the client's: pydantic puts names of a union's branches between."""
    keys: list[str | int] = []
    for part in place:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            continue
        keys.append(part)
    return keys


def _path(place: Sequence[str | int]) -> str:
    """('messages', 0, 'user', 'content') -> 'messages[0].user.content'."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{one_line(str(part), 100)}"
    return text.removeprefix(".")
