"""A web server of images for tests, on loopback: its paths say what it does."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.processes import PATIENCE


class ImageHost:
    """`/image`, `/large`, `/slow`, `/missing`; `/to?URL` redirects. `connections` counts those made."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.asked: Counter[str] = Counter()
        self.connections = 0
        self.released = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                host.connections += 1
                super().setup()

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                host.asked[path] += 1
                if path == "/to":
                    self.answer(302, b"", location=query)
                elif path == "/missing":
                    self.answer(404, b"")
                elif path == "/slow":
                    host.released.wait(PATIENCE)
                elif path == "/large":
                    self.answer(200, bytes(2 << 20))
                else:
                    self.answer(200, host.image)

            def answer(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in ({"content-length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        return f"http://localhost:{self._server.server_port}{path}"
