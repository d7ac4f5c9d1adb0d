"""/v1/chat/completions through the front door: what it refuses, with which words, and what it still takes."""

import json
from typing import Any

import httpx
import pytest

from tests import chat
from tests.demo_model import CONTEXT_LENGTH, prompt_of
from tests.processes import Gateway

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "Hi"}


def refusal(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of a refused request, which has OpenAI's shape whatever was wrong."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def post_bytes(gateway: Gateway, content: bytes, **headers: str) -> httpx.Response:
    return gateway.client.post(PATH, content=content, headers={"content-type": "application/json", **headers})


BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("model", {"model": None}),
    ("model", {"model": ""}),
    ("model", {"model": 7}),
    ("model", {"model": ["demo"]}),
    ("messages", {"messages": None}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "Hi"}),
    ("messages", {"messages": {"role": "user"}}),
    ("messages[0]", {"messages": ["Hi"]}),
    ("messages[1]", {"messages": [USER, None]}),
    ("messages[0].role", {"messages": [{"content": "Hi"}]}),
    ("messages[0].role", {"messages": [{"role": "robot", "content": "Hi"}]}),
    ("messages[0].role", {"messages": [{"role": 1, "content": "Hi"}]}),
    ("messages[0].content", {"messages": [{"role": "user"}]}),
    ("messages[2].content", {"messages": [USER, USER, {"role": "user", "content": 1}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": {"text": "Hi"}}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": []}]}),
    ("messages[0].content[0]", {"messages": [{"role": "user", "content": ["Hi"]}]}),
    ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}),
    (
        "messages[2].content[1].type",
        {"messages": [USER, USER, {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "image_url"}]}]},
    ),
    ("messages[0].content[0].text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    ("messages[0].content[0].text", {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -1}),
    ("max_tokens", {"max_tokens": 1.5}),
    ("max_tokens", {"max_tokens": "10"}),
    ("max_tokens", {"max_tokens": True}),
    ("max_tokens", {"max_tokens": 10**30}),
    ("max_tokens", {"max_tokens": 0, "max_completion_tokens": 5}),
    ("max_completion_tokens", {"max_completion_tokens": 0}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": 2.1}),
    ("temperature", {"temperature": "hot"}),
    ("temperature", {"temperature": True}),
    ("temperature", {"temperature": 10**400}),
    ("top_p", {"top_p": 1.01}),
    ("top_p", {"top_p": []}),
    ("seed", {"seed": 0.5}),
    ("seed", {"seed": 1 << 63}),
    ("stop", {"stop": 5}),
    ("stop", {"stop": ""}),
    ("stop", {"stop": {"a": 1}}),
    ("stop[1]", {"stop": ["a", ""]}),
    ("stop[0]", {"stop": [None]}),
    ("stop", {"stop": ["a"] * 4097}),
    ("stream", {"stream": "yes"}),
    ("stream", {"stream": 1}),
    ("stream_options", {"stream_options": [], "stream": True}),
    ("stream_options.include_usage", {"stream_options": {"include_usage": "yes"}, "stream": True}),
]


@pytest.mark.parametrize(("param", "fields"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_field_is_refused_with_its_path(gateway: Gateway, param: str, fields: dict[str, Any]) -> None:
    error = refusal(gateway.client.post(PATH, json=chat.body() | fields))

    assert error["param"] == param
    assert error["message"].startswith(param)
    assert error["type"] == "invalid_request_error"


BAD_JSON = {
    "empty": b"",
    "cut off": b'{"model": "demo", "messages": [',
    "not JSON": b"model=demo",
    "two values": b"{}{}",
    "single quotes": b"{'model': 'demo'}",
    "NaN": b'{"model": "demo", "temperature": NaN}',
    "Infinity": b'{"model": "demo", "temperature": -Infinity}',
    "not UTF-8": b'{"model": "d\xe9mo"}',
    "an array": b"[]",
    "a string": b'"demo"',
    "null": b"null",
    "a number too long for an int": b'{"seed": ' + b"9" * 5000 + b"}",
    "100000 brackets": b'{"messages": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_what_is_no_json_object_is_refused(gateway: Gateway, content: bytes) -> None:
    error = refusal(post_bytes(gateway, content))

    assert "body" in error["message"]
    assert error["param"] is None


SURROGATES = {
    "in a content": (rb'{"model":"demo","messages":[{"role":"user","content":"a\ud83d"}]}', "messages[0].content"),
    "in capitals": (rb'{"model":"demo","messages":[{"role":"user","content":"a\uDC00"}]}', "messages[0].content"),
    "in a field nobody reads": (rb'{"model":"demo","user":"\ud800","messages":[]}', "user"),
    "in a list": (rb'{"model":"demo","stop":["ok","\udfff"],"messages":[]}', "stop[1]"),
    "in a key": (rb'{"model":"demo","metadata":{"\ud800":1},"messages":[]}', "metadata"),
    "as bytes": (b'{"model":"demo","messages":[{"role":"user","content":"a\xed\xa0\x80"}]}', "messages[0].content"),
    "in UTF-16": (
        r'{"model":"demo","messages":[{"role":"user","content":"a\ud83d"}]}'.encode("utf-16-le"),
        "messages[0].content",
    ),
}


@pytest.mark.parametrize(("content", "param"), SURROGATES.values(), ids=SURROGATES)
def test_a_lone_surrogate_is_refused(gateway: Gateway, content: bytes, param: str) -> None:
    error = refusal(post_bytes(gateway, content))

    assert error["param"] in (param, None)
    assert "surrogate" in error["message"] or "JSON" in error["message"]


def test_a_pair_of_surrogates_is_a_character(echo_gateway: Gateway) -> None:
    content = rb'{"model":"demo","messages":[{"role":"user","content":"\ud83d\ude00"}]}'

    response = post_bytes(echo_gateway, content)

    assert "😀" in response.json()["choices"][0]["message"]["content"]


NESTING_PLACES = {
    "a field nobody reads": b'"messages":[{"role":"user","content":"Hi"}],"metadata":%s',
    "a field of a message": b'"messages":[{"role":"user","content":"Hi","tool_calls":%s}]',
    "what the template writes as JSON": (
        b'"messages":[{"role":"assistant","content":"Hi","tool_calls":[{"function":{"name":"f","arguments":%s}}]}]'
    ),
}


@pytest.mark.parametrize("depth", [900, 3000, 9000])
@pytest.mark.parametrize("leaf", [rb'"\ud83d\ude00"', b"1"], ids=["surrogates", "number"])
@pytest.mark.parametrize("place", NESTING_PLACES.values(), ids=NESTING_PLACES)
def test_deep_nesting_is_taken_or_refused(gateway: Gateway, depth: int, leaf: bytes, place: bytes) -> None:
    nested = b"[" * depth + leaf + b"]" * depth

    response = post_bytes(gateway, b'{"model":"demo","max_tokens":1,%s}' % (place % nested))

    assert response.status_code in (200, 400), response.text


def test_fields_that_are_null_count_as_absent(gateway: Gateway) -> None:
    nulls: dict[str, Any] = dict.fromkeys(
        ("max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options")
    )

    assert chat.complete(gateway, **nulls)["choices"][0]["finish_reason"] == "stop"


def test_content_may_be_a_list_of_text_parts(echo_gateway: Gateway) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": ""}, {"type": "text", "text": "two"}]

    answer = chat.complete(echo_gateway, messages=[{"role": "user", "content": parts}])

    assert answer["choices"][0]["message"]["content"] == "user\none two\nassistant\n"


def test_an_assistant_message_needs_no_content(gateway: Gateway) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]

    assert chat.complete(gateway, messages=messages)["choices"]


def test_messages_that_break_the_chat_template_are_the_clients_fault(gateway: Gateway) -> None:
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": 5}]

    error = refusal(gateway.client.post(PATH, json=chat.body(messages=messages)))

    assert error["param"] == "messages"
    assert "template" in error["message"]


def test_a_body_over_the_limit_is_refused_with_413(gateway: Gateway) -> None:
    error = refusal(gateway.client.post(PATH, json=chat.body("x" * 5_000_000)), 413)

    assert error["code"] == "body_too_large"
    assert "4 MiB" in error["message"]


def test_a_body_over_the_limit_without_a_length_is_refused_too(gateway: Gateway) -> None:
    response = gateway.client.post(PATH, content=(b"x" * 100_000 for _ in range(50)))

    assert refusal(response, 413)["code"] == "body_too_large"


def test_a_body_of_more_than_a_megabyte_is_answered(gateway: Gateway) -> None:
    answer = chat.complete(gateway, metadata="é" * 1_500_000, max_tokens=3)

    assert answer["usage"]["completion_tokens"] == 3


def test_a_bad_body_of_more_than_a_megabyte_is_refused_with_its_path(gateway: Gateway) -> None:
    error = refusal(gateway.client.post(PATH, json=chat.body(metadata="x" * 1_500_000, top_p=7)))

    assert error["param"] == "top_p"


def test_a_long_prompt_is_tokenized_on_the_pool_alike(echo_gateway: Gateway) -> None:
    content = "Ein großer Satz über 世界 und 🌍. " * 500

    text = chat.complete(echo_gateway, content)["choices"][0]["message"]["content"]

    assert text == f"user\n{content}\nassistant\n"


def test_a_prompt_that_leaves_too_little_room_is_refused_with_the_numbers(gateway: Gateway) -> None:
    prompt_tokens = len(prompt_of("Hello!"))

    error = refusal(gateway.client.post(PATH, json=chat.body(max_tokens=CONTEXT_LENGTH - prompt_tokens + 1)))

    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    for number in (CONTEXT_LENGTH, prompt_tokens, CONTEXT_LENGTH - prompt_tokens + 1):
        assert str(number) in error["message"]


def test_an_answer_may_use_all_the_room_that_is_left(gateway: Gateway) -> None:
    room = CONTEXT_LENGTH - len(prompt_of("Hello!"))

    assert chat.complete(gateway, max_tokens=room)["choices"][0]["finish_reason"] == "stop"


def test_a_prompt_longer_than_the_context_is_refused(gateway: Gateway) -> None:
    error = refusal(gateway.client.post(PATH, json=chat.body("one two " * 20_000, stream=True)))

    assert error["code"] == "context_length_exceeded"


def test_an_unknown_model_is_named_with_those_that_are_served(gateway: Gateway) -> None:
    error = refusal(gateway.client.post(PATH, json=chat.body(model="gpt-1")), 404)

    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "'gpt-1'" in error["message"] and "'demo'" in error["message"]


def test_an_unknown_path_is_not_found(gateway: Gateway) -> None:
    for path in ("/", "/v1", "/v1/chat/completions/", "/v1/nonsense"):
        assert path in refusal(gateway.client.get(path), 404)["message"]


def test_a_method_a_path_does_not_take_is_refused(gateway: Gateway) -> None:
    refusal(gateway.client.get(PATH), 405)
    refusal(gateway.client.delete("/v1/models"), 405)


def test_the_clients_request_id_comes_back(gateway: Gateway) -> None:
    for response in (
        gateway.client.post(PATH, json=chat.body(max_tokens=1), headers={"x-request-id": "abc-1"}),
        gateway.client.post(PATH, json={}, headers={"x-request-id": "abc-1"}),
        gateway.client.get("/nowhere", headers={"x-request-id": "abc-1"}),
    ):
        assert response.headers["x-request-id"] == "abc-1"


def test_the_request_id_is_in_the_answer_and_in_the_log(gateway: Gateway) -> None:
    answer = gateway.client.post(PATH, json=chat.body(max_tokens=1), headers={"x-request-id": "in-the-log"}).json()

    assert answer["id"] == "chatcmpl-in-the-log"
    assert gateway.line('"id": "in-the-log"')


@pytest.mark.parametrize("unfit", [b"", b"x" * 129, b"caf\xe9", b"tab\there"])
def test_a_request_id_that_is_unfit_to_print_is_replaced(gateway: Gateway, unfit: bytes) -> None:
    response = gateway.client.get("/health", headers={b"x-request-id": unfit})

    assert len(response.headers["x-request-id"]) == 32


def test_an_error_before_the_first_token_of_a_stream_has_its_status(gateway: Gateway) -> None:
    refusal(gateway.client.post(PATH, json=chat.body(stream=True, temperature=9)))
    refusal(gateway.client.post(PATH, json=chat.body(stream=True, model="gpt-1")), 404)


def test_one_connection_serves_many_requests_good_and_bad(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url, limits=httpx.Limits(max_connections=1)) as client:
        ports = set()
        for number in range(10):
            request = chat.body(max_tokens=2) if number % 2 else {"model": "demo"}
            response = client.post(PATH, json=request)
            assert response.status_code == (200 if number % 2 else 400)
            ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))

    assert len(ports) == 1
