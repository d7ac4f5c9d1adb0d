"""What a body says of the form of its answer, as the constraint an engine is given."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine_adapters.base import Constraint
from gateway.api.body import Fields
from gateway.parsers.json_value import quote

MAX_CHOICES = 1024


@dataclass(frozen=True)
class Structure:
    """`field` is the path of what asked for it. `schema` is what the answer is held against; an answer that does not
    fit is an error if the client `is_strict`."""

    field: str
    constraint: Constraint
    schema: Any = None
    is_strict: bool = False


def read_structure(fields: Fields) -> Structure | None:
    """None when the form is free; raises BadRequest, also for two forms at once."""
    if fields.lacks(STRUCTURE_FIELDS):
        return None
    found = [structure for read in (read_format, read_outputs, read_single) for structure in read(fields)]
    if len(found) > 1:
        fields.refuse(found[1].field, f"cannot be combined with {found[0].field}: an answer has one form")
    return found[0] if found else None


def read_format(fields: Fields) -> list[Structure]:
    """OpenAI's `response_format`, with the kinds that engines have besides."""
    form = fields.object("response_format")
    if not form.values:
        return []
    kind = form.text("type")
    path = "response_format"
    match kind:
        case "text":
            return []
        case "json_object" | "json":
            return [json_object(path)]
        case "json_schema":
            nested = form.object("json_schema")
            place = f"{path}.json_schema.schema"
            return [json_schema(nested, "schema", place, nested.boolean("strict"))]
        case "regex" | "ebnf" | "choice":
            return [KINDS[kind](form, kind if form.has(kind) else SPELLINGS[kind])]
        case "structural_tag":
            return [Structure(path, Constraint("structural_tag", json.dumps(form.values)))]
    form.refuse("type", "must be one of text, json_object, json_schema, regex, ebnf, choice, structural_tag")


SPELLINGS = {"regex": "pattern", "ebnf": "grammar", "choice": "choices"}


def read_outputs(fields: Fields) -> list[Structure]:
    """vLLM's `structured_outputs`."""
    outputs = fields.object("structured_outputs")
    return [read(outputs, name) for name, read in KINDS.items() if outputs.has(name)]


def read_single(fields: Fields) -> list[Structure]:
    """vLLM's older `guided_...` fields, and SGLang's."""
    return [
        KINDS[name.removeprefix("guided_")](fields, name)
        for name in (*(f"guided_{name}" for name in GUIDED), *SINGLE)
        if fields.has(name)
    ]


def json_object(path: str) -> Structure:
    return Structure(path, Constraint("json"), {"type": "object"})


def json_schema(fields: Fields, name: str, place: str = "", is_strict: bool = False) -> Structure:
    schema = fields.value(name)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            fields.refuse(name, f"is not JSON: {error}")
    if not isinstance(schema, dict | bool):
        fields.refuse(name, "must be a JSON schema")
    return Structure(place or fields.path(name), Constraint("json_schema", json.dumps(schema)), schema, is_strict)


def read_json_object(fields: Fields, name: str) -> Structure:
    fields.boolean(name)
    return json_object(fields.path(name))


def regex(fields: Fields, name: str) -> Structure:
    return Structure(fields.path(name), Constraint("regex", fields.text(name)))


def grammar(fields: Fields, name: str) -> Structure:
    return Structure(fields.path(name), Constraint("ebnf", fields.text(name)))


def choice(fields: Fields, name: str) -> Structure:
    """As a grammar of literals: their characters need no other escapes there than JSON's."""
    texts = fields.texts(name, MAX_CHOICES)
    if not texts:
        fields.refuse(name, "must be a list of texts")
    return Structure(fields.path(name), Constraint("ebnf", "root ::= " + " | ".join(map(quote, texts))))


def structural_tag(fields: Fields, name: str) -> Structure:
    value = fields.value(name)
    guide = value if isinstance(value, str) else json.dumps(value)
    return Structure(fields.path(name), Constraint("structural_tag", guide))


KINDS: dict[str, Callable[[Fields, str], Structure]] = {
    "json": json_schema,
    "json_object": read_json_object,
    "regex": regex,
    "choice": choice,
    "grammar": grammar,
    "ebnf": grammar,
    "structural_tag": structural_tag,
}
GUIDED = ("json", "json_object", "regex", "choice", "grammar")
SINGLE = ("regex", "ebnf", "structural_tag")
STRUCTURE_FIELDS = ("response_format", "structured_outputs", *(f"guided_{name}" for name in GUIDED), *SINGLE)
