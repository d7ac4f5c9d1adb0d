"""The ASGI application: routes, request records, and the one place where exceptions become answers."""

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from gateway import log
from gateway.api import chat, completions, unavailable
from gateway.api.access import check_access
from gateway.api.admin import AdminPools
from gateway.api.admin_workers import AdminWorker, AdminWorkers
from gateway.api.answer import Endpoint
from gateway.api.openapi import OpenApi
from gateway.api.parse import ParseFunctionCall, ParseReasoning
from gateway.api.reply import Scope, Send, send_error, stages
from gateway.api.status import Live, Metrics, Models, Ready
from gateway.api.tokens import Detokenize, Tokenize
from gateway.api.unavailable import NotHere
from gateway.errors import BadRequest, ClientLeft, GatewayError, MethodNotAllowed, NotFound
from gateway.gateway import Gateway
from gateway.http_loop import HttpLoop, Receive
from gateway.metrics import (
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    DURATION,
    FIRST_TOKEN,
    INTER_TOKEN,
    KEY_REQUESTS,
    PROMPT_TOKENS,
    REFUSED,
    REQUESTS,
    STAGE,
    Cells,
)
from gateway.retries import RetryBudget
from gateway.types import RequestRecord

MAX_REQUEST_ID = 128
MAX_ROUTING_KEY = 256
TIMEOUT_HEADER = "x-request-timeout"
LONGEST_SECONDS = 86400
REFUSALS = (401, 403, 429, 503)


class App:
    """Starlette's router between our records and our errors.

    Not a Starlette instance: its two exception middlewares would wrap `send` and cost a coroutine each for every
    streamed token.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        live = Live(gateway)
        self._router = Router(
            routes=[
                Route("/v1/chat/completions", Endpoint(gateway, chat.lower), methods=["POST"]),
                Route("/v1/completions", Endpoint(gateway, completions.lower), methods=["POST"]),
                Route("/v1/tokenize", Tokenize(gateway), methods=["POST"]),
                Route("/v1/detokenize", Detokenize(gateway), methods=["POST"]),
                Route("/v1/models", Models(gateway), methods=["GET"]),
                Route("/parse/function_call", ParseFunctionCall(gateway), methods=["POST"]),
                Route("/parse/reasoning", ParseReasoning(gateway), methods=["POST"]),
                Route("/health", live, methods=["GET"]),
                Route("/live", live, methods=["GET"]),
                Route("/ready", Ready(gateway), methods=["GET"]),
                Route("/metrics", Metrics(gateway), methods=["GET"]),
                Route("/openapi.json", OpenApi(gateway), methods=["GET"]),
                Route("/admin/workers", AdminWorkers(gateway), methods=["GET", "POST"]),
                Route("/admin/workers/{name:path}", AdminWorker(gateway), methods=["GET", "PATCH", "DELETE"]),
                Route("/admin/pools", AdminPools(gateway), methods=["GET", "PATCH"]),
                *(Route(path, NotHere()) for path in unavailable.PATHS),
            ],
            redirect_slashes=False,
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        # The router raises its 404 and 405, instead of writing a text of its own, for a scope that names its app.
        scope["app"] = self
        record = scope["record"] = new_record(scope)
        scope["key"] = quota = None
        try:
            key = scope["key"] = check_access(scope, self._gateway.keys)
            if key is not None:
                record.key = key.name
                if key.quota is not None:
                    key.quota.begin()
                    quota = key.quota
            if record.asked_seconds or self._gateway.config.request_seconds:
                set_deadline(record, self._gateway.config.request_seconds)
            await self._router(scope, receive, send)
        except Exception as error:  # the door: whatever happened, the client gets an answer and the log its line
            record.error = as_gateway_error(error, scope["path"])
            if not isinstance(record.error, ClientLeft):
                await send_error(scope, send, record.error)
        finally:
            finish(record, scope)
            record.error = None  # its traceback knows this frame, and that the record: a cycle for the collector
            if quota is not None:
                quota.end()
            if record.body_bytes:
                self._gateway.body_memory.give(record.body_bytes)

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[dict[str, HttpLoop]]:
        """Runs once on each loop, and makes what that loop owns."""
        budgets = {name: RetryBudget(self._gateway.config.retry_budget) for name in self._gateway.models}
        budgets |= {adapter.name: budgets[adapter.parent] for adapter in self._gateway.adapters.values()}
        cells, outbox = self._gateway.registry.cells(), self._gateway.engine.outbox()
        loop = HttpLoop(cells, outbox, budgets)
        self._gateway.loops.append(loop)
        yield {"loop": loop}


def finish(record: RequestRecord, scope: Scope) -> None:
    """Count a request and log its line."""
    now = time.monotonic()
    if record.error is not None and record.status in (0, 200):
        # Nothing was sent, or the error came after the first byte: what happened counts, not what the client saw.
        record.status = record.error.status
    count(record, scope["state"]["loop"].cells, now)
    if scope["path"].startswith("/admin/") and (scope["method"] not in ("GET", "HEAD") or record.status in (401, 403)):
        log.audit(f"{scope['method']} {scope['path']} {record.status}", **audit_fields(record, scope))
    level = logging.INFO if record.model else logging.DEBUG
    if log.logger.isEnabledFor(level):
        log.event(level, f"{scope['method']} {scope['path']} {record.status}", **log_fields(record, now))


def count(record: RequestRecord, cells: Cells, now: float) -> None:
    model = (record.model,)
    cells.add(REQUESTS, (record.model, str(record.status)))
    if record.key:
        cells.add(KEY_REQUESTS, (record.key, str(record.status)))
    if record.error is not None and record.error.status in REFUSALS:
        cells.add(REFUSED, (record.error.code or record.error.type,))
    if not record.routed:
        return
    cells.add(PROMPT_TOKENS, model, record.prompt_tokens)
    cells.add(CACHED_TOKENS, model, record.cached_tokens)
    cells.add(COMPLETION_TOKENS, model, record.completion_tokens)
    cells.observe(DURATION, model, now - record.received)
    for stage, seconds in stages(record).items():
        cells.observe(STAGE, (record.model, stage), seconds)
    if record.first_token:
        cells.observe(FIRST_TOKEN, model, record.first_token - record.received)
        if record.completion_tokens > 1:
            cells.observe(INTER_TOKEN, model, (record.last_token - record.first_token) / (record.completion_tokens - 1))


def log_fields(record: RequestRecord, now: float) -> dict[str, Any]:
    """The outcome is "ok", or the error's code."""
    error = record.error
    fields: dict[str, Any] = {"id": record.request_id, "ms": milliseconds(record.received, now), "key": record.key}
    fields["outcome"] = "ok" if error is None else error.code or error.type
    if record.admission_seconds:
        fields["admission_ms"] = round(record.admission_seconds * 1000, 1)
    if record.model:
        fields |= {"model": record.model, "worker": record.worker, "prompt_tokens": record.prompt_tokens}
        fields |= {"completion_tokens": record.completion_tokens}
    if record.first_token:
        fields["first_token_ms"] = milliseconds(record.received, record.first_token)
    if error is not None:
        fields["error"] = error.message
    return fields


def audit_fields(record: RequestRecord, scope: Scope) -> dict[str, Any]:
    """Who wanted what of an admin endpoint."""
    query = scope["query_string"].decode("latin-1")
    admin = "nobody" if record.status in (401, 403) else record.key or "this machine"
    who = {"admin": admin, "client": scope["client"][0]}
    return {"id": record.request_id, **who, "query": query, "change": record.change}


def milliseconds(start: float, end: float) -> float:
    return round((end - start) * 1000, 1)


def new_record(scope: Scope) -> RequestRecord:
    """With the client's x-request-id if it is fit to print, else a new one."""
    record = RequestRecord("", received=time.monotonic())
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if text.isascii() and text.isprintable() and 0 < len(text) <= MAX_REQUEST_ID:
                record.request_id = text
        elif name == b"x-routing-key":
            record.routing_key = value[:MAX_ROUTING_KEY].decode("latin-1")
        elif name == b"x-request-timeout":
            record.asked_seconds = value.decode("latin-1")
        elif name == b"x-priority":
            record.priority = value.decode("latin-1")
        elif name == b"x-server-timing":
            record.wants_timing = value == b"end"
    record.request_id = record.request_id or os.urandom(16).hex()
    return record


def set_deadline(record: RequestRecord, most_seconds: float) -> None:
    """The client's, and no later than `most_seconds` allow, if that is not 0; raises BadRequest."""
    seconds, record.limited_by = most_seconds, "--request-seconds"
    if record.asked_seconds:
        try:
            asked = float(record.asked_seconds)
        except ValueError:
            asked = 0.0
        if not 0 < asked <= LONGEST_SECONDS:
            raise BadRequest(
                f"x-request-timeout must be seconds, above 0 and at most {LONGEST_SECONDS}, "
                f"not {record.asked_seconds!r}",
                param=TIMEOUT_HEADER,
            )
        if not seconds or asked < seconds:
            seconds, record.limited_by = asked, TIMEOUT_HEADER
    record.ends_at = record.received + seconds


def as_gateway_error(error: Exception, path: str) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == MethodNotAllowed.status:
            return MethodNotAllowed(f"{path}: {error.detail}", (error.headers or {}).get("Allow", ""))
        return NotFound(f"{path}: {error.detail}")
    log.logger.error("an error nobody expected", exc_info=error)
    return GatewayError("internal error; the gateway's log has the details")
