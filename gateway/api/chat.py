"""/v1/chat/completions: its body lowered, its choices as messages and deltas."""

import logging
from dataclasses import dataclass
from typing import Any

from engine_adapters.base import Constraint
from gateway import log
from gateway.api.answer import Answer
from gateway.api.body import Fields
from gateway.api.checks import Checks
from gateway.api.conversation import read_conversation
from gateway.api.deltas import delta_of, message_of
from gateway.api.logprobs import chat_logprobs
from gateway.api.lowering import ACCEPTED, MAX_LOGPROBS, Logging, Wanted, read_request, read_shape, refuse_unfit
from gateway.api.reply import json_text, on_one_line, quoted
from gateway.api.structured import Structure, read_structure
from gateway.api.tools import NO_TOOLS, ToolUse, forced_calls, read_tool_use, tagged_calls
from gateway.errors import BadRequest, InvalidModelOutput
from gateway.gateway import Gateway
from gateway.generate import Output, generate
from gateway.http_loop import HttpLoop
from gateway.model import Model
from gateway.parsers.message import Message
from gateway.schemas import SchemaError
from gateway.types import Finished, GenerateRequest, Reading, Reasoning, RequestRecord, Shape, Text

NOT_YET = ("audio", "web_search_options", "prediction")
SEPARATION = ("separate_reasoning", "stream_reasoning")


def lower(fields: Fields, gateway: Gateway, loop: HttpLoop, record: RequestRecord) -> "ChatAnswer":
    """Raises BadRequest with the path of what is wrong, or ModelNotFound."""
    model = gateway.model(fields.text("model"))
    record.model = model.name
    refuse_unfit(fields, NOT_YET, "is not supported yet")
    use, source = read_tool_use(fields, read_conversation(fields))
    structure = read_structure(fields)
    form = form_of(fields, use, structure, gateway, model)
    wanted = Wanted(read_reading(fields, use), form.constraint, form.is_wish)
    request = read_request(fields, record.request_id, model, source, read_logging(fields), None, wanted)
    shape = read_shape(fields)
    fields.log_unread(ACCEPTED)
    if use.mode == "auto" and model.formats.calls.family is None:
        warn_of_unknown_format(loop, model)
    return ChatAnswer(gateway, loop, request, record, shape, form)


def read_logging(fields: Fields) -> Logging:
    if fields.lacks(LOGGING):
        return SILENT
    top = fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    wanted = fields.boolean("logprobs")
    if top is not None and not wanted:
        fields.refuse("top_logprobs", "needs logprobs: true")
    return Logging(logprobs=(top or 0) if wanted else None)


LOGGING = ("logprobs", "top_logprobs")
SILENT = Logging()


def read_reading(fields: Fields, use: ToolUse) -> Reading:
    """How the answer is to be read: for calls, and whether reasoning is apart from content and streamed."""
    if use is NO_TOOLS and fields.lacks(SEPARATION):
        return PLAIN_READING
    separates = fields.boolean("separate_reasoning", default=True)
    return use.reading(separates, fields.boolean("stream_reasoning", default=True))


PLAIN_READING = Reading()


def warn_of_unknown_format(loop: HttpLoop, model: Model) -> None:
    what = f"model {model.name!r} has no known format for tool calls: name one with --tool-parser"
    if what not in loop.warned:
        loop.warned.add(what)
        log.event(logging.WARNING, what, why=model.formats.calls.why)


@dataclass(frozen=True)
class Form:
    """What an answer must look like: the constraint for the engine, the checks here, and the field that wants them."""

    field: str
    constraint: Constraint | None
    is_wish: bool
    checks: Checks
    is_legacy: bool


FREE = Form("tools", None, False, Checks(), False)


def form_of(fields: Fields, use: ToolUse, structure: Structure | None, gateway: Gateway, model: Model) -> Form:
    """What must be called comes before what the text must look like, and a choice between both leaves the engine free.

    Raises BadRequest.
    """
    if use is NO_TOOLS and structure is None:
        return FREE
    checks = checks_of(fields, use, structure, gateway)
    if use.mode == "required":
        return Form("tool_choice", forced_calls(use, model), False, checks, use.is_legacy)
    if structure is not None and use.mode == "none":
        return Form(structure.field, structure.constraint, False, checks, use.is_legacy)
    if structure is not None and structure.schema is None:
        fields.refuse(structure.field, "cannot be combined with tools, unless tool_choice is none")
    constraint = tagged_calls(use, model, is_needed=False) if structure is None else None
    return Form("tools", constraint, True, checks, use.is_legacy)


def checks_of(fields: Fields, use: ToolUse, structure: Structure | None, gateway: Gateway) -> Checks:
    """Raises BadRequest for a schema that cannot be used."""
    validators, place = gateway.validators, ""
    try:
        arguments = {}
        for name in use.strict:
            place = f"tools: the parameters of {name!r}"
            arguments[name] = validators.get(use.schemas.get(name) or {})
        if structure is None or structure.schema is None:
            return Checks(arguments=arguments)
        place = structure.field
        return Checks(validators.get(structure.schema), structure.is_strict, arguments)
    except SchemaError as error:
        raise BadRequest(f"{place} {error}", param=place.partition(":")[0]) from error


class ChatAnswer(Answer):
    prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(
        self,
        gateway: Gateway,
        loop: HttpLoop,
        request: GenerateRequest,
        record: RequestRecord,
        shape: Shape,
        form: Form,
    ) -> None:
        model = gateway.model(request.model)
        super().__init__(model, record, shape, request.n)
        self._gateway = gateway
        self._loop = loop
        self._request = request
        self._form = form
        self._table = model.tokenizer.table
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(request.n)]
        has_checks = form.checks.content is not None or bool(form.checks.arguments)
        self._streamed = [Message() for _ in range(request.n)] if has_checks and shape.stream else []
        """What has been streamed, where it is to be checked."""

    def most_tokens(self) -> int:
        return self._request.most_tokens()

    async def generate(self, output: Output) -> None:
        try:
            await generate(self._gateway, self._loop, self._request, self._record, output)
        except BadRequest as error:
            if error.param is None or not error.param.startswith("constraint."):
                raise
            hint = CANNOT_WAIT if error.param == "constraint.begins_after" else ""
            raise BadRequest(f"{self._form.field}: {error.message}{hint}", param=self._form.field) from error

    def note(self, event: Text) -> None:
        if event.logprobs is not None:
            self._logprobs[event.index] += chat_logprobs(self._table, event)

    def whole_choice(self, index: int, message: Message, finish_reason: str) -> dict[str, Any]:
        fault = self._judged(message, finish_reason)
        if fault:
            text = message.content or "".join(call.arguments for call in message.calls)
            raise InvalidModelOutput(fault, text=text, param=self._form.field)
        return {
            "index": index,
            "message": message_of(message, self._form.is_legacy),
            "logprobs": None if self._request.logprobs is None else {"content": self._logprobs[index], "refusal": None},
            "finish_reason": self._reason(finish_reason),
        }

    def opening(self, index: int) -> str:
        return OPENING % index

    def chunk(self, event: Text) -> str:
        if self._streamed:
            self._streamed[event.index].add_event(event)
        logprobs = "null"
        if event.logprobs is not None:
            logprobs = on_one_line(json_text({"content": chat_logprobs(self._table, event), "refusal": None}))
        pieces = event.pieces
        if not pieces:
            return CHUNK % (event.index, quoted(event.text), logprobs)
        if len(pieces) == 1 and isinstance(pieces[0], Reasoning):
            return REASONING_CHUNK % (event.index, quoted(pieces[0].text), logprobs)
        delta = delta_of(pieces, self._form.is_legacy)
        if not delta and event.logprobs is None:
            return ""
        return DELTA_CHUNK % (event.index, on_one_line(json_text(delta)), logprobs)

    def last_chunk(self, event: Finished) -> str:
        if self._streamed:
            fault = self._judged(self._streamed[event.index], event.finish_reason)
            self.fault = self.fault or (InvalidModelOutput(fault, param=self._form.field) if fault else None)
        return LAST_CHUNK % (event.index, quoted(self._reason(event.finish_reason)))

    def _judged(self, message: Message, finish_reason: str) -> str | None:
        return self._form.checks.fault(message, finish_reason, self._request.model, self._loop.cells)

    def _reason(self, finish_reason: str) -> str:
        return "function_call" if finish_reason == "tool_calls" and self._form.is_legacy else finish_reason


CANNOT_WAIT = (
    "; it cannot begin to constrain an answer behind the reasoning, so switch that off: "
    '"chat_template_kwargs": {"enable_thinking": false}'
)
OPENING = '{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
CHUNK = '{"index":%d,"delta":{"content":%s},"logprobs":%s,"finish_reason":null}'
REASONING_CHUNK = '{"index":%d,"delta":{"reasoning_content":%s},"logprobs":%s,"finish_reason":null}'
DELTA_CHUNK = '{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":null}'
LAST_CHUNK = '{"index":%d,"delta":{},"logprobs":null,"finish_reason":%s}'
