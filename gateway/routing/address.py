"""Worker URLs: `step://host:port?model=NAME&role=any&weight=1`, one parser for all schemes."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from engine_adapters.base import EngineInfo

SCHEMES = ("step", "trtllm", "openengine")
ROLES = ("any", "prefill", "decode")
WHOLE_ONLY = ("trtllm",)
"""Schemes of wires that cannot carry what a prefill hands over to a decode."""
MAX_WEIGHT = 1000.0


class AddressError(ValueError):
    """A worker URL that makes no sense; the message names it and says what is expected."""


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker is and what the operator says of it. `model` None: ask the engine. `tls`: where --worker-ca is
    given."""

    scheme: str
    host: str
    port: int
    model: str | None = None
    role: str = "any"
    weight: float = 1.0
    tls: bool = True

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises AddressError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise AddressError(f"worker {url!r}: {error}") from error
        if parts.scheme not in SCHEMES:
            raise AddressError(
                f"worker {url!r}: the scheme must be one of {', '.join(SCHEMES)}, as in step://host:port"
            )
        if not parts.hostname or not port or parts.path.strip("/") or parts.username or parts.fragment:
            raise AddressError(
                f"worker {url!r}: expected {parts.scheme}://host:port?model=NAME&role=ROLE&weight=NUMBER"
            )
        options = _options(url, parts.query)
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port,
            model=options.get("model"),
            role=_role(url, parts.scheme, options.get("role", "any")),
            weight=_weight(url, options.get("weight", "1")),
            tls=_tls(url, options.get("tls", "true")),
        )

    @property
    def target(self) -> str:
        """host:port, as gRPC wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.target}"


def role_problem(role: str, info: EngineInfo) -> str:
    """Why a worker with this engine cannot have a role; empty when it can."""
    if role == "any":
        return ""
    if "disaggregation" not in info.features:
        return (
            f"its role is {role!r}, but its engine ({info.engine}) hands nothing over between prefill and decode: set "
            "the engine up for disaggregation, or leave the worker's role away"
        )
    if info.role not in ("", role):
        return f"it is to have the role {role!r}, and its engine serves {info.role!r} only"
    return ""


def _options(url: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise AddressError(f"worker {url!r}: {error}") from error
    options = dict(pairs)
    unknown = options.keys() - {"model", "role", "weight", "tls"}
    if unknown or len(options) != len(pairs) or "" in options.values():
        raise AddressError(f"worker {url!r}: options are model, role, weight and tls, each at most once and not empty")
    return options


def _role(url: str, scheme: str, role: str) -> str:
    if role not in ROLES:
        raise AddressError(f"worker {url!r}: role must be one of {', '.join(ROLES)}")
    if role != "any" and scheme in WHOLE_ONLY:
        others = " or ".join(f"{each}://" for each in SCHEMES if each not in WHOLE_ONLY)
        raise AddressError(
            f"worker {url!r}: {scheme}:// cannot carry what a prefill hands over to a decode, so its workers have no "
            f"role; reach the engine by {others}, or leave role away"
        )
    return role


def _weight(url: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= MAX_WEIGHT:
        raise AddressError(f"worker {url!r}: weight must be a number above 0 and at most {MAX_WEIGHT:g}")
    return weight


def _tls(url: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise AddressError(f"worker {url!r}: tls must be true or false")
    return text == "true"
