"""/openapi.json: what the endpoints take and answer, as OpenAPI 3.1.

The description is of this gateway: its models are the values that `model` may have, and a key is asked for where one is
needed. Fields beyond the described ones are taken and ignored; what a field means is in docs/api.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.api.lowering import (
    MAX_ANSWERS,
    MAX_BIAS,
    MAX_KV_PRIORITY,
    MAX_LOGPROBS,
    MAX_PRIORITY,
    MAX_SEED,
    MAX_STOPS,
    MAX_TOKENS,
)
from gateway.api.reply import Scope, Send, send_json
from gateway.gateway import Gateway
from gateway.generation_config import RANGES
from gateway.http_loop import Receive
from gateway.parsers.call_families import CALL_FAMILIES
from gateway.parsers.family import Family
from gateway.parsers.reasoning_families import REASONING_FAMILIES

type Schema = dict[str, Any]
type Properties = Mapping[str, Schema]


def text(**more: Any) -> Schema:
    return {"type": "string", "minLength": 1, **more}


def words(*values: str) -> Schema:
    return {"enum": list(values)}


def integer(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def some(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least, **({} if most is None else {"maxItems": most})}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def obj(required: Properties, optional: Properties | None = None) -> Schema:
    """An object; null is as good as absent for what is optional."""
    others = {name: either(schema, {"type": "null"}) for name, schema in (optional or {}).items()}
    return {"type": "object", "properties": {**required, **others}, "required": list(required)}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


ANYTHING: Schema = {}
BOOLEAN: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXT: Schema = {"type": "string"}
TOKEN_ID: Schema = {"type": "integer", "minimum": 0}
MODEL = reference("Model")

GENERATION: Properties = {
    "max_tokens": integer(1, MAX_TOKENS),
    "max_completion_tokens": integer(1, MAX_TOKENS),
    "min_tokens": integer(0, MAX_TOKENS),
    **{name: number(*bounds) for name, bounds in RANGES.items()},
    "top_k": integer(-1, MAX_TOKENS),
    "no_repeat_ngram_size": integer(1, MAX_TOKENS),
    "seed": integer(-MAX_SEED, MAX_SEED - 1),
    "n": integer(1, MAX_ANSWERS),
    "logit_bias": {"type": "object", "additionalProperties": number(-MAX_BIAS, MAX_BIAS)},
    "bad_token_ids": some(TOKEN_ID),
    "stop": either(text(), some(text(), most=MAX_STOPS)),
    "stop_token_ids": some(TOKEN_ID),
    "include_stop_str_in_output": BOOLEAN,
    "ignore_eos": BOOLEAN,
    "skip_special_tokens": BOOLEAN,
    "priority": integer(-MAX_PRIORITY, MAX_PRIORITY),
    "cache_salt": text(),
    "kv_retention": obj({}, {"ranges": some(ANY_OBJECT, 1), "decode_priority": integer(0, MAX_KV_PRIORITY)}),
    "truncate_prompt_tokens": integer(1, MAX_TOKENS),
    "stream": BOOLEAN,
    "stream_options": obj({}, {"include_usage": BOOLEAN, "continuous_usage_stats": BOOLEAN}),
}
CONVERSATION: Properties = {
    "tools": some(obj({"type": text()})),
    "documents": some(ANY_OBJECT, 1),
    "enable_thinking": BOOLEAN,
    "thinking": either(BOOLEAN, obj({"type": words("enabled", "disabled", "auto")})),
    "reasoning_effort": text(),
    "chat_template": text(),
    "chat_template_kwargs": ANY_OBJECT,
    "add_generation_prompt": BOOLEAN,
    "continue_final_message": either(BOOLEAN, text()),
    "add_special_tokens": BOOLEAN,
}
CHAT: Properties = {
    **GENERATION,
    **CONVERSATION,
    "logprobs": BOOLEAN,
    "top_logprobs": integer(0, MAX_LOGPROBS),
    "tool_choice": either(words("none", "auto", "required"), obj({"type": words("function", "allowed_tools")})),
    "parallel_tool_calls": BOOLEAN,
    "functions": some(obj({"name": text()})),
    "function_call": either(words("none", "auto", "required"), obj({"name": text()})),
    "response_format": ANY_OBJECT,
    "structured_outputs": ANY_OBJECT,
    "regex": text(),
    "ebnf": text(),
    "separate_reasoning": BOOLEAN,
    "stream_reasoning": BOOLEAN,
}
COMPLETION: Properties = {
    **GENERATION,
    "echo": BOOLEAN,
    "logprobs": integer(0, MAX_LOGPROBS),
    "add_special_tokens": BOOLEAN,
}
MESSAGES = some(reference("Message"), 1)
PROMPT = either(text(), some(text(), 1), some(TOKEN_ID, 1), some(some(TOKEN_ID, 1), 1))
THREADS = integer(1, 256)
POOL_SIZE = either(obj({"threads": THREADS}), obj({"minimum": THREADS, "maximum": THREADS}))
WORKER_URL = "^(step|trtllm|openengine)://[a-z0-9.-]+:[0-9]{1,4}$"
WORKER = obj({"name": TEXT}, {"state": TEXT, "reason": TEXT, "model": TEXT, "weight": {"type": "number"}})
REASONS = obj({"status": TEXT, "reasons": some(TEXT), "workers": some(WORKER)})


def names(families: Iterable[Family]) -> list[str]:
    return [name for family in families for name in (family.name, *family.aliases)]


def choices(of: Schema) -> Schema:
    """A whole answer of the model's."""
    return obj(
        {"id": TEXT, "object": TEXT, "created": COUNT, "model": TEXT, "choices": some(of, 1), "usage": ANY_OBJECT}
    )


@dataclass(frozen=True)
class Operation:
    """An endpoint. `answers` are its answers' schemas by media type; `statuses` those of its errors, besides those of
    every endpoint of its kind."""

    method: str
    path: str
    summary: str
    answers: Mapping[str, Schema]
    body: Schema | None = None
    statuses: tuple[int, ...] = ()
    status: int = 200
    parameters: tuple[Schema, ...] = ()


JSON, EVENTS, PLAIN = "application/json", "text/event-stream", "text/plain"
NAME = {"name": "name", "in": "path", "required": True, "schema": text()}
NOW = {"name": "now", "in": "query", "schema": words("true", "false")}
OF_A_BODY = (400, 408, 413, 415, 429)
OF_A_MODEL = (403, 404, 503)
OF_AN_ENGINE = (*OF_A_MODEL, 502, 504)
CHAT_CHOICE = obj({"index": COUNT, "message": ANY_OBJECT, "finish_reason": TEXT})
COMPLETION_CHOICE = obj({"index": COUNT, "text": TEXT, "finish_reason": TEXT})

OPERATIONS = (
    Operation(
        *("POST", "/v1/chat/completions", "A conversation, answered"),
        {JSON: choices(CHAT_CHOICE), EVENTS: ANYTHING},
        obj({"model": MODEL, "messages": MESSAGES}, CHAT),
        OF_AN_ENGINE,
    ),
    Operation(
        *("POST", "/v1/completions", "A text or token ids, written on"),
        {JSON: choices(COMPLETION_CHOICE), EVENTS: ANYTHING},
        obj({"model": MODEL, "prompt": PROMPT}, COMPLETION),
        OF_AN_ENGINE,
    ),
    Operation(
        *("POST", "/v1/tokenize", "A prompt's tokens"),
        {JSON: obj({"count": COUNT, "max_model_len": COUNT, "tokens": some(TOKEN_ID)}, {"token_strs": some(TEXT)})},
        either(
            obj({"model": MODEL, "prompt": TEXT}, {"return_token_strs": BOOLEAN, "add_special_tokens": BOOLEAN}),
            obj({"model": MODEL, "messages": MESSAGES}, {"return_token_strs": BOOLEAN, **CONVERSATION}),
        ),
        OF_A_MODEL,
    ),
    Operation(
        *("POST", "/v1/detokenize", "The text of tokens"),
        {JSON: obj({"prompt": TEXT})},
        obj({"model": MODEL, "tokens": some(TOKEN_ID)}, {"skip_special_tokens": BOOLEAN}),
        OF_A_MODEL,
    ),
    Operation("GET", "/v1/models", "The models", {JSON: obj({"object": TEXT, "data": some(obj({"id": TEXT}))})}),
    Operation(
        *("POST", "/parse/function_call", "The tool calls in a text"),
        {JSON: obj({"remaining_text": TEXT, "tool_calls": some(ANY_OBJECT), "success": BOOLEAN})},
        either(
            obj({"text": TEXT, "tool_call_parser": words(*names(CALL_FAMILIES))}, {"tools": CONVERSATION["tools"]}),
            obj({"text": TEXT, "model": MODEL}, {"tools": CONVERSATION["tools"]}),
        ),
        OF_A_MODEL,
    ),
    Operation(
        *("POST", "/parse/reasoning", "The reasoning in a text"),
        {JSON: obj({"normal_text": TEXT, "reasoning_text": TEXT, "success": BOOLEAN})},
        either(
            obj(
                {"text": TEXT, "reasoning_parser": words(*names(REASONING_FAMILIES))},
                {"prompt_opens_reasoning": BOOLEAN},
            ),
            obj({"text": TEXT, "model": MODEL}, {"prompt_opens_reasoning": BOOLEAN}),
        ),
        OF_A_MODEL,
    ),
    Operation("GET", "/health", "Whether the process works", {JSON: obj({"status": TEXT})}, None, (503,)),
    Operation("GET", "/live", "Whether the process works", {JSON: obj({"status": TEXT})}, None, (503,)),
    Operation("GET", "/ready", "Whether every model has a ready worker", {JSON: REASONS}, None, (503,)),
    Operation("GET", "/metrics", "Prometheus' text format", {PLAIN: TEXT}),
    Operation("GET", "/openapi.json", "This description", {JSON: obj({"openapi": TEXT})}),
    Operation("GET", "/admin/workers", "The workers", {JSON: obj({"workers": some(WORKER)})}),
    Operation(
        *("POST", "/admin/workers", "Add a worker", {JSON: WORKER}),
        obj({"url": text(pattern=WORKER_URL)}, {"name": text()}),
        status=201,
    ),
    Operation("GET", "/admin/workers/{name}", "A worker", {JSON: WORKER}, None, (404,), 200, (NAME,)),
    Operation(
        *("PATCH", "/admin/workers/{name}", "Change a worker", {JSON: WORKER}),
        obj({}, {"draining": BOOLEAN, "weight": number(0.001, 1000)}) | {"additionalProperties": False},
        (404,),
        parameters=(NAME,),
    ),
    Operation("DELETE", "/admin/workers/{name}", "Remove a worker", {JSON: WORKER}, None, (404,), 200, (NAME, NOW)),
    Operation("GET", "/admin/pools", "The CPU pools", {JSON: ANY_OBJECT}),
    Operation(
        *("PATCH", "/admin/pools", "Resize CPU pools", {JSON: ANY_OBJECT}),
        {"type": "object", "properties": {"tokenize": POOL_SIZE}, "additionalProperties": False},
    ),
)
PRIORITY = {
    "name": "x-priority",
    "in": "header",
    "schema": words("high", "normal", "low"),
    "description": "The class of a request that has to wait; no better than its key's.",
}
ERROR = obj({"error": obj({"message": TEXT, "type": TEXT}, {"param": TEXT, "code": TEXT})})
MESSAGE = {
    "anyOf": [
        obj({"role": words("assistant")}, {"content": reference("Content")}),
        obj({"role": words("system", "developer", "user", "tool", "function"), "content": reference("Content")}),
    ]
}
CONTENT = either(TEXT, some(obj({"type": text()}), 1))


def description(gateway: Gateway) -> Schema:
    """OpenAPI 3.1, of this gateway."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = described(operation, gateway)
    schemas = {
        "Model": words(*gateway.models, *gateway.adapters),
        "Message": MESSAGE,
        "Content": CONTENT,
        "Error": ERROR,
    }
    scheme = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "nogil-gateway", "version": "1", "summary": "An OpenAI-compatible gateway to LLM engines"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": scheme},
    }


def described(operation: Operation, gateway: Gateway) -> Schema:
    statuses = {*operation.statuses, *(OF_A_BODY if operation.body is not None else ())}
    security = security_of(operation.path, gateway)
    if security:
        statuses |= {401, 429}
    if operation.path.startswith("/admin/"):
        statuses |= {401, 403}
    is_of_v1 = operation.body is not None and operation.path.startswith(("/v1/", "/parse/"))
    error = {JSON: REASONS if operation.path == "/ready" else either(reference("Error"), obj({"status": TEXT}))}
    result: Schema = {
        "summary": operation.summary,
        "parameters": [*operation.parameters, *([PRIORITY] if is_of_v1 else [])],
        "responses": {
            str(operation.status): answer_of(operation.summary, operation.answers),
            **{str(status): answer_of("An error", error) for status in sorted(statuses)},
        },
        "security": security,
    }
    if operation.body is not None:
        result["requestBody"] = {"required": True, "content": {JSON: {"schema": operation.body}}}
    return result


def security_of(path: str, gateway: Gateway) -> list[dict[str, list[str]]]:
    needs_key = gateway.keys.are_needed if path.startswith(("/v1/", "/parse/")) else gateway.keys.have_admin
    is_open = not path.startswith(("/v1/", "/parse/", "/admin/"))
    return [{"bearer": []}] if needs_key and not is_open else []


def answer_of(summary: str, contents: Mapping[str, Schema]) -> Schema:
    return {"description": summary, "content": {media: {"schema": schema} for media, schema in contents.items()}}


class OpenApi:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(scope, send, description(self._gateway))
