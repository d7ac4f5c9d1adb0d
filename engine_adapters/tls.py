"""TLS between gateways and engines, as either side is told by its command line.

The files are read when a connection is made: new ones count from the next connection on.
"""

import argparse
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio


class WorkerTlsError(ValueError):
    """Files that cannot be used; the message names the option."""


@dataclass(frozen=True)
class WorkerTls:
    """The gateway's side: whom it trusts, and its own certificate, if engines want one."""

    ca: str
    certificate: str = ""
    key: str = ""

    @classmethod
    def of(cls, ca: str, certificate: str, key: str) -> "WorkerTls | None":
        """From --worker-ca, --worker-cert and --worker-key; None without TLS. Raises WorkerTlsError."""
        if bool(certificate) != bool(key):
            raise WorkerTlsError("--worker-cert and --worker-key belong together: give both, or none")
        if certificate and not ca:
            raise WorkerTlsError("--worker-cert needs a --worker-ca: which authority vouches for the workers")
        if not ca:
            return None
        tls = cls(ca, certificate, key)
        tls.context()
        return tls

    def context(self) -> ssl.SSLContext:
        """For HTTP/2 over asyncio. Raises WorkerTlsError."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise WorkerTlsError(f"--worker-ca {self.ca} cannot be used: {error}") from error
        try:
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except OSError as error:
            raise WorkerTlsError(f"--worker-cert and --worker-key cannot be used: {error}") from error
        # As gRPC has it: authorities of one's own seldom have all that newer Pythons want to see.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols(["h2"])
        return context

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For grpc. Raises OSError."""
        if not self.certificate:
            return grpc.ssl_channel_credentials(Path(self.ca).read_bytes())
        return grpc.ssl_channel_credentials(
            Path(self.ca).read_bytes(), Path(self.key).read_bytes(), Path(self.certificate).read_bytes()
        )


@dataclass(frozen=True)
class ServerTls:
    """The engine's side: its certificate, and the authority of the gateways that may ask, "" for any gateway."""

    certificate: str
    key: str
    client_ca: str = ""

    @classmethod
    def of(cls, options: argparse.Namespace) -> "ServerTls | None":
        """From the options of `add_server_options`; None without TLS. Raises WorkerTlsError."""
        certificate, key, client_ca = options.tls_cert, options.tls_key, options.tls_client_ca
        if bool(certificate) != bool(key) or (client_ca and not certificate):
            raise WorkerTlsError("--tls-cert and --tls-key belong together, and --tls-client-ca needs both")
        return cls(certificate, key, client_ca) if certificate else None

    def credentials(self) -> grpc.ServerCredentials:
        """Raises OSError."""
        pair = Path(self.key).read_bytes(), Path(self.certificate).read_bytes()
        ca = Path(self.client_ca).read_bytes() if self.client_ca else None
        return grpc.ssl_server_credentials([pair], ca, ca is not None)


def _no_password() -> str:
    raise WorkerTlsError("the key is encrypted, and nobody is here to be asked: give it without a passphrase")


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The engine's side."""
    parser.add_argument(
        "--tls-cert", default="", metavar="FILE", help="serve TLS with this certificate and its chain (PEM)"
    )
    parser.add_argument("--tls-key", default="", metavar="FILE", help="the key of --tls-cert (PEM)")
    parser.add_argument(
        "--tls-client-ca",
        default="",
        metavar="FILE",
        help="serve only gateways whose certificate is from this authority (PEM)",
    )


def bind(server: grpc.aio.Server, host: str, port: int, tls: "ServerTls | None") -> int:
    """Have `server` listen; returns its port. Raises OSError."""
    try:
        if tls is None:
            return server.add_insecure_port(f"{host}:{port}")
        return server.add_secure_port(f"{host}:{port}", tls.credentials())
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host} port {port}: it is taken, or not ours to take") from error
