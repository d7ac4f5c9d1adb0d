"""What the load asks for and what the gateway answers, so that the bare app can answer the same."""

import json
import random
from http.client import HTTPConnection
from typing import Any

from engine_adapters.simulator.outputs import TEXTS

CHAT_PATH = "/v1/chat/completions"
WORD = " the"
"""Every token of every answer, so that tokens can be counted in whatever event they come."""
WARM_TOKENS = 10
"""Of each stream, before measuring begins."""
SHORT_PROMPT = "Tell me about the sea, and keep it short."
NUMBER = "00000000"
"""In a long prompt, what the load replaces to make each one unlike the others."""
PROMPT_WORDS = 8000


def long_prompt() -> str:
    """PROMPT_WORDS words of the simulator's texts, shuffled, behind NUMBER."""
    words = " ".join(path.read_text("utf-8") for path in sorted(TEXTS.glob("*.txt"))).split()
    return f"{NUMBER} {' '.join(random.Random(1).choices(words, k=PROMPT_WORDS))}"


def http_request(path: str, *, stream: bool, max_tokens: int, model: str = "demo", prompt: str = SHORT_PROMPT) -> str:
    """The whole request, as it goes over the wire; the same body whatever the path."""
    body = json.dumps(chat_body(stream, max_tokens, model, prompt))
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
