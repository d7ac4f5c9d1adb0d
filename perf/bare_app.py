"""A bare ASGI app on the gateway's HTTP server: the same writes as the gateway's, without its work.

hypercorn is as it comes, with the gateway's settings; granian has the gateway's adapter, since its own ASGI loses
requests.

A yardstick: it tells how much of a figure is the server's, the event loop's, the kernel's and the machine's noise.

Threads: one, as `--http-threads 1` has it.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config

from gateway.config import Config
from gateway.server import SERVERS, listen, serve_with
from perf.stamps import StampFile

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Pace:
    """The steps of one loop's streams."""

    def __init__(self, seconds: float, stamps: StampFile) -> None:
        self._seconds = seconds
        self._stamps = stamps
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []
        if seconds:
            self._step(self._loop.time())

    async def next_step(self) -> None:
        if self._seconds:
            future = self._loop.create_future()
            self._waiting.append(future)
            await future

    def _step(self, due: float) -> None:
        waiting, self._waiting = self._waiting, []
        self._stamps.note(len(waiting))
        for future in waiting:
            future.set_result(None)
        due = max(due + self._seconds, self._loop.time())
        self._loop.call_at(due, self._step, due)


class BareApp:
    """`/events` writes `event` once a step for `tokens` steps, then `end`; `/reply` writes `reply`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._tokens: int = options.tokens
        self._event: bytes = options.event.encode()
        self._end: bytes = options.end.encode()
        self._reply: bytes = options.reply.encode()
        self._step_seconds: float = options.step_ms / 1000
        self._stamps = StampFile(options.stamps)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        while (await receive()).get("more_body", False):
            pass
        if scope["path"] == "/events":
            await self._write_events(scope["state"]["pace"], send)
        else:
            await self._write_reply(send)

    async def _live(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        scope["state"]["pace"] = Pace(self._step_seconds, self._stamps)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _write_events(self, pace: Pace, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(self._tokens):
            await pace.next_step()
            await send({"type": "http.response.body", "body": self._event, "more_body": True})
        await send({"type": "http.response.body", "body": self._end, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _write_reply(self, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self._reply)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._reply})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf.bare_app", description=__doc__)
    parser.add_argument("--stamps", type=Path, required=True)
    parser.add_argument("--server", choices=SERVERS, default="hypercorn")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--step-ms", type=float, default=0.0, help="0 writes without waiting")
    parser.add_argument("--event", default="")
    parser.add_argument("--end", default="")
    parser.add_argument("--reply", default="")
    options = parser.parse_args()
    listener = listen(Config(port=0))
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    app = BareApp(options)
    if options.server == "hypercorn":
        asyncio.run(hypercorn.asyncio.serve(app, settings(listener.detach())))  # type: ignore[arg-type]
    else:
        asyncio.run(serve_with(options.server)(app, listener, asyncio.Event()))  # type: ignore[arg-type]


def settings(listener: int) -> hypercorn.config.Config:
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener}"]
    config.backlog = 4096
    config.keep_alive_timeout = 75
    config.keep_alive_max_requests = sys.maxsize
    config.include_server_header = False
    config.errorlog = None
    return config


if __name__ == "__main__":
    main()
