"""/v1/chat/completions: its body lowered, its choices as messages and deltas."""

from typing import Any

from gateway.api.answer import Answer
from gateway.api.body import Fields
from gateway.api.conversation import read_conversation
from gateway.api.logprobs import chat_logprobs
from gateway.api.lowering import ACCEPTED, MAX_LOGPROBS, Logging, read_request, read_shape, refuse_unfit
from gateway.api.reply import json_text, on_one_line, quoted
from gateway.errors import BadRequest
from gateway.generate import Gateway, Output, generate
from gateway.http_loop import HttpLoop
from gateway.types import Finished, GenerateRequest, RequestRecord, Shape, Text

NOT_YET = ("tools", "functions", "tool_choice", "function_call", "audio", "web_search_options", "prediction")


def lower(fields: Fields, gateway: Gateway, loop: HttpLoop, record: RequestRecord) -> "ChatAnswer":
    """Raises BadRequest with the path of what is wrong, or ModelNotFound."""
    model = gateway.model(fields.text("model"))
    record.model = model.name
    source = read_conversation(fields)
    refuse_unfit(fields, NOT_YET, "is not supported yet")
    format_type = fields.object("response_format").value("type")
    if format_type not in (None, "text"):
        raise BadRequest("response_format is not supported yet", param="response_format.type")
    request = read_request(fields, record.request_id, model, source, read_logging(fields), default_max_tokens=None)
    shape = read_shape(fields)
    fields.log_unread(ACCEPTED)
    return ChatAnswer(gateway, loop, request, record, shape)


def read_logging(fields: Fields) -> Logging:
    top = fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    wanted = fields.boolean("logprobs")
    if top is not None and not wanted:
        fields.refuse("top_logprobs", "needs logprobs: true")
    return Logging(logprobs=(top or 0) if wanted else None)


class ChatAnswer(Answer):
    prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(
        self, gateway: Gateway, loop: HttpLoop, request: GenerateRequest, record: RequestRecord, shape: Shape
    ) -> None:
        super().__init__(gateway.model(request.model), record, shape, request.n)
        self._gateway = gateway
        self._loop = loop
        self._request = request
        self._table = loop.tables[request.model]
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(request.n)]

    async def generate(self, output: Output) -> None:
        await generate(self._gateway, self._loop, self._request, self._record, output)

    def note(self, event: Text) -> None:
        if event.logprobs is not None:
            self._logprobs[event.index] += chat_logprobs(self._table, event)

    def whole_choice(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        logprobs = None if self._request.logprobs is None else {"content": self._logprobs[index], "refusal": None}
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}

    def opening(self, index: int) -> str:
        return OPENING % index

    def chunk(self, event: Text) -> str:
        logprobs = "null"
        if event.logprobs is not None:
            logprobs = on_one_line(json_text({"content": chat_logprobs(self._table, event), "refusal": None}))
        return CHUNK % (event.index, quoted(event.text), logprobs)

    def last_chunk(self, event: Finished) -> str:
        return LAST_CHUNK % (event.index, quoted(event.finish_reason))


OPENING = '{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
CHUNK = '{"index":%d,"delta":{"content":%s},"logprobs":%s,"finish_reason":null}'
LAST_CHUNK = '{"index":%d,"delta":{},"logprobs":null,"finish_reason":%s}'
