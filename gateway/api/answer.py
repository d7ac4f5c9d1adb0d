"""What every generating endpoint does: lower a body, generate, fold the events to one reply or to a stream."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from gateway import log
from gateway.api.body import Fields, read_json
from gateway.api.reply import JSON, EventWriter, Scope, Send, json_text, quoted, send_body, server_timing
from gateway.api.ticket import Ticket
from gateway.errors import GatewayError
from gateway.gateway import Gateway
from gateway.generate import Output
from gateway.http_loop import HttpLoop, Receive
from gateway.model import Model
from gateway.parsers.message import Message
from gateway.types import Event, Finished, RequestRecord, Shape, Text, Usage


class Answer(ABC):
    """The folds of one answer. What differs between endpoints is how a choice looks."""

    prefix: ClassVar[str]
    """Of the answer's id."""
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, model: Model, record: RequestRecord, shape: Shape, choices: int) -> None:
        self._record = record
        self._choices = choices
        self._unopened = set(range(choices))
        self._chunk_head = self._chunk_tail = ""
        self._head = (
            f'{{"id":{quoted(f"{self.prefix}-{record.request_id}")},"created":{int(time.time())},'
            f'"model":{quoted(model.name)},"system_fingerprint":{quoted(model.system_fingerprint)},"object":'
        )
        self.shape = shape
        self.fault: GatewayError | None = None
        """What is wrong with an answer that has been streamed: told as its last event."""

    @abstractmethod
    def most_tokens(self) -> int:
        """How many tokens prompt and answer may have, as far as one can say before the prompt is tokenized."""

    @abstractmethod
    async def generate(self, output: Output) -> None:
        """Have `output` told what the model says, the choices numbered from 0."""

    @abstractmethod
    def whole_choice(self, index: int, message: Message, finish_reason: str) -> dict[str, Any]:
        """A choice of the one reply; raises InvalidModelOutput."""

    @abstractmethod
    def opening(self, index: int) -> str:
        """The JSON of the choice that announces one in a stream, empty when nothing does."""

    @abstractmethod
    def chunk(self, event: Text) -> str:
        """The JSON of a choice that brings more, empty when there is nothing to tell."""

    @abstractmethod
    def last_chunk(self, event: Finished) -> str:
        """The JSON of the choice that ends one."""

    @abstractmethod
    def note(self, event: Text) -> None:
        """Called with each text of the one reply, for what is to be kept of it besides the text."""

    async def whole(self) -> str:
        """The one reply, as JSON."""
        collector = Collector(self._choices, self.note)
        await self.generate(collector)
        choices = [
            self.whole_choice(index, collector.messages[index], collector.finish_reasons[index])
            for index in range(self._choices)
        ]
        usage = json_text(usage_body(collector.usage))
        return f'{self._head}"{self.whole_kind}","choices":{json_text(choices)},"usage":{usage}}}'

    async def stream(self, scope: Scope, send: Send) -> None:
        """Server-sent events."""
        self._chunk_head = f'data: {self._head}"{self.chunk_kind}","choices":['
        self._chunk_tail = self._tail()
        writer = EventWriter(scope, send, self._parts_of)
        await self.generate(writer)
        if self.fault is not None:
            await writer.flush()
            raise self.fault
        await writer.end()

    def _parts_of(self, event: Event) -> bytes:
        """One or more server-sent events for one event."""
        if self.shape.continuous_usage:
            self._chunk_tail = self._tail()
        match event:
            case Text():
                opening = self._opening(event.index) if event.index in self._unopened else ""
                chunk = self.chunk(event)
                return f"{opening}{self._chunk_head}{chunk}{self._chunk_tail}".encode() if chunk else opening.encode()
            case Finished():
                opening = self._opening(event.index) if event.index in self._unopened else ""
                return f"{opening}{self._chunk_head}{self.last_chunk(event)}{self._chunk_tail}".encode()
            case Usage():
                return self._end(event)
        return b": waiting\n\n"

    def _opening(self, index: int) -> str:
        self._unopened.discard(index)
        opening = self.opening(index)
        return f"{self._chunk_head}{opening}{self._chunk_tail}" if opening else ""

    def _tail(self) -> str:
        """What stands behind the choices of each chunk."""
        if self.shape.continuous_usage:
            record = self._record
            usage = Usage(record.prompt_tokens, record.completion_tokens, record.cached_tokens)
            return f'],"usage":{json_text(usage_body(usage))}}}\n\n'
        return '],"usage":null}\n\n' if self.shape.include_usage else "]}\n\n"

    def _end(self, usage: Usage) -> bytes:
        if self.fault is not None:
            return b""
        timing = f": server-timing {server_timing(self._record)}\n\n" if self._record.wants_timing else ""
        body = json_text(usage_body(usage))
        chunk = f'{self._chunk_head}],"usage":{body}}}\n\n' if self.shape.include_usage else ""
        return f"{timing}{chunk}data: [DONE]\n\n".encode()


class Collector:
    """An `Output` that keeps everything, for the one reply."""

    def __init__(self, choices: int, note: Callable[[Text], None]) -> None:
        self.messages = [Message() for _ in range(choices)]
        self.finish_reasons = [""] * choices
        self.usage = Usage(0, 0, 0)
        self._note = note

    def put(self, event: Event) -> bool:
        match event:
            case Text():
                self.messages[event.index].add_event(event)
                self._note(event)
            case Finished():
                self.finish_reasons[event.index] = event.finish_reason
            case Usage():
                self.usage = event
        return True

    async def flush(self) -> None:
        pass


Lower = Callable[[Fields, Gateway, HttpLoop, RequestRecord], Answer]
"""Makes the answer of a body; raises BadRequest with the path of what is wrong, or ModelNotFound."""


class Endpoint:
    """A generating endpoint, as an ASGI application."""

    def __init__(self, gateway: Gateway, lower: Lower) -> None:
        self._gateway = gateway
        self._lower = lower

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop: HttpLoop = scope["state"]["loop"]
        ticket = Ticket(self._gateway, scope)
        fields = await read_json(scope, receive, self._gateway)
        if self._gateway.config.log_prompts:
            log.event(logging.INFO, "prompt", id=scope["record"].request_id, body=fields.values)
        answer = self._lower(fields, self._gateway, loop, scope["record"])
        ticket.cost = answer.most_tokens
        async with loop.answering(scope, receive), ticket:
            if answer.shape.stream:
                await answer.stream(scope, send)
            else:
                await send_body(scope, send, (await answer.whole()).encode(), JSON)


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
