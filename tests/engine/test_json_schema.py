"""Schemas as grammars can follow them: the same JSON is valid, or what was dropped is named."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

pytest.importorskip("llguidance")

from minicpm.engine.json_schema import MAX_DEPTH, Dropped, checked, followable, narrowed, problem, relaxed
from minicpm.errors import GenerationError

WORDS = {"type": "array", "items": {"type": "string"}}
LOOP = {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}
VALUES: list[Any] = [
    {}, {"m": None}, {"m": "a"}, {"m": "xa"}, {"m": "aa"}, {"m": 3}, {"m": []}, {"m": ["a", "a"]}, {"m": ["a"]},
    {"m": {}}, {"m": {"a": 1}}, {"m": {"a": 1, "b": 2}}, {"m": {"x1": 1}}, {"m": {"long name": 1}}, {"m": {"a": "s"}},
    {"m": {"c": []}}, {"m": {"c": [{}]}}, {"m": {"z": 1, "c": {"y": 2}}}, "a", 1, None, [],
]  # fmt: skip


def of(member: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"m": member}, **more}


def valid(schema: Any) -> list[bool]:
    return [jsonschema.Draft202012Validator(schema).is_valid(value) for value in VALUES]


SAME = [
    of({"not": {}}),
    of({"not": {"description": "nothing"}}),
    of({"not": False}),
    of({"anyOf": [{"type": "string"}, {"not": {}}]}),
    of({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}),
    of({"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}}),
    of({"type": "object", "propertyNames": {"const": "a"}, "properties": {"a": {"type": "string"}, "b": {}}}),
    of({"type": "object", "propertyNames": {"pattern": "^x"}}),
    of({"type": "object", "propertyNames": {"minLength": 2, "maxLength": 4}}),
    of({"type": "object", "propertyNames": False}),
    of({"type": "object", "propertyNames": {"$ref": "#/$defs/name"}}, **{"$defs": {"name": {"enum": ["a"]}}}),
    of({**WORDS, "uniqueItems": False}),
    of({**WORDS, "uniqueItems": True, "maxItems": 1}),
    of({"type": "string", "format": "decimal"}),
    of({"type": ["string", "null"], "format": "my-own"}),
    of({"then": {"type": "string"}, "else": False}),
    of({"if": {"type": "string"}}),
    of({"type": "array", "contains": {"type": "integer"}, "minContains": 0}),
    of({"dependentRequired": {}, "dependentSchemas": {}}),
    of({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}),
    of({"type": "object", "unevaluatedProperties": True, "unevaluatedItems": {}}),
    of({"$ref": "#/$defs/n"}, **{"$defs": {"n": LOOP}}),
    of({"$ref": "#"}),
    of({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/a"}]}, **{"$defs": {"a": {"$ref": "#/$defs/a"}}}),
    of({"$ref": "#/$defs/n"}, **{"$defs": {"n": of({"$ref": "#/$defs/n"}, required=["m"])}}),
    of({"type": "string"}, **{"$defs": {"unused": {"not": {"type": "null"}, "uniqueItems": True}}}),
    of({"$schema": "my dialect", "type": "string"}),
    of({"type": "string", "description": "x", "x-mine": 1, "nullable": True}),
]


@pytest.mark.parametrize("schema", SAME, ids=lambda schema: json.dumps(schema)[38:110])
def test_what_can_be_rewritten_keeps_what_is_valid(schema: dict[str, Any]):
    rewritten, dropped = followable(schema)
    assert dropped == [] and problem(rewritten) is None
    assert checked(schema) == relaxed(schema)[0] == rewritten
    if '#/$defs/a"}' not in json.dumps(schema) and "required" not in schema.get("$defs", {}).get("n", {}):
        assert valid(rewritten) == valid(schema)  # the oracle follows references that never end for ever
    else:
        assert valid(rewritten)[VALUES.index({})]


DROPPED = [
    (of({"not": {"type": "null"}}), "not"),
    (of({**WORDS, "uniqueItems": True}), "uniqueItems"),
    (of({"type": "string", "pattern": "^(?!x)a+$"}), "pattern"),
    (of({"if": {"type": "object"}, "then": {"required": ["a"]}}), "if"),
    (of({"type": "array", "contains": {"type": "integer"}}), "contains"),
    (of({"type": "object", "dependentRequired": {"a": ["b"]}}), "dependentRequired"),
    (of({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}), "dependentSchemas"),
    (of({"type": "object", "propertyNames": {"pattern": "^x"}, "properties": {"a": {}}}), "propertyNames"),
    (of({"type": "object", "patternProperties": {"^(?=a)": {"type": "integer"}}, "additionalProperties": False}),
     "patternProperties"),
    (of({"anyOf": [{"type": "object"}], "unevaluatedProperties": False}), "unevaluatedProperties"),
    (of({"$ref": "https://example.com/other.json"}), "$ref"),
    (of({"$dynamicRef": "#node"}), "$dynamicRef"),
    (of({"$ref": "#/$defs/n", "maxProperties": 9},
        **{"$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n", "properties": {"y": {"type": "integer"}}}}}}}),
     "properties"),
    (of({"type": "object", "minProperties": 1, "properties": {"a": {}, "b": {}}}), "minProperties"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "keyword"), DROPPED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_followed_is_named_and_dropped_or_refused(schema: dict[str, Any], keyword: str):
    rewritten, dropped = relaxed(schema)
    assert keyword in {one.keyword for one in dropped}
    assert all(one.place for one in dropped)
    assert all(now or not before for before, now in zip(valid(without_remote(schema)), valid(rewritten)))
    with pytest.raises(GenerationError, match="no grammar can check the keyword") as caught:
        checked(schema)
    assert "properties.m" in str(caught.value) or "$defs" in str(caught.value)


def without_remote(schema: dict[str, Any]) -> Any:
    """The oracle would fetch what other documents hold."""
    return of({}) if "https://" in json.dumps(schema) or "$dynamicRef" in json.dumps(schema) else schema


def test_branches_that_overlap_are_read_as_any_of_them():
    schema = of({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]})
    rewritten, dropped = relaxed(schema)
    assert [one.keyword for one in dropped] == ["oneOf"] and problem(rewritten, lenient=True) is None
    with pytest.raises(GenerationError, match="oneOf overlap"):
        checked(schema)


def test_a_recursion_beside_its_own_definition_keeps_the_definition():
    rewritten, dropped = relaxed(
        of({"$ref": "#/$defs/n"}, **{"$defs": {"n": {"allOf": [LOOP, {"$ref": "#/$defs/n"}]}}})
    )
    assert [one.keyword for one in dropped] == ["allOf"]
    assert problem(rewritten) is None and valid(rewritten) == valid(of(LOOP, **{"$defs": {"n": LOOP}}))


WRONG = [
    (of({"type": "nothing"}), "Invalid type: nothing, at properties.m"),
    (of({"$ref": "#/nowhere"}), "$ref leads nowhere"),
    (of({"type": "object", "required": "a"}), "'required'"),
    (of({"properties": []}), "properties must be an object"),
    (of(5), "schema must be an object or boolean"),
    (of({"type": "string", "maxLength": -1}), "maxLength"),
    (of({"type": "integer", "minimum": 5, "maximum": 2}, required=["m"]), "minimum"),
]


@pytest.mark.parametrize(("schema", "said"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("read", [checked, relaxed])
def test_a_wrong_schema_is_refused_with_the_keyword(read: Any, schema: dict[str, Any], said: str):
    with pytest.raises(GenerationError) as caught:
        read(schema)
    assert said in str(caught.value)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 5000])
def test_a_schema_nested_too_deeply_is_refused(levels: int):
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="levels deep"):
        checked(schema)


def test_a_dropped_keyword_is_a_sentence_with_its_place():
    assert str(Dropped("not", "properties.m")) == "the keyword 'not' at properties.m"
    assert str(Dropped("not", "")) == "the keyword 'not'"


def test_a_closed_schema_has_the_declared_properties_alone():
    narrow = narrowed(of({"type": "object", "properties": {"a": {}}}))
    assert narrow == of({"type": "object", "properties": {"a": {}}, "additionalProperties": False},
                          additionalProperties=False)  # fmt: skip
    branches = {"anyOf": [of({}), {"type": "string"}]}
    assert narrowed(branches) == {"anyOf": [of({}, additionalProperties=False), {"type": "string"}]}
    assert narrowed({"properties": {}}) == {"properties": {}, "additionalProperties": False}


OPEN = [
    {"type": "object"},
    of({"type": "string"}, additionalProperties=True),
    of({"type": "string"}, additionalProperties={"type": "boolean"}),
    of({"type": "string"}, patternProperties={"^x": {}}),
    of({"type": "string"}, required=["other"]),
    of({"type": "string"}, minProperties=3),
    of({"type": "string"}, anyOf=[{"properties": {"b": {}}, "required": ["b"]}, {"properties": {"c": {}}}]),
    {"type": "object", "required": ["a"], "anyOf": [{"properties": {"b": {}}}, {"properties": {"a": {}}}]},
    {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    {"$ref": "#/$defs/n", "properties": {"b": {}}, "$defs": {"n": {"properties": {"a": {}}}}},
]


@pytest.mark.parametrize("schema", OPEN, ids=json.dumps)
def test_a_schema_that_speaks_of_other_properties_stays_open(schema: dict[str, Any]):
    assert narrowed(schema) == schema


MOST = 1 << 62


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"minimum": -MOST, "maximum": MOST}),
        ({"minimum": 0}, {"minimum": 0, "maximum": MOST}),
        ({"exclusiveMaximum": 9}, {"exclusiveMaximum": 9, "minimum": -MOST}),
        ({"minimum": 1, "maximum": 9}, {"minimum": 1, "maximum": 9}),
        ({"minimum": 10**20}, {"minimum": 10**20, "maximum": 10**21}),
        ({"enum": [1, 2]}, {"enum": [1, 2]}),
        ({"multipleOf": 5}, {"multipleOf": 5}),
    ],
)
def test_integers_without_bounds_get_some(given: dict[str, Any], expected: dict[str, Any]):
    narrow = narrowed({"type": "array", "items": {"type": "integer", **given}})
    assert narrow == {"type": "array", "items": {"type": "integer", **expected}}
    assert problem(narrow) is None
