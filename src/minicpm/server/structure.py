"""The required form of an answer, from the four request fields that can set it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minicpm.engine.constraint import Constraint
from minicpm.engine.json_schema import checked
from minicpm.errors import GenerationError, one_line
from minicpm.server import tools
from minicpm.server.errors import APIError
from minicpm.server.requests import (
    ChatRequest,
    CompletionRequest,
    Function,
    JSONFormat,
    JSONSchemaFormat,
    StructuredOutputs,
)


def constraint_of(
    request: ChatRequest | CompletionRequest, functions: Sequence[Function], notes: dict[str, str]
) -> Constraint | None:
    """The form of the answer; None where any text will do. Raises APIError naming the field that cannot be meant.

    `notes` get the keywords of functions' schemas that answers do not follow.
    """
    if isinstance(request, ChatRequest):
        if functions:
            return _of_functions(request, functions, notes)
        if isinstance(request.response_format, JSONFormat):
            schema = request.response_format.schema_
            if schema is None:
                return Constraint.json_object()
            return _of_schema(schema, "response_format.schema")
        if isinstance(request.response_format, JSONSchemaFormat):
            return _of_schema(request.response_format.json_schema.schema_, "response_format.json_schema.schema")
    return None if request.structured_outputs is None else _of_outputs(request.structured_outputs)


def _of_functions(request: ChatRequest, functions: Sequence[Function], notes: dict[str, str]) -> Constraint:
    numbers = {tool.function.name: number for number, tool in enumerate(request.tools or ())}
    schemas, dropped = [], []
    for function in functions:
        with _naming(f"tools[{numbers[function.name]}].function.parameters", f"{function.name}: "):
            schema, left_out = tools.argument_schema(function)
        schemas.append(schema)
        dropped += [f"{function.name}:{keyword.keyword}" for keyword in left_out]
    if dropped:
        notes["unfollowed"] = ",".join(dict.fromkeys(dropped[:8]))
    grammar = tools.grammar(functions, schemas, is_required=request.needs_call, is_parallel=request.parallel_tool_calls)
    with _naming("tools", "the schemas of all tools together: "):
        return Constraint.lark(grammar, structure="" if request.needs_call else tools.OPEN)


def _of_outputs(wanted: StructuredOutputs) -> Constraint:
    if wanted.json_ is not None:
        return _of_schema(wanted.json_, "structured_outputs.json")
    if wanted.regex is not None:
        return Constraint.regex(wanted.regex)
    if wanted.choice is not None:
        return Constraint.choice(wanted.choice)
    if wanted.grammar is not None:
        return Constraint.lark(wanted.grammar)
    return Constraint.json_object()


def _of_schema(schema: dict[str, Any], field: str) -> Constraint:
    with _naming(field):
        return Constraint.json_schema(checked(schema))


@contextmanager
def _naming(field: str, name: str = "") -> Iterator[None]:
    """Let an error about a schema name the request's field."""
    try:
        yield
    except (GenerationError, ValueError) as error:
        raise APIError(400, f"{field}: {name}{one_line(str(error), 400)}", param=field, code="invalid_value") from None
