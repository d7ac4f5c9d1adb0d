"""Who may ask: API keys for /v1, and the admin key or this very machine for /admin."""

import hmac
import ipaddress
from collections.abc import Iterable

from gateway.api.reply import Scope
from gateway.config import Config
from gateway.errors import Forbidden, Unauthorized


def check_access(scope: Scope, config: Config) -> None:
    """Raises Unauthorized or Forbidden."""
    path: str = scope["path"]
    if path.startswith(("/v1/", "/parse/")) and config.api_key:
        if not is_one_of(bearer_token(scope), config.api_key):
            raise Unauthorized("a valid API key is needed: authorization: Bearer KEY")
    elif path.startswith("/admin/"):
        check_admin(scope, config)


def check_admin(scope: Scope, config: Config) -> None:
    if config.admin_key:
        if not is_one_of(bearer_token(scope), (config.admin_key,)):
            raise Unauthorized("the admin key is needed: authorization: Bearer KEY")
    elif not ipaddress.ip_address(scope["client"][0]).is_loopback:
        raise Forbidden("without an --admin-key, /admin answers this machine only")


def bearer_token(scope: Scope) -> bytes:
    """The token of the authorization header, empty when there is none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return bytes(token.strip()) if scheme.lower() == b"bearer" else b""
    return b""


def is_one_of(token: bytes, keys: Iterable[str]) -> bool:
    """Compares with every key, each in constant time, so that neither a match's place nor its length shows."""
    matches = [hmac.compare_digest(token, key.encode()) for key in keys]
    return any(matches)
