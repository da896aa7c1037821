"""JSON schemas as a grammar can follow them.

llguidance follows most keywords of JSON Schema. `followable` rewrites the others without changing what is valid where
that can be done, and drops and names those for which it cannot: what is left accepts more than the schema says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from minicpm.errors import GenerationError, MissingExtra, one_line

Schema = dict[str, Any] | bool

# Objects and lists inside each other: far more than people write, and less than llguidance's recursion bears.
MAX_DEPTH = 100
# An error's place is looked for among so many parts of a schema.
_MOST_PARTS = 300
# JSON on one line, with a blank behind commas and colons or none: where it may be indented at will, a small model goes
# on writing line feeds for ever. The separators are regular expressions.
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

# Keywords that do not affect validation.
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$comment", "$schema", "$id", "contentEncoding", "contentMediaType", "contentSchema"}
)
# Keywords that hold schemas: an object of them, a list of them, a single one.
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"})


@dataclass(frozen=True)
class Dropped:
    """A keyword that no grammar follows, and where it stands in the schema: 'properties.tags', '' at the root."""

    keyword: str
    place: str

    def __str__(self) -> str:
        return f"the keyword {self.keyword!r}" + (f" at {self.place}" if self.place else "")


def followable(schema: Mapping[str, Any] | bool) -> tuple[Schema, list[Dropped]]:
    """A schema that `problem` has nothing against unless the given one is wrong, and what was dropped for it.

    Without dropped keywords the same JSON is valid by both. Raises ValueError for one that is nested too deeply.
    """
    root: Schema = dict(schema) if isinstance(schema, Mapping) else schema
    rewriter = _Rewriter(root)
    rewritten = rewriter.rewritten({} if root is True else root, ())
    if isinstance(rewritten, dict):
        if "circular references" in (problem(rewritten, lenient=True) or ""):
            rewritten = rewriter.without_neighbours_of_references(rewritten, ())
        if isinstance(rewritten, dict):
            rewritten = _without_endless(rewritten)
    return rewritten, rewriter.dropped


def problem(schema: Schema, *, lenient: bool = False) -> str | None:
    """Why a schema cannot be compiled, in a sentence with the place if it can be found; None if it can.

    `lenient` follows a oneOf like an anyOf.
    """
    if schema is False:
        return "nothing is valid by it"
    found = _complaint(schema, lenient)
    if found is None:
        return None
    if isinstance(schema, dict):
        definitions: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        for place, part in islice(_parts(schema, ()), _MOST_PARTS):
            whole: dict[str, Any] = {**definitions, **part} if isinstance(part, dict) else {"allOf": [part]}
            if place and (deepest := _complaint(whole, lenient)) and _is_the_cause(deepest, found):
                return f"{deepest}, at {_joined(place)}"
    return found


def _is_the_cause(deepest: str, found: str) -> bool:
    """Whether what is wrong in a part is what is wrong in the whole.

    References may point into the rest of the schema, so that they fail in a part alone, and a part by which nothing is
    valid may be one of several.
    """
    kinds = ("$ref", "Unsatisfiable")
    return [deepest.startswith(kind) for kind in kinds] == [found.startswith(kind) for kind in kinds]


def _complaint(schema: object, lenient: bool) -> str | None:
    """llguidance's words, on one line and without what it prints of its inside."""
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        return f"it is no JSON value: {one_line(str(error))}"
    message = _validated(text, lenient)
    if not message:
        return None
    if message.startswith("oneOf constraints"):
        return "the branches of oneOf overlap; use anyOf"
    if message.startswith(("Pointer", "Resource")):
        message = f"$ref leads nowhere: {message}"
    elif message.startswith("regex parse error"):
        message = "a regular expression cannot be followed: " + message.rpartition("error: ")[2]
    elif message.startswith("Unsatisfiable schema: Regex is empty"):
        message = "Unsatisfiable schema: no text fits pattern, format and length together"
    return one_line(message.partition("\n  while processing")[0], 160)


@lru_cache(512)
def _validated(text: str, lenient: bool) -> str:
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError as error:
        raise MissingExtra("answers of a given form", "serve") from error
    try:
        style = {**JSON_STYLE, "lenient": lenient, "coerce_one_of": lenient}
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=style)  # type: ignore[arg-type]
        return LLMatcher.validate_grammar(grammar, None)
    except (ValueError, RuntimeError) as error:
        return str(error)


def _joined(place: tuple[str, ...]) -> str:
    return one_line(".".join(place), 100)


def _parts(schema: object, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """All schemas inside a schema with their places, the deepest first."""
    if isinstance(schema, dict):
        for name, part in _children(schema):
            yield from _parts(part, (*place, *name))
    yield place, schema


def _children(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for keyword in _NAMED:
        if isinstance(parts := schema.get(keyword), dict):
            yield from (((keyword, name), part) for name, part in parts.items())
    for keyword in _LISTED:
        if isinstance(parts := schema.get(keyword), list):
            yield from (((keyword, str(number)), part) for number, part in enumerate(parts))
    for keyword in _SINGLE:
        if isinstance(part := schema.get(keyword), dict | bool):
            yield (keyword,), part


class _Rewriter:
    """Rewrites the schemas of one document, from the inside out."""

    def __init__(self, root: Schema):
        self._root = root
        try:
            self._text = json.dumps(root)
        except RecursionError:
            raise _too_deep() from None
        self.dropped: list[Dropped] = []

    def rewritten(self, schema: Any, place: tuple[str, ...]) -> Any:
        if not isinstance(schema, dict):
            return schema  # true, false, or something wrong, which `problem` names
        if len(place) > MAX_DEPTH:
            raise _too_deep()
        schema = self._with_children(schema, place)
        for rewrite in (
            self._negation,
            self._property_names,
            self._unique_items,
            self._condition,
            self._contained,
            self._dependencies,
            self._unevaluated,
            self._format,
            self._pattern,
            self._reference,
            self._property_count,
        ):
            if rewrite(schema, place) is False:
                return False
        return schema

    def _with_children(self, schema: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
        schema = dict(schema)
        for keyword in _NAMED:
            if isinstance(parts := schema.get(keyword), dict):
                schema[keyword] = {
                    name: self.rewritten(part, (*place, keyword, name))
                    for name, part in parts.items()
                    if keyword not in ("$defs", "definitions") or self._is_referred_to(keyword, name)
                }
        for keyword in _LISTED:
            if isinstance(parts := schema.get(keyword), list):
                schema[keyword] = [self.rewritten(part, (*place, keyword, str(i))) for i, part in enumerate(parts)]
        for keyword in _SINGLE:
            if isinstance(schema.get(keyword), dict):
                schema[keyword] = self.rewritten(schema[keyword], (*place, keyword))
        return schema

    def _is_referred_to(self, keyword: str, name: str) -> bool:
        """A definition that nothing refers to need not be followed."""
        return not name.isidentifier() or f"/{name}" in self._text

    def _drop(self, keyword: str, place: tuple[str, ...]) -> None:
        self.dropped.append(Dropped(keyword, _joined(place)))

    # --- one keyword each: `schema` is changed; False if nothing is valid by it -------------------------------------

    def _negation(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        if "not" in schema:
            negated = schema.pop("not")
            if _is_anything(negated):
                return False
            if negated is not False:
                self._drop("not", place)
        return None

    def _property_names(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        if "propertyNames" not in schema:
            return None
        names = self._resolved(schema.pop("propertyNames"))
        names = {"enum": []} if names is False else names
        if _is_anything(names):
            return None
        is_schema = isinstance(names, dict)
        rules = {key: value for key, value in names.items() if key not in _ANNOTATIONS} if is_schema else {}
        if rules.get("type") == "string":
            rules.pop("type")
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        has_patterns = bool(schema.get("patternProperties"))
        if is_schema and not rules:
            return None
        if rules.keys() in ({"enum"}, {"const"}) and isinstance(properties, dict) and not has_patterns:
            allowed = [rules["const"]] if "const" in rules else rules["enum"]
            if isinstance(allowed, list):
                schema["properties"] = {name: properties.get(name, others) for name in allowed if isinstance(name, str)}
                schema["additionalProperties"] = False
                return None
        pattern = _pattern_of_names(rules)
        if pattern is not None and not properties and not has_patterns:
            schema["patternProperties"] = {pattern: others}
            schema["additionalProperties"] = False
            return None
        self._drop("propertyNames", place)
        return None

    def _unique_items(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        if schema.pop("uniqueItems", False) is not False and schema.get("maxItems") not in (0, 1):
            self._drop("uniqueItems", place)
        return None

    def _condition(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        has_condition = "if" in schema and ("then" in schema or "else" in schema)
        for keyword in ("if", "then", "else"):
            schema.pop(keyword, None)
        if has_condition:
            self._drop("if", place)
        return None

    def _contained(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        least, most = schema.pop("minContains", 1), schema.pop("maxContains", None)
        if "contains" in schema:
            schema.pop("contains")
            if least != 0 or most is not None:
                self._drop("contains", place)
        return None

    def _dependencies(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            if schema.pop(keyword, None):
                self._drop(keyword, place)
        return None

    def _unevaluated(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        for keyword, equal in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if keyword not in schema:
                continue
            rest = schema.pop(keyword)
            if _is_anything(rest):
                continue
            if equal in schema and not isinstance(schema[equal], list) and not _COMBINING & schema.keys():
                continue  # every one is evaluated
            if _COMBINING & schema.keys() or isinstance(schema.get(equal), list):
                self._drop(keyword, place)
            else:
                schema[equal] = self.rewritten(rest, (*place, keyword))
        return None

    def _format(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        """An unknown format is an annotation, by JSON Schema's own rule."""
        name = schema.get("format")
        if isinstance(name, str) and _complaint({"type": "string", "format": name}, False):
            schema.pop("format")
        return None

    def _pattern(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and _complaint({"type": "string", "pattern": pattern}, False):
            schema.pop("pattern")
            self._drop("pattern", place)
        patterns = schema.get("patternProperties")
        if isinstance(patterns, dict) and any(_complaint({"type": "string", "pattern": p}, False) for p in patterns):
            schema.pop("patternProperties")
            if "additionalProperties" in schema:
                schema["additionalProperties"] = True
            self._drop("patternProperties", place)
        return None

    def _reference(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        if "$schema" in schema and _complaint({"$schema": schema["$schema"]}, False):
            schema.pop("$schema")  # a dialect that is not known: read as the newest one
        schema.pop("$recursiveAnchor", None)
        schema.pop("$dynamicAnchor", None)
        if schema.get("$recursiveRef") == "#" and "$ref" not in schema:
            schema["$ref"] = schema.pop("$recursiveRef")
        for keyword in ("$recursiveRef", "$dynamicRef"):
            if keyword in schema:
                schema.pop(keyword)
                self._drop(keyword, place)
        target = schema.get("$ref")
        if isinstance(target, str) and not target.startswith("#") and (_complaint({"$ref": target}, False) or ""):
            own = self._root.get("$id") if isinstance(self._root, dict) else None
            if not (isinstance(own, str) and own and target.startswith(own)):
                # Another document: nothing is fetched.
                schema.pop("$ref")
                self._drop("$ref", place)
        return None

    def _property_count(self, schema: dict[str, Any], place: tuple[str, ...]) -> bool | None:
        counts = {keyword: schema[keyword] for keyword in ("minProperties", "maxProperties") if keyword in schema}
        if counts and "only supported" in (_complaint(_flat(schema), False) or ""):
            for keyword in counts:
                schema.pop(keyword)
                self._drop(keyword, place)
        return None

    # --- references ---------------------------------------------------------------------------------------------

    def _resolved(self, schema: Any) -> Any:
        """The target of a reference inside the document; the schema itself if it is not a reference."""
        if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
            return _target(self._root, schema["$ref"], schema)
        return schema

    def without_neighbours_of_references(self, schema: Any, place: tuple[str, ...]) -> Any:
        """Drop the sibling keywords of a reference: both together cannot be compiled if the reference recurs."""
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            kept = {"$ref", "$defs", "definitions"} | _ANNOTATIONS
            for keyword in [key for key in schema if key not in kept]:
                self._drop(keyword, place)
            schema = {key: value for key, value in schema.items() if key in kept}
        if isinstance(parts := schema.get("allOf"), list):
            plain = [part for part in parts if not (isinstance(part, dict) and "$ref" in part)]
            if len(plain) < len(parts) and (len(parts) > 1 or schema.keys() - _ANNOTATIONS > {"allOf"}):
                schema = {**schema, "allOf": plain}
                if not plain:
                    del schema["allOf"]
                self._drop("allOf", place)
        schema = dict(schema)
        for name, part in list(_children(schema)):
            _put(schema, name, self.without_neighbours_of_references(part, (*place, *name)))
        return schema


def _put(schema: dict[str, Any], name: tuple[str, ...], part: Any) -> None:
    """Replace a child, without changing what others may hold, too."""
    keyword = name[0]
    if len(name) == 1:
        schema[keyword] = part
    elif isinstance(schema[keyword], dict):
        schema[keyword] = {**schema[keyword], name[1]: part}
    else:
        number = int(name[1])
        schema[keyword] = [*schema[keyword][:number], part, *schema[keyword][number + 1 :]]


def _flat(schema: dict[str, Any]) -> dict[str, Any]:
    """An object's schema with its properties' own schemas left out: of their names only."""
    kept = ("type", "required", "minProperties", "maxProperties")
    flat: dict[str, Any] = {key: schema[key] for key in kept if key in schema}
    for keyword in ("properties", "patternProperties"):
        if isinstance(parts := schema.get(keyword), dict):
            flat[keyword] = {name: part if part is False else True for name, part in parts.items()}
    if "additionalProperties" in schema:
        flat["additionalProperties"] = schema["additionalProperties"] is not False
    return flat


def _too_deep() -> ValueError:
    return ValueError(f"the JSON schema is nested more than {MAX_DEPTH} levels deep; flatten it")


def _is_anything(schema: object) -> bool:
    return schema is True or (isinstance(schema, dict) and schema.keys() <= _ANNOTATIONS)


def _pattern_of_names(rules: dict[str, Any]) -> str | None:
    """The regular expression that names must match, if all rules together are one."""
    if rules.keys() == {"pattern"} and isinstance(rules["pattern"], str):
        return rules["pattern"]
    if rules and rules.keys() <= {"minLength", "maxLength"} and all(type(n) is int and n >= 0 for n in rules.values()):
        return f"^[\\s\\S]{{{rules.get('minLength', 0)},{rules.get('maxLength', '')}}}$"
    return None


def _target(root: Any, reference: str, default: Any) -> Any:
    """What a JSON pointer of a document points to."""
    if reference != "#" and not reference.startswith("#/"):
        return default
    found = root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return default
    return found


# --- Recursion that never ends -------------------------------------------------------------------------------


def _without_endless(root: dict[str, Any]) -> Schema:
    """The schema with false for every reference by which no finite JSON is valid: one that needs itself.

    A grammar would begin with such a value and never end it.
    """
    parts = [part for _, part in _parts(root, ()) if isinstance(part, dict)]
    references = {part["$ref"] for part in parts if isinstance(part.get("$ref"), str)}
    finite: set[str] = set()
    while True:
        new = {
            reference
            for reference in references - finite
            if _is_finite(_target(root, reference, True), references - finite)
        }
        if not new:
            break
        finite |= new
    endless = references - finite
    return _with_false_for(root, endless) if endless else root


def _is_finite(schema: Any, unknown: set[str]) -> bool:
    """Whether some finite JSON is valid, if none is by the references that are `unknown` so far."""
    if not isinstance(schema, dict):
        return True
    if isinstance(schema.get("$ref"), str) and schema["$ref"] in unknown:
        return False
    if not all(_is_finite(part, unknown) for part in _list(schema.get("allOf"))):
        return False
    for keyword in ("anyOf", "oneOf"):
        parts = _list(schema.get(keyword))
        if parts and not any(_is_finite(part, unknown) for part in parts):
            return False
    if schema.get("type") == "object" and isinstance(properties := schema.get("properties"), dict):
        needed = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        return all(_is_finite(properties.get(name, True), unknown) for name in needed)
    if schema.get("type") == "array" and isinstance(least := schema.get("minItems"), int) and least > 0:
        return _is_finite(schema.get("items"), unknown)
    return True


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _with_false_for(schema: Any, endless: set[str]) -> Any:
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str) and schema["$ref"] in endless:
        return False
    schema = dict(schema)
    for name, part in list(_children(schema)):
        _put(schema, name, _with_false_for(part, endless))
    return schema


# --- What a small model would write for ever -----------------------------------------------------------------

# Within the 64 bits that programs read an integer into, and exact in llguidance's floating-point numbers.
_MOST_INTEGER = 1 << 62


def narrowed(schema: Schema) -> Schema:
    """A schema by which less is valid, so that small models come to an end: they invent properties and digits for ever.

    Objects have the properties that are declared, and others only if the schema speaks of others; where several parts
    speak of one object, they stay as they are. Integers without bounds are from -2**62 to 2**62.
    """
    bounded: Schema = _bounded(schema)
    if problem(bounded, lenient=True):
        return schema
    parts = [part for _, part in _parts(bounded, ()) if isinstance(part, dict)]
    if any("allOf" in part or ("$ref" in part and part.keys() & {"properties", "required"}) for part in parts):
        return bounded
    closed: Schema = _closed(bounded)
    return bounded if problem(closed, lenient=True) else closed


def _bounded(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    for name, part in list(_children(schema)):
        _put(schema, name, _bounded(part))
    if schema.get("type") == "integer" and not schema.keys() & {"enum", "const", "multipleOf", "allOf", "$ref"}:
        if not schema.keys() & {"minimum", "exclusiveMinimum"}:
            schema["minimum"] = min(-_MOST_INTEGER, _bound(schema, "maximum", "exclusiveMaximum"))
        if not schema.keys() & {"maximum", "exclusiveMaximum"}:
            schema["maximum"] = max(_MOST_INTEGER, _bound(schema, "minimum", "exclusiveMinimum"))
    return schema


def _bound(schema: dict[str, Any], *keywords: str) -> int:
    """The bound on the other side, 0 if there is none: larger values that the schema permits stay allowed."""
    given = [schema[keyword] for keyword in keywords if type(schema.get(keyword)) in (int, float)]
    return int(given[0]) * 10 if given and abs(given[0]) > _MOST_INTEGER else 0


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    has_branches = bool(schema.keys() & {"anyOf", "oneOf"})
    speaks_of_them = bool(schema.keys() & {"properties", "required", "additionalProperties", "patternProperties"})
    for name, part in list(_children(schema)):
        if not (name[0] in ("anyOf", "oneOf") and speaks_of_them):
            _put(schema, name, _closed(part))
    properties = schema.get("properties")
    is_open = not has_branches and not schema.keys() & {"additionalProperties", "patternProperties", "$ref"}
    if is_open and isinstance(properties, dict) and set(_list(schema.get("required"))) <= properties.keys():
        schema["additionalProperties"] = False
    return schema


def checked(schema: Mapping[str, Any] | bool) -> Schema:
    """A schema by which the same JSON is valid, and which can be followed. GenerationError names what cannot."""
    rewritten, dropped = followable(schema)
    if dropped:
        raise GenerationError(f"the JSON schema cannot be followed: no grammar can check {dropped[0]}; leave it out")
    if found := problem(rewritten):
        raise GenerationError(f"the JSON schema cannot be followed: {found}")
    return rewritten


def relaxed(schema: Mapping[str, Any] | bool) -> tuple[Schema, list[Dropped]]:
    """Like `checked`, but what cannot be followed is dropped and named. GenerationError for a schema that is wrong."""
    rewritten, dropped = followable(schema)
    if found := problem(rewritten, lenient=True):
        raise GenerationError(f"the JSON schema cannot be followed: {found}")
    if problem(rewritten):
        dropped.append(Dropped("oneOf", ""))
    return rewritten, dropped
