"""Certificates for a test: an authority of its own and what that vouches for, made by openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

SUBJECT = "subjectAltName=DNS:localhost,IP:127.0.0.1"
CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
"""Openssl's own has extensions that it would add."""


@dataclass(frozen=True)
class Pair:
    """PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Its own certificate is `ca`; all its files are in `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        make(
            self._pair, f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign"
        )

    @property
    def ca(self) -> Path:
        return self._pair.certificate

    def issue(self, name: str) -> Pair:
        """A certificate for this machine, and as a client."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        make(pair, f"/CN={name}", "-addext", SUBJECT, "-CA", self._pair.certificate, "-CAkey", self._pair.key)
        return pair


def make(pair: Pair, subject: str, *options: str | Path) -> None:
    config = pair.key.with_name("openssl.cnf")
    config.write_text(CONFIG)
    command: list[str | Path] = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-config",
        config,
        "-nodes",
        "-days",
        "2",
        "-subj",
        subject,
        "-keyout",
        pair.key,
        "-out",
        pair.certificate,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
