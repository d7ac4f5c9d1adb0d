"""The tools in a body: which there are, which may be called, and what must be."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine_adapters.base import Constraint
from gateway.api.body import Fields
from gateway.model import Model
from gateway.parsers.json_value import quote
from gateway.types import ChatInput, Reading

NAME = re.compile(r"[\w.\-]{1,128}")
CHOICES = ("none", "auto", "required")
ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class ToolUse:
    """`schemas` are the parameters of the tools that may be called, by name; `strict` the names whose arguments must
    fit theirs. `mode` is one of CHOICES. `is_legacy`: the client speaks of functions."""

    schemas: Mapping[str, Any] = field(default_factory=dict)
    strict: frozenset[str] = frozenset()
    mode: str = "none"
    is_parallel: bool = True
    is_legacy: bool = False
    first_call: int = 0

    def reading(self, separates_reasoning: bool, streams_reasoning: bool) -> Reading:
        """How the answer is to be read."""
        return Reading(
            tools=None if self.mode == "none" else self.schemas,
            most_calls=None if self.is_parallel else 1,
            first_call=self.first_call,
            is_forced=self.mode == "required",
            separates_reasoning=separates_reasoning,
            streams_reasoning=streams_reasoning,
        )


TOOL_FIELDS = ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls")
NO_TOOLS = ToolUse()


def read_tool_use(fields: Fields, source: ChatInput) -> tuple[ToolUse, ChatInput]:
    """The use of tools, and the conversation with the tools that the model is to see. Raises BadRequest."""
    if fields.lacks(TOOL_FIELDS):
        return NO_TOOLS, source
    is_legacy = fields.value("functions") not in (None, [])
    if is_legacy and source.tools:
        fields.refuse("functions", "cannot be combined with tools, which have replaced them")
    tools = fields.each("functions", read_function) if is_legacy else source.tools or []
    path = "functions" if is_legacy else "tools"
    schemas, strict = read_schemas(fields, path, tools)
    mode, allowed = read_choice(fields, schemas)
    use = ToolUse(
        schemas={name: schemas[name] for name in allowed},
        strict=strict,
        mode=mode,
        is_parallel=fields.boolean("parallel_tool_calls", default=True) and not is_legacy,
        is_legacy=is_legacy,
        first_call=sum(map(calls_in, source.messages)),
    )
    # A model that sees no tools calls none.
    shown = tools if tools and mode != "none" else None
    return use, source if shown is source.tools else replace(source, tools=shown)


def calls_in(message: Mapping[str, Any]) -> int:
    calls = message["tool_calls"] if "tool_calls" in message else None
    return len(calls) if isinstance(calls, list) else 0


def read_function(fields: Fields) -> dict[str, Any]:
    fields.text("name")
    return {"type": "function", "function": fields.values}


def read_schemas(fields: Fields, path: str, tools: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], frozenset[str]]:
    """(parameters by name, the strict ones)"""
    schemas: dict[str, Any] = {}
    strict = set()
    for index, tool in enumerate(tools):
        place = f"{path}[{index}]" if path == "functions" else f"{path}[{index}].function"
        if tool["type"] != "function":
            fields.refuse(f"{path}[{index}].type", f"is {tool['type']!r}, and only 'function' is supported")
        function = Fields(tool["function"], place)
        name, parameters = function.value("name"), function.value("parameters")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            fields.refuse(f"{place}.name", "must have 1 to 128 letters, digits, underscores, dots and dashes")
        if name in schemas:
            fields.refuse(f"{place}.name", f"is {name!r} a second time")
        if parameters is not None and not isinstance(parameters, dict):
            fields.refuse(f"{place}.parameters", "must be a JSON schema, which is an object")
        if function.value("strict"):
            strict.add(name)
        schemas[name] = parameters
    return schemas, frozenset(strict)


def read_choice(fields: Fields, schemas: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
    """(mode, the names that may be called)"""
    name = "function_call" if fields.has("function_call") else "tool_choice"
    choice = fields.value(name)
    names = list(schemas)
    if choice is None:
        return ("auto" if schemas else "none"), names
    if isinstance(choice, str):
        if choice not in CHOICES:
            fields.refuse(name, f"must be one of {', '.join(CHOICES)}, or name a tool")
        mode = choice
    elif isinstance(choice, dict):
        mode, names = read_named_choice(fields.object(name), name == "function_call")
        for each in names:
            if each not in schemas:
                fields.refuse(name, f"names {each!r}, which is not among the tools")
    else:
        fields.refuse(name, "must be a string or an object")
    if mode != "none" and not schemas:
        fields.refuse(name, "needs tools")
    return mode, names


def read_named_choice(choice: Fields, is_legacy: bool) -> tuple[str, list[str]]:
    if is_legacy:
        return "required", [choice.text("name")]
    kind = choice.text("type")
    if kind == "function":
        return "required", [read_tool_name(choice)]
    if kind != "allowed_tools":
        choice.refuse("type", "must be function or allowed_tools")
    allowed = choice.object("allowed_tools") if choice.has("allowed_tools") else choice
    mode = allowed.text("mode")
    if mode not in ("auto", "required"):
        allowed.refuse("mode", "must be auto or required")
    return mode, allowed.each("tools", read_tool_name)


def read_tool_name(fields: Fields) -> str:
    """In OpenAI's two ways to name one."""
    return fields.object("function").text("name") if fields.has("function") else fields.text("name")


def forced_calls(use: ToolUse, model: Model) -> Constraint | None:
    """What makes a model call what it must; None when nothing must be called."""
    if use.mode != "required":
        return None
    if model.formats.is_harmony:
        return tagged_calls(use, model, is_needed=True)
    definitions: dict[str, str] = {}
    items = ",".join(call_schema(name, schema, definitions) for name, schema in use.schemas.items())
    most = ',"maxItems":1' if not use.is_parallel or len(use.schemas) == 1 else ""
    defs = ",".join(f"{quote(name)}:{text}" for name, text in definitions.items())
    defs = f',"$defs":{{{defs}}}' if defs else ""
    return Constraint("json_schema", f'{{"type":"array","minItems":1{most},"items":{{"anyOf":[{items}]}}{defs}}}')


def call_schema(name: str, schema: Any, definitions: dict[str, str]) -> str:
    """Of one call, as JSON; what it refers to goes into `definitions` under a name of its own."""
    parameters = json.dumps(schema or ANY_OBJECT)
    if '"$ref"' in parameters:
        moved = with_moved_references(schema, f"{name}.")
        for key in ("$defs", "definitions"):
            for inner, value in (moved.pop(key, None) or {}).items():
                definitions[f"{name}.{inner}"] = json.dumps(value)
        parameters = json.dumps(moved)
    return (
        f'{{"type":"object","properties":{{"name":{{"enum":[{quote(name)}]}},"parameters":{parameters}}},'
        '"required":["name","parameters"],"additionalProperties":false}'
    )


REFERENCE = re.compile(r"#/(?:\$defs|definitions)/")


def with_moved_references(schema: Any, prefix: str) -> Any:
    """A copy whose references into its own definitions have `prefix` before their names."""
    if isinstance(schema, dict):
        return {
            key: REFERENCE.sub(f"#/$defs/{prefix}", value)
            if key == "$ref" and isinstance(value, str)
            else with_moved_references(value, prefix)
            for key, value in schema.items()
        }
    return [with_moved_references(each, prefix) for each in schema] if isinstance(schema, list) else schema


def tagged_calls(use: ToolUse, model: Model, is_needed: bool) -> Constraint | None:
    """What keeps the arguments to the schemas of strict tools wherever the model calls one, and makes it call one if
    that `is_needed`. None when no tool is strict, or its family's calls have no such form."""
    tag = model.formats.calls.family.tag if model.formats.calls.family else None
    if tag is None or not (is_needed or use.strict.intersection(use.schemas)):
        return None
    trigger, begin, end = tag
    tags = [
        {
            "begin": begin.replace("NAME", name),
            "content": {"type": "json_schema", "json_schema": (name in use.strict and schema) or ANY_OBJECT},
            "end": end,
        }
        for name, schema in use.schemas.items()
    ]
    form = {
        "type": "triggered_tags",
        "triggers": [trigger],
        "tags": tags,
        "at_least_one": is_needed,
        "stop_after_first": not use.is_parallel,
    }
    return Constraint("structural_tag", json.dumps({"type": "structural_tag", "format": form}))
