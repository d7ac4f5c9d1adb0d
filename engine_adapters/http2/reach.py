"""How a gateway's clients come to their connections."""

import asyncio

from engine_adapters.base import EngineLost
from engine_adapters.http2.connection import Connection, connect
from engine_adapters.tls import WorkerTls, WorkerTlsError


async def reach(address: str, tls: "WorkerTls | None", seconds: float) -> Connection:
    """A connection to the engine at `address` ("host:port"); raises EngineLost when there is none after `seconds`."""
    try:
        return await asyncio.wait_for(connect(address, None if tls is None else tls.context()), seconds)
    except (OSError, WorkerTlsError, asyncio.TimeoutError) as error:
        raise EngineLost(f"{address} cannot be reached: {error or 'no connection in time'}") from error
