"""Heads of requests: what we take, h11 takes too and understands alike; what smuggles, we refuse."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http1.head import MAX_HEADERS, Head, Malformed, parse_head

LINE = b"POST /v1/chat/completions HTTP/1.1"
HOST = b"Host: here"


def head(*lines: bytes, line: bytes = LINE, host: bytes = HOST) -> Head:
    return parse_head(b"\r\n".join((line, host, *lines)))


def test_a_head_is_its_fields() -> None:
    assert head(b"Content-Length: 12", b"X-Odd:\t a  b \t") == Head(
        method="POST",
        target=b"/v1/chat/completions",
        version="1.1",
        headers=[(b"host", b"here"), (b"content-length", b"12"), (b"x-odd", b"a  b")],
        length=12,
        keeps_alive=True,
        expects_continue=False,
    )


def test_without_a_length_there_is_no_body() -> None:
    assert head().length == 0
    assert head(b"Transfer-Encoding: Chunked").length is None


@pytest.mark.parametrize(
    ("lines", "keeps_alive"),
    [
        ([], True),
        ([b"Connection: close"], False),
        ([b"Connection: Close"], False),
        ([b"Connection: keep-alive, close"], False),
        ([b"Connection: keep-alive", b"Connection: close"], False),
        ([b"Connection: disclose"], True),
    ],
)
def test_a_connection_is_kept_unless_its_client_says_otherwise(lines: list[bytes], keeps_alive: bool) -> None:
    assert head(*lines).keeps_alive is keeps_alive


def test_before_http_1_1_nothing_is_kept_and_a_host_is_not_needed() -> None:
    old = parse_head(b"GET / HTTP/1.0\r\nConnection: keep-alive")

    assert (old.version, old.keeps_alive) == ("1.0", False)


def test_a_client_may_wait_to_be_told_to_go_on() -> None:
    assert head(b"Expect: 100-Continue").expects_continue
    assert not parse_head(b"POST / HTTP/1.0\r\nExpect: 100-continue").expects_continue


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://here/v1/models", b"/v1/models"),
        (b"HTTPS://here:443/v1/models?a=b", b"/v1/models?a=b"),
        (b"http://here", b"/"),
        (b"http://here?a", b"/?a"),
        (b"/v1/models", b"/v1/models"),
        (b"//odd", b"//odd"),
    ],
)
def test_a_target_may_name_the_host(target: bytes, path: bytes) -> None:
    assert head(line=b"GET %b HTTP/1.1" % target).target == path


def test_options_may_ask_of_the_whole_server() -> None:
    assert head(line=b"OPTIONS * HTTP/1.1").target == b"*"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"", 400),
        (b"GET", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"G\xe9T / HTTP/1.1", 400),
        (b"GET /\xc3\xa9 HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET here/ HTTP/1.1", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / http/1.1", 400),
        (b"GET / FTP/1.1", 400),
    ],
)
def test_a_bad_request_line_is_refused(line: bytes, status: int) -> None:
    with pytest.raises(Malformed) as refusal:
        head(line=line)
    assert refusal.value.status == status


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"no colon"], 400),
        ([b": no name"], 400),
        ([b"Name : blank before the colon"], 400),
        ([b" Leading: blank"], 400),
        ([b"X: 1", b" folded: line"], 400),
        ([b"X: 1", b"\tfolded"], 400),
        ([b"X: a\nY: b"], 400),
        ([b"X: a\rY: b"], 400),
        ([b"X: a\x00b"], 400),
        ([b"X: \x7f"], 400),
        ([b"X\x00: a"], 400),
        ([b"Host: there"], 400),
        ([b"Content-Length: 1", b"Content-Length: 2"], 400),
        ([b"Content-Length: 1", b"Content-Length: 1"], 400),
        ([b"Content-Length: 1, 1"], 400),
        ([b"Content-Length: +1"], 400),
        ([b"Content-Length: -1"], 400),
        ([b"Content-Length: 0x1"], 400),
        ([b"Content-Length: 1_0"], 400),
        ([b"Content-Length: 1.0"], 400),
        ([b"Content-Length:"], 400),
        ([b"Content-Length: " + b"9" * 16], 400),
        ([b"Content-Length: \xc2\xb2"], 400),
        ([b"Content-Length: 1", b"Transfer-Encoding: chunked"], 400),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 400),
        ([b"Transfer-Encoding: gzip"], 501),
        ([b"Transfer-Encoding: gzip, chunked"], 501),
        ([b"Transfer-Encoding: chunked, identity"], 501),
        ([b"Transfer-Encoding: \x0bchunked"], 400),
        ([b"Transfer-Encoding: xchunked"], 501),
        ([b"X: 1"] * MAX_HEADERS, 431),
    ],
)
def test_what_two_servers_might_read_differently_is_refused(lines: list[bytes], status: int) -> None:
    with pytest.raises(Malformed) as refusal:
        head(*lines)
    assert refusal.value.status == status


def test_a_host_is_needed_and_chunks_came_with_1_1() -> None:
    with pytest.raises(Malformed):
        parse_head(b"GET / HTTP/1.1")
    with pytest.raises(Malformed):
        parse_head(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked")


PIECES = st.sampled_from(
    [b"GET", b"POST", b" ", b"/", b"/a?b", b"http://h/x", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b":"]
    + [b"Host", b"Content-Length", b"Transfer-Encoding", b"chunked", b"5", b"+5", b"5,5", b"\t", b"\x00", b"x", b"\xff"]
)
WORDS = st.lists(PIECES, min_size=1, max_size=14).map(b"".join)
SANE = st.tuples(
    st.sampled_from([b"GET / HTTP/1.1", b"POST /a?b=c HTTP/1.1", b"GET / HTTP/1.0"]),
    st.lists(st.one_of(st.sampled_from([HOST, b"Content-Length: 3", b"A: b", b"Transfer-Encoding: chunked"]), WORDS)),
).map(lambda parts: b"\r\n".join((parts[0], *parts[1])))


@settings(max_examples=400)
@given(data=st.one_of(SANE, WORDS))
def test_what_we_take_h11_takes_too_and_understands_alike(data: bytes) -> None:
    try:
        ours = parse_head(data)
    except Malformed:
        return
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(data + b"\r\n\r\n")
    theirs = peer.next_event()

    assert isinstance(theirs, h11.Request)
    assert (theirs.method.decode(), theirs.http_version.decode()) == (ours.method, ours.version)
    assert theirs.target.endswith(ours.target) or ours.target.startswith(b"/")
    assert [(name, value) for name, value in theirs.headers] == ours.headers
