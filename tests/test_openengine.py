"""Through the front door to an OpenEngine server that behaves as TensorRT-LLM's."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import chat, completions
from tests.demo_model import END_OF_TURN, ids_of, text_of
from tests.openengine import NOT_READY, READY, OpenEngineServer, error, finished, token
from tests.processes import Gateway, eventually, wait_until_idle

PROMPT = "The quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def engine(tools_python: Path) -> Iterator[OpenEngineServer]:
    with OpenEngineServer(tools_python, eos=END_OF_TURN) as server:
        yield server


@pytest.fixture(scope="module")
def front(engine: OpenEngineServer) -> Iterator[Gateway]:
    with Gateway("--connect-seconds", "2", workers=[engine.url]) as gateway:
        yield gateway.wait_until_ready()
        wait_until_idle(gateway)


@pytest.fixture(autouse=True)
def fresh(engine: OpenEngineServer) -> None:
    engine.forget()


def ask(gateway: Gateway, **fields: Any) -> httpx.Response:
    return gateway.client.post(completions.PATH, json=completions.body(PROMPT, **fields))


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_is_what_the_engine_says(front: Gateway, streams: bool) -> None:
    fields = {"stream_options": {"include_usage": True}} if streams else {}
    answer = completions.ask(front, streams, PROMPT, max_tokens=100, **fields)
    assert completions.texts_of(answer) == [PROMPT]
    assert completions.finish_reasons_of(answer) == ["stop"]
    length = len(ids_of(PROMPT))
    usage = (answer[-1] if isinstance(answer, list) else answer)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (length, length + 1)
    assert usage["prompt_tokens_details"]["cached_tokens"] == length // 2


def test_a_chat_ends_at_the_end_of_the_turn(front: Gateway, engine: OpenEngineServer) -> None:
    (choice,) = chat.complete(front, PROMPT)["choices"]
    # The engine says the prompt once more, in which the user's turn comes first.
    assert choice["message"]["content"] == f"user\n{PROMPT}"
    assert choice["finish_reason"] == "stop"
    assert engine.request()["extra"] == {"detokenize": False}


def test_choices_logprobs_and_limits(front: Gateway) -> None:
    answer = completions.complete(front, PROMPT, n=2, logprobs=1, max_tokens=3)
    expected = text_of(ids_of(PROMPT)[:3])
    assert completions.texts_of(answer) == [expected, expected]
    assert completions.finish_reasons_of(answer) == ["length", "length"]
    for choice in answer["choices"]:
        assert choice["logprobs"]["token_logprobs"] == [-0.25] * 3
        assert [len(tops) for tops in choice["logprobs"]["top_logprobs"]] == [1] * 3


def test_an_echo_has_the_prompts_logprobs(front: Gateway) -> None:
    answer = completions.complete(front, PROMPT, echo=True, logprobs=1, max_tokens=1)
    count = len(ids_of(PROMPT))
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None] + [-0.25] * count


def test_a_stop_string_aborts_the_engine(front: Gateway, engine: OpenEngineServer) -> None:
    engine.set(step_seconds=0.02)
    try:
        answer = completions.complete(front, PROMPT + PROMPT * 20, stop=" fox", max_tokens=300)
        assert completions.texts_of(answer) == ["The quick brown"]
        assert engine.event("abort")["found"] and engine.event("ended")["how"] == "aborted"
    finally:
        engine.set(step_seconds=0.0)


def test_a_client_that_leaves_aborts_the_engine(front: Gateway, engine: OpenEngineServer) -> None:
    engine.plan_next(token(*ids_of("Hello")), hold=True)
    with chat.opened(front, PROMPT) as events:
        assert chat.first_text(events) == "Hello"
    assert engine.event("abort")["found"] and engine.event("ended")["how"] == "aborted"
    wait_until_idle(front)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"logit_bias": {"5": 1}}, "logit_bias"), ({"priority": 1}, "priority")],
)
def test_what_the_engine_does_not_offer_is_refused(front: Gateway, fields: dict[str, Any], param: str) -> None:
    response = ask(front, **fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert "tensorrt_llm" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("code", "details", "status"),
    [
        ("INVALID_ARGUMENT", "require 0 <= top_p <= 1", 400),
        ("UNIMPLEMENTED", "per-request guided decoding backend selection is not supported", 400),
        ("INTERNAL", "prompt length 9 should not exceed max_num_tokens", 400),
    ],
)
def test_a_refusal_is_the_clients_to_read(
    front: Gateway, engine: OpenEngineServer, code: str, details: str, status: int
) -> None:
    engine.fail_next(code, details)
    response = ask(front)
    assert response.status_code == status and details in response.json()["error"]["message"]


def test_an_engine_that_fails_at_first_is_asked_once_more(front: Gateway, engine: OpenEngineServer) -> None:
    engine.plan_next(error(11, "CUDA error"))
    assert completions.texts_of(completions.complete(front, PROMPT, max_tokens=100)) == [PROMPT]
    assert engine.request()["request_id"] != engine.request()["request_id"]


def test_an_engine_that_fails_later_ends_the_stream_with_an_error(front: Gateway, engine: OpenEngineServer) -> None:
    engine.plan_next(token(*ids_of("Hello")), error(11, "CUDA error"))
    with chat.opened(front, PROMPT) as events:
        *chunks, last = events
    assert chat.text_of(chunks) == "Hello" and "CUDA error" in last["error"]["message"]


def test_an_end_of_the_engines_own_is_an_error(front: Gateway, engine: OpenEngineServer) -> None:
    engine.plan_next(token(*ids_of("Hello")), finished(3, message="generation timed out"))
    response = ask(front)
    assert response.status_code == 502 and "timed out" in response.json()["error"]["message"]


@pytest.mark.slow
def test_many_streams_at_once(front: Gateway, background: ThreadPoolExecutor) -> None:
    def say(number: int) -> bool:
        text = f"{PROMPT} {number}"
        return completions.texts_of(completions.stream(front, text, max_tokens=100)) == [text]

    assert all(background.map(say, range(200)))
    assert front.metric("gateway_wire_faults_total") == 0


@pytest.mark.slow
def test_health_is_the_workers_state(tools_python: Path) -> None:
    with OpenEngineServer(tools_python, eos=END_OF_TURN, health=NOT_READY, health_message="loading") as server:
        with Gateway("--connect-seconds", "1", "--health-seconds", "0.1", workers=[server.url]) as gateway:
            eventually(lambda: gateway.worker_states() == ["unhealthy"])
            assert "is not ready: loading" in gateway.ready()["workers"][0]["reason"]
            server.set(health=READY)
            gateway.wait_until_ready()
            assert gateway.lines("does without") == []
            server.set(unimplemented=["GetLoad"])
            eventually(lambda: gateway.lines("does without GetLoad: GetLoad is not implemented"))
            server.set(health=NOT_READY)
            eventually(lambda: gateway.worker_states() == ["unhealthy"])
            assert ask(gateway).status_code == 503


@pytest.mark.slow
def test_another_worker_takes_over_when_one_dies(tools_python: Path) -> None:
    with OpenEngineServer(tools_python, eos=END_OF_TURN) as one, OpenEngineServer(tools_python, eos=END_OF_TURN) as two:
        with Gateway(workers=[one.url, two.url]) as gateway, ThreadPoolExecutor(1) as background:
            eventually(lambda: gateway.worker_states() == ["ready", "ready"])
            for server in (one, two):
                server.plan_next(hold=True)
            waiting = background.submit(completions.complete, gateway, PROMPT, max_tokens=100)
            eventually(lambda: gateway.metric("gateway_worker_in_flight") == 1)
            busy, idle = (one, two) if gateway.metric("gateway_worker_in_flight", worker=one.url) else (two, one)
            busy.event("request")
            idle.forget()
            busy.child.kill()
            assert completions.texts_of(waiting.result(20)) == [PROMPT]
            assert sorted(gateway.worker_states()) == ["ready", "unhealthy"]


@pytest.fixture(scope="module")
def apart(tools_python: Path) -> Iterator[tuple[Gateway, OpenEngineServer, OpenEngineServer]]:
    """A gateway with a worker for prefills, by its URL, and one for decodes, by its own word."""
    settings: dict[str, Any] = {"eos": END_OF_TURN, "has_connector": True}
    with OpenEngineServer(tools_python, **settings) as one, OpenEngineServer(tools_python, **settings, role=3) as two:
        with Gateway(workers=[f"{one.url}?role=prefill", two.url]) as gateway:
            yield gateway.wait_until_ready(), one, two
            wait_until_idle(gateway)


@pytest.fixture
def split(
    apart: tuple[Gateway, OpenEngineServer, OpenEngineServer],
) -> tuple[Gateway, OpenEngineServer, OpenEngineServer]:
    for server in apart[1:]:
        server.forget()
    return apart


@pytest.mark.parametrize("streams", [False, True])
def test_prefill_and_decode_make_one_answer(
    split: tuple[Gateway, OpenEngineServer, OpenEngineServer], streams: bool
) -> None:
    gateway, prefill, decode = split
    answer = completions.ask(gateway, streams, PROMPT, max_tokens=100, logprobs=0)
    assert completions.texts_of(answer) == [PROMPT] and completions.finish_reasons_of(answer) == ["stop"]
    assert prefill.request()["extra"]["request_type"] == "context_only"
    request = decode.request()
    assert request["kv"]["session"]["endpoints"] == [{"host": "10.0.0.1", "port": 5555, "protocol": "tcp"}]
    assert request["stopping"]["max_tokens"] == 100
    if not isinstance(answer, list):
        assert answer["usage"]["completion_tokens"] == len(ids_of(PROMPT)) + 1
        assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(ids_of(PROMPT))


def test_an_answer_of_one_token_is_the_prefills_alone(
    split: tuple[Gateway, OpenEngineServer, OpenEngineServer],
) -> None:
    gateway, prefill, decode = split
    answer = completions.complete(gateway, PROMPT, max_tokens=1)
    assert completions.texts_of(answer) == [text_of(ids_of(PROMPT)[:1])]
    assert prefill.request()["extra"] == {"detokenize": False}
    decode.fail_next("INTERNAL", "nobody may come here")
    assert completions.complete(gateway, PROMPT, max_tokens=1)["usage"]["completion_tokens"] == 1


def test_a_client_that_leaves_ends_the_decode(split: tuple[Gateway, OpenEngineServer, OpenEngineServer]) -> None:
    gateway, prefill, decode = split
    decode.plan_next(token(*ids_of("Hello")), hold=True)
    with chat.opened(gateway, PROMPT) as events:
        chat.first_text(events)
        decode.event("request")
    assert prefill.event("ended")["how"] == "done"
    assert decode.event("abort")["found"] and decode.event("ended")["how"] == "aborted"


def test_a_transfer_that_fails_is_told(split: tuple[Gateway, OpenEngineServer, OpenEngineServer]) -> None:
    gateway, _, decode = split
    decode.plan_next(error(9, "the transfer of KV blocks failed"))
    response = ask(gateway, max_tokens=100)
    assert response.status_code == 502 and "transfer of KV blocks" in response.json()["error"]["message"]


def test_a_lora_adapter_is_named_as_the_engine_knows_it(tools_python: Path) -> None:
    settings: dict[str, Any] = {"eos": END_OF_TURN, "supports_lora": True, "loras": ["poems"], "unimplemented": []}
    with OpenEngineServer(tools_python, **settings) as server:
        with Gateway("--lora", "poems=7", "--lora", "prose=8", workers=[server.url]) as gateway:
            gateway.wait_until_ready()
            answer = gateway.client.post(completions.PATH, json=completions.body(PROMPT, model="poems", max_tokens=100))
            assert answer.json()["choices"][0]["text"] == PROMPT
            assert server.request()["lora_name"] == "poems"
            refused = gateway.client.post(completions.PATH, json=completions.body(PROMPT, model="prose"))
            assert refused.status_code == 400
            assert "has not loaded the LoRA adapter 'prose'; it has poems" in refused.json()["error"]["message"]
