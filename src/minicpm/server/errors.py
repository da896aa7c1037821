"""Every answer that is no success, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

A client's fault is named with the field; a fault of ours says no more than that it is one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from minicpm.errors import FormatError, GenerationError, QueueFull, one_line

_LOGGER = logging.getLogger("minicpm.server")
CLIENT_GONE = 499  # nginx's status for a closed connection; no client receives it

# Fields of OpenAI and other servers that this server recognises and refuses, and what to do instead.
_OUTPUTS = "use 'structured_outputs'"
_REFUSED = {
    "functions": "it is deprecated, use 'tools'",
    "function_call": "it is deprecated, use 'tool_choice'",
    "suffix": "MiniCPM was not trained to fill gaps; put all text into 'prompt'",
    "audio": "this server writes text only",
    "moderation": "this server judges no texts; leave it out",
    "web_search_options": "this server searches nothing",
    "extra_body": "its fields belong into the request itself; the official client puts them there",
    "options": "its fields belong into the request itself, by OpenAI's names",
    "grammar": _OUTPUTS,
    "guided_choice": _OUTPUTS,
    "guided_grammar": _OUTPUTS,
    "guided_json": _OUTPUTS,
    "guided_regex": _OUTPUTS,
    "json_schema": "use 'response_format'",
    "input": "use 'messages', or 'prompt' of /v1/completions",
    "system": "use a message of the role 'system'",
    "messages": "conversations go to /v1/chat/completions",
    "prompt": "texts go to /v1/completions, here are 'messages'",
    "max_new_tokens": "use 'max_tokens'",
    "max_output_tokens": "use 'max_tokens'",
    "n_predict": "use 'max_tokens'",
    "num_predict": "use 'max_tokens'",
    "random_seed": "use 'seed'",
    "repeat_penalty": "use 'repetition_penalty'",
    "stop_sequences": "use 'stop'",
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
_TYPES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


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
    """The error that a client receives for an exception of the engine or of a check."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, QueueFull):
        headers = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        return APIError(429, str(error), kind="rate_limit_error", code="queue_full", headers=headers)
    if isinstance(error, FormatError):
        # An untrusted chat template refused the conversation. The client must not see the path of its file.
        return APIError(400, one_line(str(error).removeprefix(f"{error.path}: "), 500), code="invalid_value")
    if isinstance(error, GenerationError | ValueError):
        return APIError(400, one_line(str(error), 500), code="invalid_value")
    return internal_error()


def add_handlers(app: FastAPI) -> None:
    """Give every error that can leave the routes OpenAI's shape."""

    @app.exception_handler(APIError)
    async def of_ours(request: Request, error: APIError) -> Response:
        if error.code == "internal_error":
            request_id = request.scope["state"]["request_id"]
            _LOGGER.error("request %s failed", request_id, exc_info=error.__cause__ or error)
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        return _validation_error(error.errors(), error.body).response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        path, method = one_line(request.url.path, 100), one_line(request.method, 20)
        if error.status_code == 404:
            message = f"there is no {path} here; {_hint(request.url.path, _paths(app))}"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message = f"{method} is not allowed here; {path} takes {allowed}"
        elif error.status_code == 400:
            message = "the body is no JSON in UTF-8, or nested too deeply"
        code = _CODES.get(error.status_code)
        return APIError(error.status_code, message, code=code, headers=error.headers).response()


def _paths(app: FastAPI) -> set[str]:
    return set(app.openapi()["paths"])


def _hint(path: str, paths: Collection[str]) -> str:
    """A hint for a path that does not exist; the usual cause is a wrong base URL."""
    bare = "/" + path.strip("/")
    if bare == "/v1":
        return "it is the base URL of the API, to which clients add paths such as /chat/completions"
    if bare.startswith("/v1/v1/") and bare.removeprefix("/v1") in paths:
        return "the base URL ends with /v1 already, so clients must not add it again"
    if f"/v1{bare}" in paths:
        return f"it is at /v1{bare}, so the base URL must end with /v1"
    if bare.removeprefix("/v1") in paths or bare in paths:
        return f"it is at {bare if bare in paths else bare.removeprefix('/v1')}"
    return "see /openapi.json for what there is"


def _validation_error(problems: Sequence[Mapping[str, Any]], body: object) -> APIError:
    """The first problem as a sentence. What was sent is not repeated: it may be long, and it may be secret."""
    # A value that fits no branch of a union has a problem for each; the one found deepest is of the branch meant.
    problem = max(problems, key=lambda p: len(p["loc"]))
    kind = str(problem["type"])
    if kind == "json_invalid":
        return APIError(400, "the body is no JSON: " + one_line(str(problem.get("ctx", {}).get("error", ""))))
    place = [part for part in problem["loc"] if part not in ("body", "query", "path")]
    if kind == "contradiction":
        where, context = _path(_in_body(place, body)), problem["ctx"]
        param = f"{where}.{context['param']}".strip(".")
        sentence = one_line(str(context["sentence"]), 300)
        return APIError(400, f"{where}: {sentence}" if where else sentence, param=param or None, code="invalid_value")
    if not place:
        return _no_object(kind, body)
    field = one_line(str(place[-1]), 100)
    path = _path([*_in_body(place, body), *(place[-1:] if kind == "missing" else ())])
    if kind == "extra_forbidden" or (kind == "none_required" and field in _REFUSED):
        advice = _REFUSED.get(field, "see docs/serving.md for what there is")
        known = "unknown" if kind == "extra_forbidden" else "unsupported"
        return APIError(400, f"{known} argument {field}: {advice}", param=path, code="unknown_parameter")
    message = one_line(str(problem["msg"]).removeprefix("Value error, "), 300)
    return APIError(400, f"{path}: {message}" if path else message, param=path or None, code="invalid_value")


def _no_object(kind: str, body: object) -> APIError:
    """A body that is there but no object, or that came without its Content-Type and so was not read as JSON."""
    wanted = "the body must be a JSON object, sent with 'Content-Type: application/json'"
    if kind == "missing" or body is None:
        return APIError(400, f"{wanted}; it is empty")
    if isinstance(body, bytes):
        return APIError(400, f"{wanted}; it has another Content-Type or none")
    return APIError(400, f"the body must be a JSON object, and it is {_TYPES.get(type(body), 'something else')}")


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
