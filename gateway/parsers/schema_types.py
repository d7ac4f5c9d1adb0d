"""What JSON type a parameter that was written as text should have, by its schema."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from gateway.parsers.json_value import NUMBER, parsed, quote

ORDER = ("null", "integer", "number", "boolean", "object", "array")
"""In which types are tried; what fits none is a string."""
INTEGER = re.compile(r"[+-]?[0-9]+(?:\.0*)?")
FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
MAX_LOOK = 32
"""How deep a schema is looked into."""
MAX_LITERAL = 100_000
"""Characters: Python's parser takes much memory for more."""
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
STRING = frozenset({"string"})


def parameter_types(schema: Any, parameter: str) -> frozenset[str]:
    """The types that a tool's schema allows a parameter; only "string" when it says nothing."""
    root = schema if isinstance(schema, Mapping) else {}
    properties = _resolved(root, root).get("properties")
    found = properties.get(parameter) if isinstance(properties, Mapping) else None
    return frozenset(_types(found, root, MAX_LOOK)) or STRING


def has_parameter(schema: Any, parameter: str) -> bool:
    """Whether a tool's schema names it, or says nothing of names."""
    root = schema if isinstance(schema, Mapping) else {}
    properties = _resolved(root, root).get("properties")
    return not isinstance(properties, Mapping) or parameter in properties


def _types(schema: Any, root: Mapping[str, Any], looks: int) -> set[str]:
    if not isinstance(schema, Mapping) or not looks:
        return set()
    schema = _resolved(schema, root)
    named = schema.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {each for each in named if isinstance(each, str)}
    if isinstance(schema.get("enum"), list):
        return {_name_of(value) for value in schema["enum"]}
    if "const" in schema:
        return {_name_of(schema["const"])}
    found: set[str] = set()
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key) or ():
            found |= _types(part, root, looks - 1)
    if not found and "properties" in schema:
        return {"object"}
    return found or ({"array"} if "items" in schema else set())


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """With a reference into the same schema followed."""
    for _ in range(MAX_LOOK):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        found: Any = root
        for part in reference[2:].split("/"):
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            break
        schema = found
    return schema


def _name_of(value: Any) -> str:
    return NAMES.get(type(value), "null")


def typed(text: str, types: frozenset[str]) -> str:
    """The JSON of `text` in the first of its types that it fits, else of a string."""
    stripped = text.strip()
    if stripped.lower() in ("null", "none") and ("null" in types or "string" not in types):
        return "null"
    for name in ORDER:
        if name in types and name in CONVERTERS:
            result = CONVERTERS[name](stripped)
            if result is not None:
                return result
    return quote(text)


def as_json_or_text(text: str) -> str:
    """`text` itself if it is JSON, else the JSON of a string."""
    try:
        parsed(text)
    except ValueError:
        return quote(text)
    return text.strip()


def _integer(text: str) -> str | None:
    if not INTEGER.fullmatch(text):
        return None
    return text if NUMBER.fullmatch(text) else _number(text.partition(".")[0])


def _number(text: str) -> str | None:
    if NUMBER.fullmatch(text):
        return text
    if not FLOAT.fullmatch(text):
        return None
    digits = text.lstrip("+-").lstrip("0") or "0"
    number = ("-" if text.startswith("-") else "") + (digits if digits[0].isdigit() else "0" + digits)
    number = re.sub(r"\.(?=[eE]|\Z)", "", number)
    return number if NUMBER.fullmatch(number) else None


def _boolean(text: str) -> str | None:
    return {"true": "true", "1": "true", "false": "false", "0": "false"}.get(text.lower())


def _container(text: str) -> str | None:
    """JSON, or failing that a Python literal."""
    if text[:1] not in ("{", "[", "("):
        return None
    try:
        parsed(text)
        return text
    except ValueError:
        return _from_python(text)


def _from_python(text: str) -> str | None:
    if len(text) > MAX_LITERAL:
        return None
    try:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None  # no literal, or one that JSON cannot say


CONVERTERS = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "object": _container,
    "array": _container,
}
