"""What the load asks for and what the gateway answers, so that the bare app can answer the same."""

import base64
import json
import pydoc_data.topics
import random
import shutil
import sysconfig
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from engine_adapters.simulator.outputs import TEXTS
from gateway.model import DEMO_FOLDER

CHAT_PATH = "/v1/chat/completions"
WORD = " the"
"""Every token of every answer, so that tokens can be counted in whatever event they come."""
WARM_TOKENS = 10
"""Of each stream, before measuring begins."""
CHARACTERS_PER_TOKEN = 3.85
"""Of the corpus, with the demo model's tokenizer."""
CONTEXT_LENGTH = 262_144
SHORT_PROMPT = "Tell me about the sea, and keep it short."


@cache
def corpus() -> str:
    """English, code and some of everything else, in pieces of a few thousand characters; what every Python has."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text("utf-8", errors="ignore") for path in sources] + list(pydoc_data.topics.topics.values())
    other = "".join(path.read_text("utf-8") for path in sorted(TEXTS.glob("*.txt")))
    pieces = [text[start : start + 3000] for text in texts for start in range(0, len(text), 3000)]
    pieces += [other[start : start + 3000] for start in range(0, len(other), 3000)]
    random.Random(0).shuffle(pieces)
    return "\n".join(pieces)


@cache
def documents(count: int, tokens: int) -> tuple[str, ...]:
    """So many texts of about so many tokens, no two with a line in common worth caching: once the corpus has been used
    up, its words come in another order."""
    size, text = int(tokens * CHARACTERS_PER_TOKEN), corpus()
    found = []
    for number in range(count):
        start, turn = number * size % (len(text) - size), number * size // (len(text) - size)
        piece = text[start : start + size]
        if turn:
            words = piece.split(" ")
            piece = " ".join(word for begin in range(turn + 1) for word in words[begin :: turn + 1])
        found.append(f"{number} {piece}")
    return tuple(found)


def long_requests(count: int, tokens: int, model: str = "wide") -> list[str]:
    """One-token chats with a prompt of its own each."""
    return [
        http_request(CHAT_PATH, stream=True, max_tokens=1, model=model, prompt=text)
        for text in documents(count, tokens)
    ]


def tool_requests(count: int, tools: int, *, model: str = "wide") -> list[str]:
    """One-token chats with so many tools, whose schemas are large and no two alike."""
    dice, words = random.Random(2), corpus()[:200_000].split()

    def schema() -> dict[str, Any]:
        named = {f"p{number}": " ".join(dice.choices(words, k=30)) for number in range(12)}
        properties = {name: {"type": "string", "description": text} for name, text in named.items()}
        return {"type": "object", "properties": properties, "required": ["p0", "p1"]}

    requests = []
    for _ in range(count):
        functions = [
            {"name": f"tool_{dice.getrandbits(32):08x}", "description": " ".join(dice.choices(words, k=40))}
            for _ in range(tools)
        ]
        listed = [{"type": "function", "function": {**each, "parameters": schema()}} for each in functions]
        requests.append(http_post(CHAT_PATH, {**chat_body(True, 1, model), "tools": listed}))
    return requests


def image_requests(count: int, width: int, height: int, *, model: str = "wide") -> list[str]:
    """One-token chats, each with a JPEG that no other has."""
    from perf.images_worker import photo  # not above: nothing else here needs numpy and Pillow

    picture = photo(width, height)
    # What stands behind the end of the file no decoder looks at; in groups of three bytes base64 can be continued.
    begun = base64.b64encode(picture + bytes(-len(picture) % 3)).decode()
    requests = []
    for number in range(count):
        url = f"data:image/jpeg;base64,{begun}{base64.b64encode(number.to_bytes(9)).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        body = chat_body(True, 1, model) | {"messages": [{"role": "user", "content": parts}]}
        requests.append(http_post(CHAT_PATH, body))
    return requests


def vision_model(folder: Path) -> Path:
    """The tests' model for images, with room for large ones."""
    from tests.vision_model import make_vision_model  # not above: it loads tokenizers, which warns while the GIL is on

    return make_vision_model(folder, max_pixels=1 << 24)


def wide_model(folder: Path) -> Path:
    """The demo model, with a context that holds long prompts."""
    shutil.copytree(DEMO_FOLDER, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": CONTEXT_LENGTH}))
    return folder


def http_request(path: str, *, stream: bool, max_tokens: int, model: str = "demo", prompt: str = SHORT_PROMPT) -> str:
    """The whole request, as it goes over the wire; the same body whatever the path."""
    return http_post(path, chat_body(stream, max_tokens, model, prompt))


def http_post(path: str, content: dict[str, Any]) -> str:
    body = json.dumps(content)
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\nuser-agent: perf\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    )


def chat_body(stream: bool, max_tokens: int, model: str = "demo", prompt: str = SHORT_PROMPT) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "stream": stream, "max_tokens": max_tokens, "temperature": 0}


def bare_events(port: int) -> list[str]:
    """Options that make the bare app write the gateway's events: one text, and the end with [DONE]."""
    events = gateway_answer(port, stream=True).split("\n\n")
    _, text, end, done, _ = events
    return ["--event", f"{text}\n\n", "--end", f"{end}\n\n{done}\n\n"]


def bare_reply(port: int) -> list[str]:
    return ["--reply", gateway_answer(port, stream=False)]


def gateway_answer(port: int, *, stream: bool) -> str:
    """The body of a one-token answer; raises RuntimeError when it is an error."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", CHAT_PATH, json.dumps(chat_body(stream, 1)))
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"the gateway answered {response.status}: {body}")
    return body
