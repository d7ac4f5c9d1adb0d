"""Request bodies: bytes to JSON to checked fields, with the path of whatever is wrong."""

import asyncio
import json
import logging
from collections.abc import Callable, Collection, MutableMapping
from typing import Any, NoReturn

from gateway import log
from gateway.config import Config
from gateway.errors import BadRequest, BodyTimeout, BodyTooLarge, ClientLeft, UnsupportedMediaType
from gateway.gateway import Gateway
from gateway.http_loop import READ_NOW, Receive
from gateway.types import RequestRecord

POOL_BYTES = 1_000_000
"""Larger bodies are parsed on the pool: json.loads takes about 5 ms a megabyte, which the loop's other streams feel."""
SMALL_BYTES = 4096
"""A body that is smaller, and here at once, is not counted towards --max-bodies-mb: it is no more than its request."""
MAX_NESTING = 100


async def read_json(scope: MutableMapping[str, Any], receive: Receive, gateway: Gateway) -> "Fields":
    """The body as the fields of a JSON object.

    Raises UnsupportedMediaType, BadRequest, BodyTooLarge, BodyTimeout, Overloaded, ClientLeft.
    """
    content_type = next((value for name, value in scope["headers"] if name == b"content-type"), b"application/json")
    if content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaType(f"content-type must be application/json, not {content_type.decode('latin-1')}")
    extensions, record = scope["extensions"], scope["record"]
    body = extensions[READ_NOW]() if READ_NOW in extensions else None
    if body is None:
        body = await _read_in_time(receive, gateway, record)
    elif len(body) > gateway.config.max_body_mb << 20:
        raise too_large(gateway.config)
    elif len(body) > SMALL_BYTES:
        _hold(len(body), gateway, record)
    if len(body) > POOL_BYTES:
        return await gateway.tokenize.run(parse, body)
    return parse(body)


def _hold(size: int, gateway: Gateway, record: RequestRecord) -> None:
    """Count what is read of a body, until its request is over; raises Overloaded."""
    gateway.body_memory.take(size)
    record.body_bytes += size


async def _read_in_time(receive: Receive, gateway: Gateway, record: RequestRecord) -> bytes:
    config = gateway.config
    seconds, option = config.body_seconds, "--body-seconds"
    if 0 < config.request_seconds < seconds:
        seconds, option = config.request_seconds, "--request-seconds"
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive, gateway, record)
    except TimeoutError:
        raise BodyTimeout(f"the body has not arrived within {seconds:g} s ({option})") from None


async def _read(receive: Receive, gateway: Gateway, record: RequestRecord) -> bytes:
    parts, size, limit = [], 0, gateway.config.max_body_mb << 20
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft("the client left while sending its request")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(gateway.config)
        _hold(len(part), gateway, record)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def too_large(config: Config) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {config.max_body_mb} MiB (--max-body-mb)")


def parse(body: bytes) -> "Fields":
    """Raises BadRequest."""
    try:
        # Decoded here, since json.loads would let UTF-16 and encoded surrogates through.
        text = body.decode()
        value = DECODER.decode(text)
    except RecursionError:
        raise BadRequest(f"the body is nested more than {MAX_NESTING} deep") from None
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    # Only escapes can spell a lone surrogate, only many brackets can nest deeply: most bodies need no search.
    if _may_have_surrogates(text) or _has_many_brackets(text):
        _examine(value, None, 1)
    return Fields(value, "")


class Fields:
    """The fields of one JSON object at `path`. Getters take null for absent and raise BadRequest with the path.

    Neither `dict.get` nor `set.isdisjoint(dict)`: of a large body, which a thread of the pool has parsed, each field
    would take them 40 yields on 3.13t, and a loop that yields to a thread of pixels is back 4 ms later
    (docs/performance.md).
    """

    def __init__(self, values: dict[str, Any], path: str) -> None:
        self.values = values
        self._path = path
        self._read: set[str] = set()

    def value(self, name: str) -> Any:
        """Whatever it is."""
        self._read.add(name)
        return self.values[name] if name in self.values else None

    def has(self, name: str) -> bool:
        return name in self.values and self.values[name] is not None

    def lacks(self, names: tuple[str, ...]) -> bool:
        """Whether none of them is there: most bodies have few of the many fields there are, so whoever reads a group of
        them asks this first. A tuple, since to go through a set locks it for each."""
        return self.values.keys().isdisjoint(names)

    def log_unread(self, accepted: Collection[str]) -> None:
        """Tell the debug log of fields that nobody asked for."""
        if log.logger.isEnabledFor(logging.DEBUG):
            unread = self.values.keys() - self._read - set(accepted)
            if unread:
                names = ", ".join(sorted(map(self.path, unread)))
                log.event(logging.DEBUG, "ignored fields", fields=names)

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def refuse(self, name: str, fault: str) -> NoReturn:
        path = self.path(name)
        raise BadRequest(f"{path} {fault}", param=path)

    def text(self, name: str) -> str:
        """A required, non-empty string."""
        value = self.value(name)
        if value is None:
            self.refuse(name, "is required")
        if not isinstance(value, str) or not value:
            self.refuse(name, "must be a non-empty string")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, "must be a number")
        if not low <= value <= high:
            self.refuse(name, f"must be between {low:g} and {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(name, "must be an integer")
        if not low <= value <= high:
            self.refuse(name, f"must be between {low} and {high}")
        return value

    def object(self, name: str) -> "Fields":
        """The fields of a nested object, none when it is absent."""
        value = self.value(name)
        if value is not None and not isinstance(value, dict):
            self.refuse(name, "must be an object")
        return Fields(value or {}, self.path(name))

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A string or a list of at most `most`, none of them empty."""
        value = self.value(name)
        if value is None:
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or len(values) > most:
            self.refuse(name, f"must be a string or a list of at most {most} strings")
        for index, each in enumerate(values):
            if not isinstance(each, str) or not each:
                self.refuse(f"{name}[{index}]" if values is value else name, "must be a non-empty string")
        return tuple(values)

    def each[Item](self, name: str, read: Callable[["Fields"], Item]) -> list[Item]:
        """`read` of every element of a required, non-empty list of objects."""
        value = self.value(name)
        if value is None:
            self.refuse(name, "is required")
        if not isinstance(value, list) or not value:
            self.refuse(name, "must be a non-empty list")
        items = []
        for index, element in enumerate(value):
            if not isinstance(element, dict):
                self.refuse(f"{name}[{index}]", "must be an object")
            items.append(read(Fields(element, self.path(f"{name}[{index}]"))))
        return items


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""Made once: json.loads with such a wish would make one each time."""


type Place = tuple["Place | None", str]
"""Where a value is: (where its container is, its own part of the path)."""


def _may_have_surrogates(text: str) -> bool:
    # One character is found ten times as fast as two.
    return "\\" in text and "\\u" in text and ("\\ud" in text or "\\uD" in text)


def _has_many_brackets(text: str) -> bool:
    """Whether there are enough of them to nest too deeply. Where few are, `find` is ten times as fast as `count`."""
    found = 0
    for bracket in "[{":
        place = text.find(bracket)
        while place >= 0:
            found += 1
            if found > MAX_NESTING:
                return True
            place = text.find(bracket, place + 1)
    return False


def _examine(value: Any, place: Place | None, depth: int) -> None:
    """Refuse lone surrogates and deep nesting anywhere in `value`."""
    if isinstance(value, str):
        if not value.isascii():
            _refuse_lone_surrogate(value, place)
    elif isinstance(value, dict | list):
        if depth > MAX_NESTING:
            raise BadRequest(f"the body is nested more than {MAX_NESTING} deep", param=_path(place))
        if isinstance(value, dict):
            for name, each in value.items():
                _examine(name, place, depth)
                _examine(each, (place, name), depth + 1)
        else:
            for index, each in enumerate(value):
                _examine(each, (place, f"[{index}]"), depth + 1)


def _refuse_lone_surrogate(text: str, place: Place | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        path = _path(place)
        raise BadRequest(f"{path or 'the body'} holds a lone surrogate, which is not text", param=path) from None


def _path(place: Place | None) -> str | None:
    """messages[2].content, from the inside out."""
    path = ""
    while place is not None:
        place, part = place
        path = part + ("." if path and not path.startswith("[") else "") + path
    return path or None
