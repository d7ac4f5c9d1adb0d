"""Who may ask: API keys for /v1 and /parse, and admin keys or this very machine for /admin."""

import ipaddress

from gateway.api.reply import Scope
from gateway.errors import Forbidden, Unauthorized
from gateway.limits import ApiKey, Keys


def check_access(scope: Scope, keys: Keys) -> ApiKey | None:
    """The key that opens the path, None where none is needed; raises Unauthorized or Forbidden."""
    path: str = scope["path"]
    if path.startswith(("/v1/", "/parse/")) and keys.are_needed:
        key = keys.find(bearer_token(scope))
        if key is None or key.is_admin:
            raise Unauthorized("a valid API key is needed: authorization: Bearer KEY")
        return key
    if path.startswith("/admin/"):
        return check_admin(scope, keys)
    return None


def check_admin(scope: Scope, keys: Keys) -> ApiKey | None:
    if keys.have_admin:
        key = keys.find(bearer_token(scope))
        if key is None or not key.is_admin:
            raise Unauthorized("the admin key is needed: authorization: Bearer KEY")
        return key
    if not ipaddress.ip_address(scope["client"][0]).is_loopback:
        raise Forbidden("without an --admin-key, /admin answers this machine only")
    if any(name == b"origin" for name, _ in scope["headers"]):
        # A page of anybody's, in a browser on this machine, is no admin.
        raise Forbidden("without an --admin-key, /admin does not answer web pages")
    return None


def bearer_token(scope: Scope) -> bytes:
    """The token of the authorization header, empty when there is none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return bytes(token.strip()) if scheme.lower() == b"bearer" else b""
    return b""
