"""TLS to the engines, as the gateway is told by its command line.

The files are read when a connection is made: new ones count from the next connection on.
"""

import ssl
from dataclasses import dataclass


class WorkerTlsError(ValueError):
    """Files that cannot be used; the message names the option."""


@dataclass(frozen=True)
class WorkerTls:
    """Whom the gateway trusts, and its own certificate, if engines want one."""

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
        """Raises WorkerTlsError."""
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


def _no_password() -> str:
    raise WorkerTlsError("the key is encrypted, and nobody is here to be asked: give it without a passphrase")
