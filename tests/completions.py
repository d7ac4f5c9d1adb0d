"""Text completions over plain HTTP, and what comes back, taken apart."""

import random
from typing import Any

from tests import chat
from tests.processes import Gateway

PATH = "/v1/completions"


def body(prompt: Any = "Hello", **fields: Any) -> dict[str, Any]:
    """The body of a completion."""
    return {"model": "demo", "prompt": prompt, **fields}


def hard_text(number: int, characters: int) -> str:
    """A text that takes long to tokenize: no cache knows it, nor anything of it."""
    return "".join(random.Random(number).choices("größe 世界🦊.\n", k=characters))


def complete(gateway: Gateway, prompt: Any = "Hello", **fields: Any) -> dict[str, Any]:
    """The whole answer."""
    response = gateway.client.post(PATH, json=body(prompt, **fields))
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def stream(gateway: Gateway, prompt: Any = "Hello", **fields: Any) -> list[dict[str, Any]]:
    """All chunks of a streamed answer that ended as it should."""
    with gateway.client.stream("POST", PATH, json=body(prompt, stream=True, **fields)) as response:
        if response.status_code != 200:
            response.read()
        assert response.status_code == 200, response.text
        *chunks, end = chat.events_of(response)
    assert end == chat.DONE
    return chunks


def ask(gateway: Gateway, streams: bool, prompt: Any = "Hello", **fields: Any) -> Any:
    """The whole answer, or the chunks of a streamed one."""
    return stream(gateway, prompt, **fields) if streams else complete(gateway, prompt, **fields)


def texts_of(answer: dict[str, Any] | list[dict[str, Any]]) -> list[str]:
    """The text of each choice, of a whole answer or of the chunks of a streamed one."""
    texts: dict[int, str] = {}
    for chunk in answer if isinstance(answer, list) else [answer]:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return [texts[index] for index in range(len(texts))]


def finish_reasons_of(answer: dict[str, Any] | list[dict[str, Any]]) -> list[str]:
    """The one reason that each choice gives for its end."""
    reasons: dict[int, str] = {}
    for chunk in answer if isinstance(answer, list) else [answer]:
        for choice in chunk["choices"]:
            if choice["finish_reason"]:
                assert choice["index"] not in reasons
                reasons[choice["index"]] = choice["finish_reason"]
    return [reasons[index] for index in range(len(reasons))]
