"""Images from where their URLs say: https, and files in a directory that is allowed. Data URLs are the vision pool's.

Whoever sends a request chooses these URLs, so they must not reach what only this machine can: every connection goes to
an address that was looked up once, checked, and then connected to, also behind a redirect.

Threads: a `Fetcher` belongs to one HTTP loop, and so do its connections.
"""

import asyncio
import functools
import ipaddress
import logging
import os
import socket
import ssl
import stat
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import certifi
import httpcore

from gateway import log
from gateway.config import Config
from gateway.errors import BadImage

REDIRECTS = 5
MOVED = (301, 302, 303, 307, 308)
CONNECTIONS = 64
IDLE_SECONDS = 30.0
READ_BYTES = 1 << 18
NAT64 = ipaddress.ip_network("64:ff9b::/96")

type Address = ipaddress.IPv4Address | ipaddress.IPv6Address
type Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be fetched. `domains`: only from these and what is below them, unless there are none. `networks` are
    allowed although their addresses are not public."""

    bytes: int
    seconds: float
    allows_http: bool = False
    domains: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    directory: Path | None = None

    @classmethod
    def of(cls, config: Config) -> "Limits":
        return cls(
            bytes=config.image_mb << 20,
            seconds=config.image_seconds,
            allows_http=config.image_http,
            domains=tuple(domain.lower().strip(".") for domain in config.image_domain),
            networks=tuple(map(ipaddress.ip_network, config.image_network)),
            directory=Path(config.image_directory).resolve() if config.image_directory else None,
        )


class AddressRefused(Exception):
    """A host that must not be reached; the message says why."""


class PinnedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to nothing but addresses it has checked itself: there is no second look-up that could say otherwise."""

    def __init__(self, networks: tuple[Network, ...]) -> None:
        self._networks = networks
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's interface)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises AddressRefused, and httpcore's ConnectError."""
        problem: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self._addresses(host, port):
            try:
                return await self._inner.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except httpcore.ConnectError as error:
                problem = error
        raise problem

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """A host's addresses; one that is not public makes all of them suspect."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be found: {error.strerror or error}") from error
        addresses = [ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]
        for address in addresses:
            if not is_public(address) and not any(address in network for network in self._networks):
                log.event(logging.WARNING, "an image's host is not public", host=host, address=str(address))
                # Without the address: nobody is to look up names of our network here.
                raise AddressRefused(f"{host} is not at a public address (--image-network)")
        return list(dict.fromkeys(addresses))


def is_public(address: Address) -> bool:
    """Whether anybody may know what is there; of an IPv6 address that stands for an IPv4 one, whether that is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast


@functools.cache
def trusted() -> ssl.SSLContext:
    """Whose certificates count: the system's authorities (or SSL_CERT_FILE's) and Mozilla's. Takes some 20 ms."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class Fetcher:
    """Fetches within `limits`; connections are kept and used again."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            ssl_context=trusted(),
            network_backend=PinnedNetwork(limits.networks),
        )

    async def fetch(self, url: str, path: str) -> bytes:
        """Raises BadImage, naming the field at `path`."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._follow(url, path)
        except TimeoutError:
            refuse(path, f"was not there within {self._limits.seconds:g} s (--image-seconds)", "timeout")
        except AddressRefused as error:
            refuse(path, f"may not be fetched: {error}", "address")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            refuse(path, f"cannot be fetched: {str(error) or type(error).__name__}", "fetch")

    async def _follow(self, url: str, path: str) -> bytes:
        for _ in range(REDIRECTS + 1):
            target = self._checked(url, path)
            async with self._pool.stream("GET", target, headers=HEADERS) as response:
                if response.status not in MOVED:
                    return await self._read(response, path)
                headers = {name.lower(): value for name, value in response.headers}
                url = urllib.parse.urljoin(url, headers.get(b"location", b"").decode("latin-1"))
        refuse(path, f"was redirected more than {REDIRECTS} times", "fetch")

    def _checked(self, url: str, path: str) -> str:
        """The URL in ASCII, if it is one that may be fetched."""
        try:
            parts = urllib.parse.urlsplit(url)
            host = (parts.hostname or "").encode("idna").decode("ascii").rstrip(".")
            _ = parts.port
        except ValueError as error:
            refuse(path, f"is no URL: {error}", "url")
        schemes = ("https", "http") if self._limits.allows_http else ("https",)
        if parts.scheme.lower() not in schemes or not host:
            refuse(path, f"must be a data or {' or '.join(schemes)} URL, or base64", "url")
        domains = self._limits.domains
        if domains and not any(host == domain or host.endswith(f".{domain}") for domain in domains):
            refuse(path, f"is at {host}, and images may come from {', '.join(domains)} only", "address")
        place = f"[{host}]" if ":" in host else host
        place += f":{parts.port}" if parts.port else ""
        query = f"?{urllib.parse.quote(parts.query, safe=QUERY_SAFE)}" if parts.query else ""
        return f"{parts.scheme.lower()}://{place}{urllib.parse.quote(parts.path or '/', safe=PATH_SAFE)}{query}"

    async def _read(self, response: httpcore.Response, path: str) -> bytes:
        if response.status != 200:
            refuse(path, f"cannot be fetched: its server answered {response.status}", "fetch")
        data = bytearray()
        async for part in response.aiter_stream():
            data += part
            if len(data) > self._limits.bytes:
                refuse_size(path, self._limits.bytes)
        return bytes(data)


HEADERS = [("user-agent", "nogil-gateway"), ("accept", "image/*,*/*;q=0.5"), ("accept-encoding", "identity")]
PATH_SAFE = "/%:@!$&'()*+,;=~-._"
QUERY_SAFE = PATH_SAFE + "?"


def read_file(url: str, path: str, limits: Limits) -> bytes:
    """A file: URL's content. Raises BadImage, also for what is not in the directory that is allowed. Blocks."""
    if limits.directory is None:
        refuse(path, "is a file, and no directory is allowed (--image-directory)", "address")
    parts = urllib.parse.urlsplit(url)
    name = urllib.parse.unquote(parts.path)
    try:
        file = Path(name).resolve()
        if parts.netloc not in ("", "localhost") or not file.is_relative_to(limits.directory):
            refuse(path, "is not in the directory that is allowed (--image-directory)", "address")
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode):
                refuse(path, "is no regular file", "address")
            if found.st_size > limits.bytes:
                refuse_size(path, limits.bytes)
            return opened.read(limits.bytes)
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be read: {getattr(error, 'strerror', None) or error}", "fetch")


def refuse(path: str, why: str, reason: str) -> NoReturn:
    raise BadImage(f"{path} {why}", reason=reason, param=path)


def refuse_size(path: str, limit: int) -> NoReturn:
    refuse(path, f"is larger than {limit >> 20} MiB (--image-mb)", "too_large")
