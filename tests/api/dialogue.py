"""A chat request and what a fake executor says to it, streamed or whole."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from engine_adapters.base import FinishReason
from engine_adapters.step import messages
from tests import chat
from tests.api.answers import end
from tests.demo_model import TOKENIZER
from tests.executor import FakeExecutor
from tests.processes import Gateway

PATH = "/v1/chat/completions"


class Conversation:
    """One request, and what the executor says to it."""

    def __init__(self, executor: FakeExecutor, gateway: Gateway, background: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._gateway = gateway
        self._background = background

    def ask(self, said: str, reason: FinishReason = FinishReason.STOP, size: int = 1, **fields: Any) -> dict[str, Any]:
        """The answer's first choice and usage when the executor says `said`, `size` tokens at a time."""
        response, _ = self.exchange(said, reason, size, **fields)
        assert response.status_code == 200, response.text
        if not fields.get("stream"):
            body = response.json()
            return {**body["choices"][0], "usage": body["usage"]}
        return folded(events_of(response))

    def exchange(
        self, said: str, reason: FinishReason = FinishReason.STOP, size: int = 1, **fields: Any
    ) -> tuple[httpx.Response, messages.Submit]:
        request = chat.body(**fields)
        future = self._background.submit(self._gateway.client.post, PATH, json=request)
        submit = self._executor.next_submit()
        token_ids = TOKENIZER.encode(said, add_special_tokens=False).ids
        for start in range(0, len(token_ids), size):
            self._executor.say(submit, *token_ids[start : start + size])
        end(self._executor, submit, reason=reason)
        return future.result(), submit


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    blocks = [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]
    return [json.loads(block) for block in blocks if block != "[DONE]"]


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream as the whole reply would be."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    calls: list[dict[str, Any]] = []
    reason = None
    for event in events:
        assert "error" not in event, event
        for choice in event["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            if "reasoning_content" in delta:
                message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
            for part in delta.get("tool_calls", ()):
                if part["index"] == len(calls):
                    assert part["id"] and part["type"] == "function" and part["function"]["name"]
                    calls.append({"id": part["id"], "type": "function", "function": dict(part["function"])})
                else:
                    assert set(part) == {"index", "function"} and set(part["function"]) == {"arguments"}
                    calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    if calls:
        message |= {"tool_calls": calls, "content": message["content"] or None}
    return {"message": message, "finish_reason": reason, "usage": events[-1].get("usage")}


def called(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = choice["message"].get("tool_calls", ())
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
