"""Messages as clients send them, made into what a template takes."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from gateway.errors import BadRequest
from gateway.tokenizer.template_facts import Message, TemplateFacts

REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names of a message's reasoning; the first counts, and it is copied to the first two, as transformers does."""
PLAIN = ("user", "assistant", "system")
"""Roles whose messages, if they are just a text, most templates take as they are."""

FIELDS = {name: name for name in ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING)}
"""A message's own names for its fields were made on the HTTP loop's thread; with these in their place, a template's
`message.get` costs nothing on another one."""


def fitted(messages: list[Message], facts: TemplateFacts) -> list[Message]:
    """Copies of the messages, nulls dropped; contents, roles, reasoning and tool calls in the form the template takes.

    Raises BadRequest with the path of arguments that are no JSON object.
    """
    return [_fitted(message, facts, f"messages[{index}]") for index, message in enumerate(messages)]


def _fitted(message: Message, facts: TemplateFacts, path: str) -> Message:
    # No `get` for what another thread made: it takes 20 µs on 3.13t (docs/performance.md).
    if len(message) == 2 and "role" in message and "content" in message:
        role = message["role"]
        if role in PLAIN and role not in facts.needs_parts and type(message["content"]) is str:
            return {"role": role, "content": message["content"]}
    result = {FIELDS[name] if name in FIELDS else name: value for name, value in message.items() if value is not None}
    if result.get("role") == "developer" and not facts.knows_developer:
        result["role"] = "system"
    if "content" in result:
        result["content"] = _content(result["content"], result.get("role"), facts)
    elif result.get("role") == "assistant":
        result.update(facts.bare_call if result.get("tool_calls") else facts.bare_message)
    if isinstance(result.get("tool_calls"), list):
        calls = enumerate(result["tool_calls"])
        result["tool_calls"] = [_call(each, facts, f"{path}.tool_calls[{index}]") for index, each in calls]
    reasoning = next((result[name] for name in REASONING if name in result), None)
    if reasoning is not None:
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    return result


def _content(content: Any, role: Any, facts: TemplateFacts) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if role in facts.needs_parts else content
    if isinstance(content, list) and role not in facts.takes_parts and all(map(_is_text, content)):
        return "\n".join(part["text"] for part in content)
    return content


def _is_text(part: Any) -> bool:
    if not isinstance(part, dict) or "type" not in part or "text" not in part:
        return False
    return part["type"] == "text" and isinstance(part["text"], str)


def _call(call: Any, facts: TemplateFacts, path: str) -> Any:
    """A tool call with its arguments in the form the template takes; what is no call is the template's to judge."""
    function = call["function"] if isinstance(call, Mapping) and "function" in call else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if facts.takes_objects and isinstance(arguments, str):
        arguments = _parsed(arguments, f"{path}.function.arguments")
    elif not facts.takes_objects and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(arguments: str, path: str) -> dict[str, Any]:
    """An empty text is a call without arguments."""
    try:
        value = json.loads(arguments, parse_constant=_refuse_constant) if arguments.strip() else {}
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path} is not valid JSON: {error}", param=path) from error
    if not isinstance(value, dict):
        raise BadRequest(f"{path} must be a JSON object", param=path)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
