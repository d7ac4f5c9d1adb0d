"""Chat requests over plain HTTP, and what comes back, taken apart."""

import json
import socket
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

import httpx

from tests.processes import PATIENCE, Gateway

DONE = "[DONE]"


def body(content: str = "Hello!", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion with one user message."""
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **fields}


def complete(gateway: Gateway, content: str = "Hello!", **fields: Any) -> dict[str, Any]:
    """The whole answer to one message."""
    response = gateway.client.post("/v1/chat/completions", json=body(content, **fields))
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def stream(gateway: Gateway, content: str = "Hello!", **fields: Any) -> list[dict[str, Any]]:
    """All chunks of a streamed answer that ended as it should."""
    with opened(gateway, content, **fields) as events:
        *chunks, end = events
    assert end == DONE
    return chunks


@contextmanager
def opened(gateway: Gateway, content: str = "Hello!", **fields: Any) -> Iterator[Iterator[Any]]:
    """The events of a streamed answer as they come: parsed JSON, and DONE as it is."""
    request = body(content, stream=True, **fields)
    with gateway.client.stream("POST", "/v1/chat/completions", json=request) as response:
        if response.status_code != 200:
            response.read()
        assert response.status_code == 200, response.text
        with closing(events_of(response)) as events:
            yield events


def sent(gateway: Gateway, content: str = "Hello!", version: str = "1.1", **fields: Any) -> socket.socket:
    """A bare connection over which the request has been sent, so that a test can leave at any moment."""
    data = json.dumps(body(content, **fields)).encode()
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)
    head = f"POST /v1/chat/completions HTTP/{version}\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def events_of(response: httpx.Response) -> Generator[Any]:
    # Not response.iter_lines(): it also cuts at U+2028 and the like, which JSON need not escape.
    rest = b""
    with closing(cast(Generator[bytes], response.iter_bytes())) as pieces:
        for piece in pieces:
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                if event == b": waiting":
                    continue  # a stream that was quiet for a while
                assert event.startswith(b"data: ") and b"\n" not in event, event
                data = event.removeprefix(b"data: ").decode()
                yield data if data == DONE else json.loads(data)
    assert rest == b""


def text_of(chunks: list[dict[str, Any]]) -> str:
    """The text of a streamed answer."""
    return "".join(piece_of(chunk) for chunk in chunks)


def piece_of(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def finish_reason_of(chunks: list[dict[str, Any]]) -> str | None:
    """The one reason that a streamed answer gives for its end."""
    (reason,) = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    return str(reason)


def first_text(events: Iterator[Any]) -> str:
    """Reads on until there is text."""
    return next(piece for event in events if (piece := piece_of(event)))
