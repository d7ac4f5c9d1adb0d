"""TLS for the HTTP servers, from a certificate and a key that may change while they run.

Threads: each HTTP loop asks for a context of its own; the reloading thread has each loop load the new certificate, so
that no context is changed while another thread shakes hands with it. Connections keep what they began with.
"""

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

from gateway import log

HANDSHAKE_SECONDS = 10.0
"""How long a client may take over its handshake."""


class TlsError(ValueError):
    """A certificate or key that cannot be used; the message says why."""


class ServerTls:
    """TLS 1.2 and later. Raises TlsError when the files cannot be used now; later, what was loaded goes on to count."""

    def __init__(self, certificate: str, key: str) -> None:
        self.paths: tuple[Path, ...] = (Path(certificate), Path(key))
        self._lock = threading.Lock()
        self._contexts: list[tuple[asyncio.AbstractEventLoop, ssl.SSLContext]] = []
        self._context(("h2", "http/1.1"))

    def context(self, protocols: Sequence[str]) -> ssl.SSLContext:
        """For the loop that calls; `protocols` are ALPN's, the best first."""
        context = self._context(protocols)
        with self._lock:
            self._contexts.append((asyncio.get_running_loop(), context))
        return context

    def reload(self) -> None:
        """When a file has changed. Until both fit each other the former ones count."""
        try:
            self._context(())
        except TlsError as error:
            log.event(logging.ERROR, f"the TLS certificate stays as it is: {error}")
            return
        with self._lock:
            contexts = list(self._contexts)
        for loop, context in contexts:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._load_again, context)
        log.event(logging.INFO, f"read {self.paths[0]} again")

    def _context(self, protocols: Sequence[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if protocols:
            context.set_alpn_protocols(protocols)
        self._load(context)
        return context

    def _load_again(self, context: ssl.SSLContext) -> None:
        try:
            self._load(context)
        except TlsError as error:  # they changed once more; then they are read again
            log.event(logging.ERROR, str(error))

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self.paths
        try:
            context.load_cert_chain(certificate, key, password=no_password)
        except OSError as error:  # SSLError is one
            raise TlsError(f"{certificate} and {key} are no certificate and its key: {reason_of(error)}") from error


def no_password() -> str:
    """Instead of OpenSSL's prompt on the terminal."""
    raise TlsError("the key is encrypted, and nobody is here to be asked: give it without a passphrase")


def reason_of(error: OSError) -> str:
    return str(error.strerror or error) if not isinstance(error, ssl.SSLError) else error.reason or str(error)
