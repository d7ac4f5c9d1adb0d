"""/admin: what an operator may change while the gateway runs."""

from typing import Any

from gateway.api.body import Fields, read_json
from gateway.api.reply import Scope, Send, json_text, send_json
from gateway.gateway import Gateway
from gateway.http_loop import Receive
from gateway.pools import Pool

MAX_THREADS = 256
MAX_CHANGE = 1000
"""Characters of a change that the log repeats."""


async def read_change(scope: Scope, receive: Receive, gateway: Gateway) -> Fields:
    """`read_json`, noted for the log."""
    fields = await read_json(scope, receive, gateway)
    scope["record"].change = json_text(fields.values)[:MAX_CHANGE]
    return fields


class AdminPools:
    """GET the CPU pools; PATCH `{"tokenize": {"threads": 4}}`, or `{"minimum": 1, "maximum": 8}` to let a pool follow
    its queue."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pools = {pool.name: pool for pool in (gateway.tokenize,)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "PATCH":
            self._resize(await read_change(scope, receive, self._gateway))
        await send_json(scope, send, {name: state_of(pool) for name, pool in self._pools.items()})

    def _resize(self, fields: Fields) -> None:
        """All or nothing: every change is checked before the first is made."""
        for name in fields.values:
            if name not in self._pools:
                fields.refuse(name, f"is no pool; there is {', '.join(self._pools)}")
        sizes = {name: read_size(fields.object(name)) for name in fields.values}
        for name, (minimum, maximum) in sizes.items():
            self._pools[name].set_bounds(minimum, maximum)


def read_size(fields: Fields) -> tuple[int, int]:
    """(minimum, maximum), equal for a fixed number of threads."""
    threads = fields.integer("threads", 1, MAX_THREADS)
    if threads is not None:
        return threads, threads
    minimum, maximum = fields.integer("minimum", 1, MAX_THREADS), fields.integer("maximum", 1, MAX_THREADS)
    if minimum is None or maximum is None:
        fields.refuse("threads", "is required, unless there are minimum and maximum")
    if minimum > maximum:
        fields.refuse("minimum", "must not be above maximum")
    return minimum, maximum


def state_of(pool: Pool) -> dict[str, Any]:
    minimum, maximum = pool.bounds
    return {
        "threads": pool.threads,
        "minimum": minimum,
        "maximum": maximum,
        "waiting": pool.depth,
        "oldest_wait_seconds": round(pool.oldest_wait(), 3),
    }
