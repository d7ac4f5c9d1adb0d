"""What the gateway says of itself: /health, /live, /ready, /metrics, /v1/models."""

import time
from typing import Any

from gateway.api.reply import Scope, Send, send_body, send_json
from gateway.gateway import Gateway
from gateway.http_loop import Receive
from gateway.model import Model
from gateway.parsers.detect import Choice

STARTED = int(time.time())


class Live:
    """200 while the process works; 503 once a thread of it has died and it is about to end."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure = self._gateway.supervisor.failure
        await send_json(scope, send, {"status": failure or "ok"}, 503 if failure else 200)


class Ready:
    """200 while every model has a ready worker and nothing is ending; else 503 with the reasons."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reasons = unready(self._gateway)
        body = {"status": "unready" if reasons else "ready", "reasons": reasons, "workers": workers(self._gateway)}
        await send_json(scope, send, body, 503 if reasons else 200)


class Metrics:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = self._gateway.registry.exposition()
        await send_body(scope, send, text.encode(), b"text/plain; version=0.0.4; charset=utf-8")


class Models:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        key, names = scope["key"], {**gateway.models, **gateway.adapters, **gateway.aliases}
        models = [
            self._describe(name, model) for name, model in names.items() if key is None or key.may_use(model.name)
        ]
        await send_json(scope, send, {"object": "list", "data": models})

    def _describe(self, name: str, model: Model) -> dict[str, Any]:
        """OpenAI's fields, and what was detected."""
        states = [state for state in self._gateway.router.snapshot().values() if state.model == model.served_by]
        infos = [state.info for state in states if state.info is not None]
        described = {
            "id": name,
            "object": "model",
            "created": STARTED,
            "owned_by": "gateway",
            "max_model_len": model.context_length,
            "vocab_size": model.tokenizer.vocab_size,
            "engines": sorted({f"{info.engine} {info.engine_version}".strip() for info in infos}),
            "tool_parser": describe(model.formats.calls),
            "reasoning_parser": describe(model.formats.reasoning),
            "features": sorted(frozenset.intersection(*(info.features for info in infos)) if infos else ()),
        }
        if name != model.name:
            described |= {"root": model.name}
        return described | {"root": model.parent, "parent": model.parent} if model.parent else described


def describe(choice: Choice[Any]) -> dict[str, str]:
    return {"name": choice.name, "why": choice.why}


def unready(gateway: Gateway) -> list[str]:
    """Why the gateway should get no requests now."""
    reasons = []
    if gateway.supervisor.failure is not None:
        reasons.append(gateway.supervisor.failure)
    elif gateway.supervisor.ending:
        reasons.append("shutting down")
    return reasons + [reason for name in gateway.models if (reason := gateway.router.unready(name))]


def workers(gateway: Gateway) -> list[dict[str, Any]]:
    router = gateway.router
    return [
        {
            "name": worker.name,
            "state": state.state,
            "reason": state.reason,
            "model": state.model,
            "role": state.role,
            "weight": router.weight(worker),
            "labels": router.labels(worker),
            "breaker": breaker.state if (breaker := router.breaker(worker)) else "off",
            "in_flight": router.in_flight(worker),
        }
        for worker, state in router.snapshot().items()
    ]
