"""A request's way through the limits: its model, its tokens, its place among those that are answered.

Threads: made and used on the HTTP loop of its request.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from gateway.api.reply import Scope
from gateway.errors import BadRequest, Forbidden
from gateway.gateway import Gateway
from gateway.limits import DEFAULT, PRIORITIES, ApiKey, no_better_than
from gateway.metrics import ADMISSION_WAIT, KEY_TOKENS


class Ticket:
    """Make it before the body is read: it raises Overloaded when there is no hope, and BadRequest. Then `async with` it
    for the work.

    `cost` tells how many tokens the request may take at most; it is only asked where that matters.
    """

    __slots__ = ("_gateway", "_has_place", "_key", "_priority", "_reserved", "_scope", "cost")

    def __init__(self, gateway: Gateway, scope: Scope) -> None:
        self._gateway = gateway
        self._scope = scope
        self._key: ApiKey | None = scope["key"]
        self._reserved = 0
        self._has_place = False
        self.cost: Callable[[], int] = nothing
        self._priority = priority_of(scope["record"].priority, self._key)
        if gateway.admission.limit:
            gateway.admission.refuse_if_hopeless(self._who, self._priority)

    async def __aenter__(self) -> Self:
        """Raises Forbidden, RateLimited, Overloaded, QueueTimeout."""
        key, record = self._key, self._scope["record"]
        if key is not None:
            if not key.may_use(record.model):
                raise Forbidden(f"this key may not use the model {record.model!r}", param="model")
            if key.quota is not None:
                self._reserved = key.quota.reserve(self.cost())
        admission = self._gateway.admission
        if admission.limit:
            try:
                record.admission_seconds = await admission.enter(self._who, self._priority)
            except BaseException:
                self._settle()
                raise
            self._has_place = True
            cells = self._scope["state"]["loop"].cells
            cells.observe(ADMISSION_WAIT, (self._priority,), record.admission_seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_place:
            self._gateway.admission.leave()
        self._settle()

    def _settle(self) -> None:
        key, record = self._key, self._scope["record"]
        if key is None:
            return
        used = record.prompt_tokens + record.completion_tokens if record.routed else 0
        if used:
            self._scope["state"]["loop"].cells.add(KEY_TOKENS, (key.name,), used)
        if key.quota is not None:
            key.quota.settle(self._reserved, used)

    @property
    def _who(self) -> str:
        """Whose requests take turns: a key's, or an address's where there are no keys."""
        return self._key.name if self._key is not None else str(self._scope["client"][0])


def nothing() -> int:
    return 0


def priority_of(asked: str | None, key: ApiKey | None) -> str:
    """The class that the client asks for, or that its key has; raises BadRequest."""
    if asked is None:
        return DEFAULT if key is None else key.priority
    if asked not in PRIORITIES:
        raise BadRequest(f"x-priority must be one of {', '.join(PRIORITIES)}", param="x-priority")
    return asked if key is None else no_better_than(key.priority, asked)
