"""The official OpenAI client against a real gateway."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT, Gateway, Process, Simulator, environment, eventually, wait_until_idle

QUESTION = [{"role": "user", "content": "Tell me about the sea."}]


class OpenAiClient(Process):
    """The client's process; one command at a time."""

    def __init__(self, python: Path) -> None:
        # The gateway's PYTHON_GIL would stop an interpreter that has a GIL.
        super().__init__([python, ROOT / "tests/openai_client.py"], environment(PYTHON_GIL=None))
        self._answered = 0

    def call(self, gateway: Gateway, method: str, take: int | None = None, **arguments: Any) -> Any:
        """What the client returns, as plain data; raises ApiError for what it raises."""
        command = {"base_url": gateway.url, "method": method, "take": take, "arguments": arguments}
        self.write(json.dumps(command))
        answer = self._next_answer()
        if "error" in answer:
            raise ApiError(answer["error"])
        return answer["result"]

    def chat(self, gateway: Gateway, **arguments: Any) -> Any:
        return self.call(gateway, "chat.completions.create", **{"model": "demo", "messages": QUESTION} | arguments)

    def _next_answer(self) -> dict[str, Any]:
        self._answered += 1
        lines = eventually(lambda: self.lines("", "stdout")[self._answered - 1 :] or not self.is_running)
        assert isinstance(lines, list), self.output
        answer: dict[str, Any] = json.loads(lines[0])
        return answer


class ApiError(Exception):
    """An error of the client: its class and fields."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.fields = fields


@pytest.fixture(scope="session")
def client(tools_python: Path) -> Iterator[OpenAiClient]:
    with OpenAiClient(tools_python) as client:
        yield client


def content_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"]["content"] or "" for chunk in chunks for choice in chunk["choices"])


def test_the_client_gets_a_whole_answer(client: OpenAiClient, gateway: Gateway) -> None:
    answer = client.chat(gateway)

    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "demo"
    assert answer["id"].startswith("chatcmpl-")
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) > 100
    assert choice["finish_reason"] == "stop"


def test_a_streamed_answer_is_the_whole_one_in_pieces(client: OpenAiClient, gateway: Gateway) -> None:
    whole = client.chat(gateway)
    chunks = client.chat(gateway, stream=True)

    assert content_of(chunks) == whole["choices"][0]["message"]["content"]
    assert len(chunks) > 2
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


def test_usage_comes_last_when_it_is_asked_for(client: OpenAiClient, gateway: Gateway) -> None:
    whole = client.chat(gateway)
    *chunks, last = client.chat(gateway, stream=True, stream_options={"include_usage": True})

    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    usage = last["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_without_include_usage_no_chunk_has_any(client: OpenAiClient, gateway: Gateway) -> None:
    chunks = client.chat(gateway, stream=True)

    assert all(chunk["choices"] and chunk.get("usage") is None for chunk in chunks)


def test_max_tokens_ends_an_answer_for_its_length(client: OpenAiClient, gateway: Gateway) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        answer = client.chat(gateway, **{field: 7})

        assert answer["usage"]["completion_tokens"] == 7
        assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_itself(client: OpenAiClient, gateway: Gateway, stream: bool) -> None:
    text = client.chat(gateway)["choices"][0]["message"]["content"]
    stop = text[40:52]

    answer = client.chat(gateway, stop=[stop, "never said by anyone"], stream=stream)

    said = content_of(answer) if stream else answer["choices"][0]["message"]["content"]
    reason = answer[-1]["choices"][0]["finish_reason"] if stream else answer["choices"][0]["finish_reason"]
    assert said == text[: text.index(stop)]
    assert reason == "stop"


def test_a_seed_repeats_an_answer_and_another_seed_gives_another(client: OpenAiClient, gateway: Gateway) -> None:
    def answer(seed: int) -> str:
        text: str = client.chat(gateway, seed=seed, temperature=1)["choices"][0]["message"]["content"]
        return text

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(6)}) > 1


def test_a_greedy_answer_does_not_depend_on_the_seed(client: OpenAiClient, gateway: Gateway) -> None:
    texts = {
        client.chat(gateway, seed=seed, temperature=0, top_p=0.5)["choices"][0]["message"]["content"]
        for seed in range(6)
    }

    assert len(texts) == 1


def test_a_bad_field_raises_bad_request_with_its_path(client: OpenAiClient, gateway: Gateway) -> None:
    messages = [*QUESTION, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]

    with pytest.raises(ApiError) as caught:
        client.chat(gateway, messages=messages)

    assert caught.value.fields["class"] == "BadRequestError"
    assert caught.value.fields["status_code"] == 400
    assert caught.value.fields["param"] == "messages[1].content[0].image_url"
    assert caught.value.fields["type"] == "invalid_request_error"


def test_a_prompt_beyond_the_context_raises_bad_request_with_its_code(client: OpenAiClient, gateway: Gateway) -> None:
    with pytest.raises(ApiError) as caught:
        client.chat(gateway, max_tokens=100_000, stream=True)

    assert caught.value.fields["class"] == "BadRequestError"
    assert caught.value.fields["code"] == "context_length_exceeded"


def test_an_unknown_model_raises_not_found(client: OpenAiClient, gateway: Gateway) -> None:
    with pytest.raises(ApiError) as caught:
        client.chat(gateway, model="gpt-1")

    assert caught.value.fields["class"] == "NotFoundError"
    assert caught.value.fields["code"] == "model_not_found"
    assert caught.value.fields["param"] == "model"


def test_the_models_are_listed(client: OpenAiClient, gateway: Gateway) -> None:
    (model,) = client.call(gateway, "models.list")["data"]

    assert model["id"] == "demo"
    assert model["object"] == "model"


def test_closing_a_stream_early_frees_the_executor(client: OpenAiClient, slow_gateway: Gateway) -> None:
    chunks = client.chat(slow_gateway, stream=True, take=3)

    assert len(chunks) == 3
    wait_until_idle(slow_gateway)
    assert slow_gateway.metric("gateway_requests_total", status="499") > 0


TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
SCRIPT = [
    {
        "contains": "weather",
        "steps": [
            "<think>",
            "Sunny?",
            "</think>",
            "I will look.",
            "\n<tool_call>\n",
            '{"name": "get_weather", ',
            '"arguments": {"city": "K\u00f6ln"}}\n</tool_call>',
        ],
    }
]


@pytest.fixture(scope="module")
def tool_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose executor thinks, and calls a tool when it is asked about the weather."""
    path = tmp_path_factory.mktemp("script") / "script.json"
    path.write_text(json.dumps(SCRIPT))
    with (
        Simulator("--speed", "0", "--output", f"script:{path}") as simulator,
        Gateway(workers=[simulator.url]) as gateway,
    ):
        yield gateway.wait_until_ready()


def test_a_tool_is_called_whole_and_streamed(client: OpenAiClient, tool_gateway: Gateway) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "The weather?"}], "tools": TOOLS}

    (choice,) = client.chat(tool_gateway, **asked)["choices"]
    chunks = client.chat(tool_gateway, stream=True, **asked)

    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Köln"})
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "I will look.\n"
    assert choice["message"]["reasoning_content"] == "Sunny?"
    deltas = [each["delta"] for chunk in chunks for each in chunk["choices"]]
    parts = [part for delta in deltas for part in delta["tool_calls"] or ()]
    assert parts[0]["function"]["name"] == "get_weather" and parts[0]["id"]
    assert json.loads("".join(part["function"]["arguments"] for part in parts)) == {"city": "Köln"}
    assert "".join(delta["content"] or "" for delta in deltas) == "I will look.\n"
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_to_a_tool_goes_on(client: OpenAiClient, tool_gateway: Gateway) -> None:
    messages = [
        {"role": "user", "content": "The forecast?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]

    (choice,) = client.chat(tool_gateway, messages=messages, tools=TOOLS, max_tokens=5)["choices"]

    assert choice["message"]["role"] == "assistant"
