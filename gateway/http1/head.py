"""The head of a request: bytes to checked fields, strictly, since leniency is what request smuggling lives on."""

import re
from dataclasses import dataclass

MAX_HEADERS = 100

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
TARGET = re.compile(rb"[!-~]+")
VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
LENGTH = re.compile(rb"[0-9]{1,15}")
VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")


class Malformed(Exception):
    """A request that cannot be answered in earnest, with the status that says so."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(slots=True)
class Head:
    """`headers` have lower-case names; `length` is the body's, None if it comes in chunks."""

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    length: int | None
    keeps_alive: bool
    expects_continue: bool


def parse_head(data: bytes) -> Head:
    """What stands before the empty line, without the line break in front of that; raises Malformed."""
    line, *lines = data.split(b"\r\n")
    method, target, version = _request_line(line)
    if len(lines) > MAX_HEADERS:
        raise Malformed(431, f"the request has more than {MAX_HEADERS} header lines")
    headers = list(map(_header, lines))
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in fields:
            fields[name] = value
        elif name in (b"host", b"content-length", b"transfer-encoding"):
            raise Malformed(400, f"the request has more than one {name.decode()} header")
        else:
            fields[name] += b"," + value
    if version == "1.1" and b"host" not in fields:
        raise Malformed(400, "the request has no host header")
    return Head(
        method=method,
        target=target,
        version=version,
        headers=headers,
        length=_length(fields, version),
        keeps_alive=version == "1.1" and not _has_word(fields, b"connection", b"close"),
        expects_continue=version == "1.1" and _has_word(fields, b"expect", b"100-continue"),
    )


def _request_line(line: bytes) -> tuple[str, bytes, str]:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if not TOKEN.fullmatch(method) or not TARGET.fullmatch(target):
        raise Malformed(400, "the request line is malformed")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Malformed(505 if VERSION.fullmatch(version) else 400, "the request is not HTTP/1.1")
    if not target.startswith(b"/"):
        target = _origin_form(method, target)
    return method.decode(), target, version[5:].decode()


def _origin_form(method: bytes, target: bytes) -> bytes:
    """A target that names the host too, as proxies send it, without that."""
    if method == b"OPTIONS" and target == b"*":
        return target
    authority = AUTHORITY.match(target)
    if authority is None:
        raise Malformed(400, "the request's target is no path")
    rest = target[authority.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    # A name must not end in blanks, and a line must not continue the one before: both have smuggled requests.
    if not colon or not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
        raise Malformed(400, "the request has a malformed header line")
    return name.lower(), value


def _length(fields: dict[bytes, bytes], version: str) -> int | None:
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or version != "1.1":
            raise Malformed(400, "the request has a transfer-encoding beside a content-length, or before HTTP/1.1")
        if coding.lower() != b"chunked":
            raise Malformed(501, "the request has a transfer-encoding other than chunked")
        return None
    if length is None:
        return 0
    if not LENGTH.fullmatch(length):
        raise Malformed(400, "the request's content-length is no number")
    return int(length)


def _has_word(fields: dict[bytes, bytes], name: bytes, word: bytes) -> bool:
    """Whether a header that is a list has `word` in it."""
    value = fields.get(name)
    return value is not None and any(each.strip(b" \t") == word for each in value.lower().split(b","))
