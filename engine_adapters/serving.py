"""What engines' gRPC servers have in common: their one service, where it listens, and with what TLS.

The files of TLS are read when the server begins to listen.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from engine_adapters.tls import WorkerTlsError


def service_of(methods: "Mapping[str, grpc.RpcMethodHandler[Any, Any]]") -> grpc.GenericRpcHandler:
    """The one service whose methods have paths such as "/package.Service/Method"."""
    service = next(iter(methods)).split("/")[1]
    return grpc.method_handlers_generic_handler(
        service, {path.split("/")[-1]: handler for path, handler in methods.items()}
    )


@dataclass(frozen=True)
class ServerTls:
    """An engine's certificate, and the authority of the gateways that may ask, "" for any gateway."""

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


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """For ServerTls.of."""
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
