"""API keys: who a request comes from, and what that one may do.

Keys are kept as their SHA-256. A plain hash is enough because keys are random and long (`gateway key` makes them of 256
bits): there is nothing to guess, so nothing that a slow hash would make dearer.

    [[key]]
    name = "team-a"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    requests_per_minute = 600
    tokens_per_minute = 100000
    concurrency = 32
    priority = "high"            # the best class that it may ask for, and gets if it asks for none
    models = ["llama"]           # all of them, if left out
    admin = false                # true: it opens /admin, and nothing else

Threads: HTTP loops look keys up in a table that is replaced whole by the reloading thread.
"""

import hashlib
import hmac
import logging
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway import log
from gateway.limits.priority import DEFAULT, PRIORITIES
from gateway.limits.quota import Limits, Quota

DIGEST = re.compile("[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
NAME_RULE = "must be 1 to 64 letters, digits, or any of _ . @ -, and begin with no sign"
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")
FIELDS: Mapping[str, type] = {
    "name": str,
    "sha256": str,
    **dict.fromkeys(LIMITS, int),
    "priority": str,
    "models": list,
    "admin": bool,
}


class KeyFileError(ValueError):
    """The file cannot be read or makes no sense; the message says where and how, and shows no hash."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`models` None: all. `quota` None: no limits."""

    name: str
    digest: str
    priority: str = DEFAULT
    models: frozenset[str] | None = None
    is_admin: bool = False
    limits: Limits = Limits()
    quota: Quota | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class Keys:
    """Those of the command line, which have no limits, and those of `path`, of which each has a quota that outlives
    changes of the file. Raises KeyFileError."""

    def __init__(
        self, plain: Iterable[str] = (), admin: str = "", path: Path | None = None, models: Iterable[str] = ()
    ) -> None:
        fixed = [ApiKey(f"api-key-{number}", digest_of(key.encode())) for number, key in enumerate(plain, 1)]
        if admin:
            fixed.append(ApiKey("admin", digest_of(admin.encode()), is_admin=True))
        self._fixed = {key.digest: key for key in fixed}
        self.are_needed = path is not None or any(not key.is_admin for key in fixed)
        """Whether /v1 is closed without one."""
        self._models = frozenset(models)
        self._quotas: dict[str, Quota] = {}
        self._table = self._fixed
        if path is not None:
            self.read(path)

    @property
    def have_admin(self) -> bool:
        return any(key.is_admin for key in self._table.values())

    def active(self) -> list[tuple[str, int]]:
        """(name, requests at a time) of keys with limits."""
        return [(name, quota.active) for name, quota in self._quotas.copy().items()]

    def find(self, token: bytes) -> ApiKey | None:
        """The key that a client has shown.

        Where a look-up stops tells of the hash of what was shown, of which nobody can choose the beginning; and what it
        finds is compared in constant time.
        """
        digest, table = digest_of(token), self._table
        if digest not in table:
            return None
        key = table[digest]
        return key if hmac.compare_digest(digest, key.digest) else None

    def read(self, path: Path) -> int:
        """Take what the file says now, and return how many keys that are; raises KeyFileError and changes nothing."""
        keys = read(path, self._models)
        table = dict(self._fixed)
        for key in keys:
            if key.digest in table:
                raise KeyFileError(f"{path}: key {key.name!r} has the hash of another one")
            table[key.digest] = self._with_quota(key)
        self._table = table
        return len(keys)

    def _with_quota(self, key: ApiKey) -> ApiKey:
        quota = self._quotas.get(key.name)
        if quota is None:
            if key.limits == Limits():
                return key
            quota = self._quotas[key.name] = Quota(key.limits)
        quota.set_limits(key.limits)
        return ApiKey(key.name, key.digest, key.priority, key.models, key.is_admin, key.limits, quota)


class KeyFile:
    """Follows the file of `keys`."""

    def __init__(self, keys: Keys, path: Path) -> None:
        self._keys = keys
        self.paths: tuple[Path, ...] = (path,)

    def reload(self) -> None:
        """When the file has changed. What makes no sense is told, and the keys stay as they are."""
        try:
            path = self.paths[0]
            log.event(logging.INFO, f"read {path} again", keys=self._keys.read(path))
        except KeyFileError as error:
            log.event(logging.ERROR, f"the API keys stay as they are: {error}")


def digest_of(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


def read(path: Path, models: frozenset[str]) -> list[ApiKey]:
    """The keys of a file; raises KeyFileError."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise KeyFileError(f"{path} is not valid TOML: {error}") from error
    listed = values.get("key", [])
    if not isinstance(listed, list) or set(values) - {"key"}:
        raise KeyFileError(f"{path} must have a list of [[key]] and nothing else")
    keys = [read_key(value, f"{path}: key[{index}]", models) for index, value in enumerate(listed)]
    names = [key.name for key in keys]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise KeyFileError(f"{path}: key[{index}]: there is a key {name!r} already")
    return keys


def read_key(value: Any, place: str, models: frozenset[str]) -> ApiKey:
    if not isinstance(value, dict) or not {"name", "sha256"} <= value.keys():
        raise KeyFileError(f"{place} must have a name and a sha256; `gateway key NAME` makes both")
    for field, item in value.items():
        if field not in FIELDS or type(item) is not FIELDS[field]:
            kinds = ", ".join(f"{name} ({kind.__name__})" for name, kind in FIELDS.items())
            raise KeyFileError(f"{place} has a field {field} of the wrong kind; there is {kinds}")
    check_key(value, place, models)
    return ApiKey(
        name=value["name"],
        digest=value["sha256"].lower(),
        priority=value.get("priority", DEFAULT),
        models=frozenset(value["models"]) if "models" in value else None,
        is_admin=value.get("admin", False),
        limits=Limits(*(value.get(name, 0) for name in LIMITS)),
    )


def check_key(value: Mapping[str, Any], place: str, models: frozenset[str]) -> None:
    if not NAME.fullmatch(value["name"]):
        raise KeyFileError(f"{place}.name {NAME_RULE}")
    if not DIGEST.fullmatch(value["sha256"].lower()):
        raise KeyFileError(f"{place}.sha256 must be the 64 hexadecimal digits that `gateway key` prints, not the key")
    if value.get("priority", DEFAULT) not in PRIORITIES:
        raise KeyFileError(f"{place}.priority must be one of {', '.join(PRIORITIES)}")
    for name in LIMITS:
        if value.get(name, 0) < 0:
            raise KeyFileError(f"{place}.{name} must not be below 0, which is no limit")
    for model in value.get("models", ()):
        if model not in models:
            served = ", ".join(map(repr, sorted(models)))
            raise KeyFileError(f"{place}.models names {model!r}, which is not served here; there is {served}")
