"""/v1/tokenize and /v1/detokenize: what a prompt becomes, and back."""

from gateway.api.body import Fields, read_json
from gateway.api.conversation import read_conversation
from gateway.api.lowering import read_token_ids
from gateway.api.reply import Scope, Send, send_json
from gateway.api.ticket import Ticket
from gateway.gateway import Gateway
from gateway.http_loop import Receive
from gateway.prepare import prepare
from gateway.types import GenerateRequest, Input, TextInput


class Tokenize:
    """`prompt` (text) or `messages` (a conversation) to `tokens`, with their `count` and the `max_model_len`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, record = self._gateway, scope["record"]
        ticket = Ticket(gateway, scope)
        fields = await read_json(scope, receive, gateway)
        model = gateway.model(fields.text("model"))
        record.model = model.name
        request = GenerateRequest(record.request_id, model.name, read_input(fields))
        wants_texts = fields.boolean("return_token_strs")
        loop = scope["state"]["loop"]
        async with loop.answering(scope, receive), ticket:
            prompt = await prepare(gateway, loop, model, request, record)
            token_ids = memoryview(prompt.token_ids).cast("I").tolist()
            texts = [model.tokenizer.table.token_text(token_id) for token_id in token_ids] if wants_texts else None
            body = {"count": len(token_ids), "max_model_len": model.context_length, "tokens": token_ids}
            await send_json(scope, send, body | {"token_strs": texts})


class Detokenize:
    """`tokens` to `prompt`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, record = self._gateway, scope["record"]
        ticket = Ticket(gateway, scope)
        fields = await read_json(scope, receive, gateway)
        model = gateway.model(fields.text("model"))
        record.model = model.name
        if not fields.has("tokens"):
            fields.refuse("tokens", "is required")
        token_ids = memoryview(read_token_ids(fields, "tokens", model)).cast("I").tolist()
        skip_special_tokens = fields.boolean("skip_special_tokens")
        async with scope["state"]["loop"].answering(scope, receive), ticket:
            text = await gateway.tokenize.run(model.tokenizer.decode, token_ids, skip_special_tokens)
            await send_json(scope, send, {"prompt": text})


def read_input(fields: Fields) -> Input:
    if fields.has("messages"):
        return read_conversation(fields)
    value = fields.value("prompt")
    if not isinstance(value, str):
        fields.refuse("prompt", "must be a string, unless there are messages")
    return TextInput(value, fields.boolean("add_special_tokens", default=True))
