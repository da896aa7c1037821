"""What an answer must look like, from the four ways in which a request can say it."""

from __future__ import annotations

from collections.abc import Sequence

from minicpm.engine.constraint import Constraint
from minicpm.server import tools
from minicpm.server.requests import (
    ChatRequest,
    CompletionRequest,
    Function,
    JSONFormat,
    JSONSchemaFormat,
    StructuredOutputs,
)


def constraint_of(request: ChatRequest | CompletionRequest, functions: Sequence[Function]) -> Constraint | None:
    """The form of the answer; None where any text will do. ValueError for one that cannot be meant."""
    if isinstance(request, ChatRequest):
        if functions:
            is_required = request.tool_choice not in (None, "auto")
            return Constraint.lark(
                tools.grammar(functions, is_required=is_required, is_parallel=request.parallel_tool_calls)
            )
        if isinstance(request.response_format, JSONFormat):
            return Constraint.json_object()
        if isinstance(request.response_format, JSONSchemaFormat):
            return Constraint.json_schema(request.response_format.json_schema.schema_)
    return None if request.structured_outputs is None else _of_outputs(request.structured_outputs)


def _of_outputs(wanted: StructuredOutputs) -> Constraint:
    if wanted.json_ is not None:
        return Constraint.json_schema(wanted.json_)
    if wanted.regex is not None:
        return Constraint.regex(wanted.regex)
    if wanted.choice is not None:
        return Constraint.choice(wanted.choice)
    if wanted.grammar is not None:
        return Constraint.lark(wanted.grammar)
    return Constraint.json_object()
