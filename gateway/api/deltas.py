"""What a model says, as a chat answer's messages and deltas."""

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.parsers.message import Call, Message
from gateway.types import CallDelta, Content, Piece


def message_of(message: Message, is_legacy: bool) -> dict[str, Any]:
    """The message of a whole answer; a client that `is_legacy` knows functions but no tools."""
    content = message.content
    body: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if message.reasoning:
        body["reasoning_content"] = message.reasoning
    if message.calls:
        body["content"] = content or None
        if is_legacy:
            body["function_call"] = function_of(message.calls[0])
        else:
            body["tool_calls"] = [
                {"id": call.id, "type": "function", "function": function_of(call)} for call in message.calls
            ]
    return body


def function_of(call: Call) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments}


def delta_of(pieces: Sequence[Piece], is_legacy: bool) -> dict[str, Any]:
    """Several pieces as one delta; empty when they have nothing for the client.

    The markup of a call that broke comes as content, as it does in a whole answer: what was told of the call before
    cannot be taken back, but its arguments are no JSON.
    """
    delta: dict[str, Any] = {}
    calls: dict[int, list[CallDelta]] = {}
    for piece in pieces:
        if isinstance(piece, CallDelta):
            calls.setdefault(piece.number, []).append(piece)
            if piece.broken:
                delta["content"] = delta.get("content", "") + piece.broken
        else:
            key = "content" if isinstance(piece, Content) else "reasoning_content"
            delta[key] = delta.get(key, "") + piece.text
    functions = [(number, function) for number, parts in calls.items() if (function := function_delta(parts))]
    if functions and is_legacy:
        delta["function_call"] = functions[0][1]
    elif functions:
        delta["tool_calls"] = [call_delta(number, calls[number], function) for number, function in functions]
    return delta


def function_delta(parts: Iterable[CallDelta]) -> dict[str, str]:
    function: dict[str, str] = {}
    for part in parts:
        if part.name:
            function["name"] = part.name
        if part.name or part.arguments:
            function["arguments"] = function.get("arguments", "") + part.arguments
    return function


def call_delta(number: int, parts: Sequence[CallDelta], function: dict[str, str]) -> dict[str, Any]:
    if parts[0].id:
        return {"index": number, "id": parts[0].id, "type": "function", "function": function}
    return {"index": number, "function": function}
