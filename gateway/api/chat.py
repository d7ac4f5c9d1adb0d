"""/v1/chat/completions: its body lowered to a GenerateRequest, its events folded to one reply or to a stream."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from gateway.api.body import Fields, read_json
from gateway.api.logprobs import chat_logprobs
from gateway.api.lowering import ACCEPTED, MAX_LOGPROBS, Logging, read_request, read_shape, refuse_unfit
from gateway.api.reply import (
    Head,
    Scope,
    Send,
    ending,
    json_text,
    quoted,
    send_events,
    send_json,
    tail_of,
    usage_body,
)
from gateway.errors import BadRequest
from gateway.generate import Gateway, generate
from gateway.http_loop import Receive
from gateway.tokenizer import DetokenizerTable
from gateway.types import ChatInput, Event, Finished, GenerateRequest, RequestRecord, Shape, Text, Usage

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
NOT_YET = ("tools", "functions", "tool_choice", "function_call", "audio", "web_search_options", "prediction")


class ChatCompletions:
    """The endpoint, as an ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, loop, record = self._gateway, scope["state"]["loop"], scope["record"]
        fields = await read_json(scope, receive, gateway)
        request, shape = lower(fields, gateway, record)
        async with loop.answering(receive):
            events = generate(gateway, loop, request, record)
            answer = Answer(gateway, loop.tables[request.model], request, record)
            if shape.stream:
                await send_events(scope, send, answer.stream(events, shape))
            else:
                await send_json(scope, send, await answer.whole(events))


def lower(fields: Fields, gateway: Gateway, record: RequestRecord) -> tuple[GenerateRequest, Shape]:
    """Raises BadRequest with the path of what is wrong, or ModelNotFound."""
    model = gateway.model(fields.text("model"))
    record.model = model.name
    source = ChatInput(
        messages=fields.each("messages", read_message),
        template_arguments=fields.object("chat_template_kwargs").values,
        continue_final_message=fields.boolean("continue_final_message"),
    )
    refuse_unfit(fields, NOT_YET, "is not supported yet")
    format_type = fields.object("response_format").value("type")
    if format_type not in (None, "text"):
        raise BadRequest("response_format is not supported yet", param="response_format.type")
    request = read_request(fields, record.request_id, model, source, read_logging(fields), default_max_tokens=None)
    shape = read_shape(fields)
    fields.log_unread(ACCEPTED)
    return request, shape


def read_logging(fields: Fields) -> Logging:
    top = fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    wanted = fields.boolean("logprobs")
    if top is not None and not wanted:
        fields.refuse("top_logprobs", "needs logprobs: true")
    return Logging(logprobs=(top or 0) if wanted else None)


def read_message(fields: Fields) -> dict[str, Any]:
    """A message as the chat template takes it: its content one text, all other fields as they are."""
    role = fields.text("role")
    if role not in ROLES:
        fields.refuse("role", f"must be one of {', '.join(ROLES)}")
    content = fields.value("content")
    if content is None and role != "assistant":
        fields.refuse("content", "is required")
    if isinstance(content, list):
        content = "".join(fields.each("content", read_text_part))
    elif content is not None and not isinstance(content, str):
        fields.refuse("content", "must be a string or a list of parts")
    return {**fields.values, "content": content}


def read_text_part(fields: Fields) -> str:
    kind = fields.text("type")
    if kind != "text":
        fields.refuse("type", f"is {kind!r}, but this model takes only text")
    text = fields.value("text")
    if not isinstance(text, str):
        fields.refuse("text", "must be a string")
    return text


class Answer:
    """The folds of one answer."""

    def __init__(
        self, gateway: Gateway, table: DetokenizerTable, request: GenerateRequest, record: RequestRecord
    ) -> None:
        self._head = Head(f"chatcmpl-{request.request_id}", gateway.model(request.model))
        self._table = table
        self._n = request.n
        self._has_logprobs = request.logprobs is not None
        self._record = record

    async def whole(self, events: AsyncGenerator[Event]) -> dict[str, Any]:
        texts: list[list[str]] = [[] for _ in range(self._n)]
        logprobs: list[list[dict[str, Any]]] = [[] for _ in range(self._n)]
        finished: dict[int, str] = {}
        async with aclosing(events):
            async for event in events:
                match event:
                    case Text():
                        texts[event.index].append(event.text)
                        logprobs[event.index] += chat_logprobs(self._table, event)
                    case Finished():
                        finished[event.index] = event.finish_reason
                    case Usage():
                        usage = event
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts[index]), "refusal": None},
                "logprobs": {"content": logprobs[index], "refusal": None} if self._has_logprobs else None,
                "finish_reason": finished[index],
            }
            for index in range(self._n)
        ]
        return self._head.body("chat.completion") | {"choices": choices, "usage": usage_body(usage)}

    async def stream(self, events: AsyncGenerator[Event], shape: Shape) -> AsyncGenerator[bytes]:
        """Each part goes out in one write. What the events of one choice have in common is written out once."""
        head = self._head.event("chat.completion.chunk")
        before = [f'{head}{{"index":{index},"delta":{{"content":' for index in range(self._n)]
        after = tail_of(shape, self._record)
        openings = [f"{head}{ROLE_CHOICE % index}{after}" for index in range(self._n)]
        async with aclosing(events):
            async for event in events:
                if shape.continuous_usage:
                    after = tail_of(shape, self._record)
                match event:
                    case Text():
                        index = event.index
                        logprobs = self._logprobs(event) if self._has_logprobs else "null"
                        chunk = f"{openings[index]}{before[index]}{quoted(event.text)}}},{FIELDS % logprobs}{after}"
                        openings[index] = ""
                        yield chunk.encode()
                    case Finished():
                        choice = END_CHOICE % (event.index, quoted(event.finish_reason))
                        yield f"{openings[event.index]}{head}{choice}{after}".encode()
                        openings[event.index] = ""
                    case Usage():
                        yield ending(head, event, shape, self._record)
                    case _:
                        yield b": waiting\n\n"

    def _logprobs(self, event: Text) -> str:
        return json_text({"content": chat_logprobs(self._table, event), "refusal": None})


FIELDS = '"logprobs":%s,"finish_reason":null}'
ROLE_CHOICE = '{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
END_CHOICE = '{"index":%d,"delta":{},"logprobs":null,"finish_reason":%s}'
