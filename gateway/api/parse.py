"""/parse/function_call and /parse/reasoning: a text that a model wrote, read as answers are. The shapes are SMG's."""

from typing import Any

from gateway.api.body import Fields, read_json
from gateway.api.conversation import read_tools
from gateway.api.reply import Scope, Send, send_json
from gateway.api.ticket import Ticket
from gateway.api.tools import read_schemas
from gateway.errors import BadRequest
from gateway.gateway import Gateway
from gateway.http_loop import Receive
from gateway.parsers.detect import UnknownParser, named_calls, named_reasoning
from gateway.parsers.family import CallFamily, ReasoningFamily
from gateway.parsers.message import Message
from gateway.parsers.output import Format
from gateway.parsers.reader import Tools

POOL_CHARACTERS = 20_000
"""Longer texts are read on the pool."""


class ParseFunctionCall:
    """`text`, `tools` and `tool_call_parser` (or `model`, whose own is taken) to `remaining_text` and `tool_calls`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._formats: dict[str, Format] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ticket = Ticket(self._gateway, scope)
        fields = await read_json(scope, receive, self._gateway)
        text = read_text(fields)
        family = self._family(fields)
        schemas, _ = read_schemas(fields, "tools", read_tools(fields) or [])
        async with scope["state"]["loop"].answering(scope, receive), ticket:
            form = self._formats.get(family.name) or self._formats.setdefault(family.name, Format(None, family))
            message = await read(self._gateway, form, text, Tools(schemas or None))
            await send_json(
                scope, send, {"remaining_text": message.content, "tool_calls": calls_of(message), "success": True}
            )

    def _family(self, fields: Fields) -> CallFamily:
        name = parser_name(fields, "tool_call_parser", "tool_parser")
        try:
            found = named_calls(name) if name else self._gateway.model(fields.text("model")).formats.calls.family
        except UnknownParser as error:
            raise BadRequest(str(error), param="tool_call_parser") from error
        if found is None:
            fields.refuse("tool_call_parser", "is required: this model has none of its own")
        return found


class ParseReasoning:
    """`text` and `reasoning_parser` (or `model`, whose own is taken) to `reasoning_text` and `normal_text`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._formats: dict[str, Format] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ticket = Ticket(self._gateway, scope)
        fields = await read_json(scope, receive, self._gateway)
        text = read_text(fields)
        family = self._family(fields)
        opens = fields.boolean("prompt_opens_reasoning") if fields.has("prompt_opens_reasoning") else None
        async with scope["state"]["loop"].answering(scope, receive), ticket:
            form = self._formats.get(family.name) or self._formats.setdefault(family.name, Format(family, None))
            message = await read(self._gateway, form, text, None, opens)
            await send_json(
                scope, send, {"normal_text": message.content, "reasoning_text": message.reasoning, "success": True}
            )

    def _family(self, fields: Fields) -> ReasoningFamily:
        name = parser_name(fields, "reasoning_parser")
        try:
            found = (
                named_reasoning(name) if name else self._gateway.model(fields.text("model")).formats.reasoning.family
            )
        except UnknownParser as error:
            raise BadRequest(str(error), param="reasoning_parser") from error
        if found is None:
            fields.refuse("reasoning_parser", "is required: this model has none of its own")
        return found


def parser_name(fields: Fields, *names: str) -> str:
    """The first of these fields; never one that would import something."""
    for name in names:
        if fields.has(name):
            value = fields.text(name)
            if ":" in value:
                fields.refuse(name, "must be the name of a parser")
            return value
    return ""


def read_text(fields: Fields) -> str:
    text = fields.value("text")
    if not isinstance(text, str):
        fields.refuse("text", "must be a string")
    return text


async def read(gateway: Gateway, form: Format, text: str, tools: Tools | None, opens: bool | None = None) -> Message:
    if len(text) > POOL_CHARACTERS:
        return await gateway.tokenize.run(read_now, form, text, tools, opens)
    return read_now(form, text, tools, opens)


def read_now(form: Format, text: str, tools: Tools | None, opens: bool | None) -> Message:
    message, parser = Message(), form.parser(tools, opens)
    for pieces in (parser.feed(text), parser.flush()):
        for piece in pieces:
            message.add(piece)
    return message


def calls_of(message: Message) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.calls
    ]
