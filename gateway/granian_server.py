"""HTTP on one event loop by granian, whose HTTP is Rust: `--server granian`, with the extra of that name installed.

Threads: `serve` runs on its caller's loop, as does every request; granian has a thread of its own for the sockets.
"""

import asyncio
import socket
from typing import Any

from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.server.embed import Server

BACKLOG = 4096
MAX_IN_FLIGHT = 16384
"""Requests at once on one loop; granian's own default is its backlog of 128, with which 256 connections hung."""


class Listener(Server):
    """granian's embeddable server, on a socket of ours."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGI,
            backlog=BACKLOG,
            backpressure=MAX_IN_FLIGHT,
            websockets=False,
            log_enabled=False,
        )
        listener.setblocking(False)
        self._listener = listener

    def _init_shared_socket(self) -> None:
        # The stubs know neither this constructor nor that the attribute is one.
        self._shd = SocketHolder(self._listener.detach(), False, BACKLOG)  # type: ignore[call-arg,assignment]


async def serve(app: Any, listener: socket.socket, stopping: asyncio.Event) -> None:
    """Serve `app` on `listener` until `stopping` is set, then until the last open connection ends.

    The ASGI lifespan runs once around it.
    """
    server = Listener(app, listener)
    serving = asyncio.create_task(server.serve())
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    server.stop()  # type: ignore[no-untyped-call]
    await serving
