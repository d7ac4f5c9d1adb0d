"""The one listening socket, and the TLS on it.

Threads: the main thread, before any server.
"""

import errno
import logging
import resource
import socket

from gateway import log
from gateway.config import Config
from gateway.http_loop import BACKLOG
from gateway.tls import ServerTls


class StartError(Exception):
    """The gateway cannot start; the message says why and what to do."""


def server_tls(config: Config) -> ServerTls | None:
    """Raises TlsError, and StartError when only one of certificate and key is there."""
    if bool(config.tls_cert) != bool(config.tls_key):
        raise StartError("--tls-cert and --tls-key belong together: give both, or none")
    if config.tls_cert and config.server == "granian":
        log.event(logging.WARNING, "granian reads its certificate once: restart the gateway when it has changed")
    return ServerTls(config.tls_cert, config.tls_key) if config.tls_cert else None


def raise_open_files() -> None:
    """Have as many files, and so connections, as the system allows: many shells begin with 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listen(config: Config) -> socket.socket:
    """The one listening socket; raises StartError when the address is taken or not ours.

    Accepted connections inherit its options: no Nagle delay, and an end for peers that acknowledge nothing.
    """
    family, kind, protocol, _, address = resolve(config)
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if config.reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(config.dead_client_seconds * 1000))
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
        # Now, and not by each loop: duplicates share the flag, and making one of a socket that waits sets it for all.
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {config.port} on {config.host} is in use; stop what uses it or choose another with --port"
            ) from error
        raise StartError(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from error
    return listener


type Resolved = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[object, ...]]


def resolve(config: Config) -> Resolved:
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except socket.gaierror as error:
        raise StartError(f"--host {config.host} is not an address: {error.strerror}") from error
    return found[0]
