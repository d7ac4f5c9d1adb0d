"""TensorRT-LLM's own wire through the front door, with an independent server and with the simulator behind it."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import chat
from tests.demo_model import END_OF_TEXT, END_OF_TURN, FOLDER, VOCAB_SIZE, ids_of
from tests.native_servicer import Servicer
from tests.processes import Gateway, Simulator, eventually, wait_until_idle

PATH = "/v1/chat/completions"
DEFAULTS = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05}
GREETING = [*ids_of("Hello there"), END_OF_TURN]
HELLO = {"eos": END_OF_TURN, "vocab_size": VOCAB_SIZE, "steps": [[[each] for each in GREETING]]}


class NativeSimulator(Simulator):
    """The simulator on TensorRT-LLM's own wire."""

    def __init__(self, *arguments: str) -> None:
        super().__init__("--wire", "trtllm", *arguments)

    @property
    def url(self) -> str:
        return f"trtllm://{self.address}"


@pytest.fixture(scope="module")
def servicer(tools_python: Path) -> Iterator[Servicer]:
    with Servicer(tools_python) as servicer:
        servicer.obey(**HELLO)
        yield servicer


@pytest.fixture(scope="module")
def native_gateway(servicer: Servicer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves a model whose folder has sampling settings of its own."""
    folder = Path(shutil.copytree(FOLDER, tmp_path_factory.mktemp("models") / "demo"))
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | DEFAULTS), "utf-8")
    with Gateway("--model-path", f"demo={folder}", workers=[servicer.url]) as gateway:
        yield gateway.wait_until_ready()


def ask(gateway: Gateway, **fields: object) -> httpx.Response:
    return gateway.client.post(PATH, json=chat.body("hi", **fields))


def test_what_a_request_leaves_open_is_the_models_own_setting(servicer: Servicer, native_gateway: Gateway) -> None:
    servicer.obey(**HELLO)
    answer = ask(native_gateway).json()
    assert answer["choices"][0]["message"]["content"] == "Hello there"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(GREETING)
    request = servicer.wait_for("generate")["request"]
    assert {name: request["sampling_config"][name] for name in DEFAULTS} == pytest.approx(DEFAULTS)
    assert {*request["stop_token_ids"]} == {END_OF_TURN, END_OF_TEXT}, "all of the model's ends, not only its first"
    assert "streaming" not in request

    ask(native_gateway, temperature=0, top_p=1, top_k=-1, repetition_penalty=1)
    sampling = servicer.wait_for("generate")["request"]["sampling_config"]
    assert (sampling["temperature"], sampling["top_p"], sampling["repetition_penalty"]) == (0, 1, 1)
    assert "top_k" not in sampling


def test_a_stop_string_ends_the_answer_here_and_in_the_engine(servicer: Servicer, native_gateway: Gateway) -> None:
    words = ids_of(" one two three four five six")
    servicer.obey(**HELLO | {"steps": [[[each] for each in words]], "hangs_at": len(words)})
    answer = ask(native_gateway, stop=["three"], max_tokens=100).json()
    assert answer["choices"][0]["message"]["content"] == " one two "
    assert "stop" not in servicer.wait_for("generate")["request"], "which the engine would miss at some boundaries"
    assert servicer.wait_for("aborted")["by"] == "Abort"
    wait_until_idle(native_gateway)


def test_a_client_that_leaves_is_aborted(servicer: Servicer, native_gateway: Gateway) -> None:
    servicer.obey(**HELLO | {"hangs_at": 1})
    with native_gateway.client.stream("POST", PATH, json=chat.body("hi", stream=True)) as response:
        next(response.iter_raw())
    assert servicer.wait_for("aborted")["by"] == "Abort"
    wait_until_idle(native_gateway)


@pytest.mark.parametrize(("field", "value"), [("priority", 1), ("cache_salt", "mine")])
def test_what_the_wire_cannot_carry_names_field_and_engine(
    servicer: Servicer, native_gateway: Gateway, field: str, value: object
) -> None:
    response = ask(native_gateway, **{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert "tensorrt-llm" in response.json()["error"]["message"]


def test_a_prompt_too_long_for_the_engine_is_the_clients_fault(servicer: Servicer, native_gateway: Gateway) -> None:
    servicer.obey(**HELLO | {"max_num_tokens": 5})
    response = ask(native_gateway)
    assert response.status_code == 400
    assert "should not exceed max_num_tokens" in response.json()["error"]["message"]
    assert native_gateway.worker_states() == ["ready"]


def test_an_engine_that_fails_in_silence_costs_nothing_but_time(servicer: Servicer) -> None:
    with NativeSimulator("--speed", "0") as simulator, Gateway(workers=[servicer.url, simulator.url]) as gateway:
        eventually(lambda: gateway.worker_states() == ["ready", "ready"])
        servicer.obey(**HELLO | {"fails_silently_at": 0})
        for _ in range(4):
            assert ask(gateway, max_tokens=3).status_code == 200
        assert gateway.metric("gateway_retries_total") >= 1


def test_a_sick_engine_gets_no_requests_until_it_is_well(servicer: Servicer) -> None:
    with Gateway("--health-seconds", "0.1", workers=[servicer.url]) as gateway:
        gateway.wait_until_ready()
        servicer.obey(**HELLO | {"health": "RuntimeError: CUDA error"})
        eventually(lambda: gateway.worker_states() == ["unhealthy"], "the worker's loss")
        assert "CUDA error" in gateway.ready()["workers"][0]["reason"]
        servicer.obey(**HELLO)
        gateway.wait_until_ready()
        assert ask(gateway).status_code == 200


def test_both_wires_of_the_simulator_say_the_same(gateway: Gateway) -> None:
    with NativeSimulator("--speed", "0") as simulator, Gateway(workers=[simulator.url]) as native:
        native.wait_until_ready()
        for fields in (
            {"max_tokens": 30, "temperature": 0},
            {"max_tokens": 30, "seed": 5, "n": 3, "logprobs": True, "top_logprobs": 2},
            {"max_tokens": 30, "temperature": 0, "n": 2},
            {"max_tokens": 9, "logit_bias": {"300": 100}},
            {"max_tokens": 300, "stop": ["."], "temperature": 0},
            {"max_tokens": 2000, "temperature": 0},
        ):
            answers = [ask(each, **fields).json() for each in (native, gateway)]
            assert answers[0]["choices"] == answers[1]["choices"], fields
            usages = [answer["usage"]["prompt_tokens"] for answer in answers]
            assert usages[0] == usages[1]
            chunks = chat.stream(native, "hi", **fields)
            texts = [choice["message"]["content"] for choice in answers[1]["choices"]]
            assert [text_of_choice(chunks, index) for index in range(len(texts))] == texts
        wait_until_idle(native)
        assert native.metric("gateway_wire_faults_total") == 0


STREAMS_IN_A_LONG_SOAK = 2000


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_streams_at_once_lose_nothing(duration: float) -> None:
    """2000 of them when the soak is a long one: each is a call of its own on the one connection to the engine."""
    streams = STREAMS_IN_A_LONG_SOAK if duration >= 60 else 200
    tokens = 20
    pace = ("--decode-base-ms", "300", "--decode-per-request-ms", "0", "--prefill-tps", "1e9")
    capacity = ("--max-running", str(streams), "--kv-tokens", str(200 * streams), "--output", "random")
    with NativeSimulator(*pace, *capacity) as simulator, Gateway(workers=[simulator.url]) as gateway:
        gateway.wait_until_ready()
        answers = asyncio.run(all_at_once(gateway, streams, tokens))
        assert [answer.count(b'"delta":{"content":') > 0 for answer in answers] == [True] * streams
        assert all(f'"completion_tokens":{tokens},'.encode() in answer for answer in answers)
        assert all(answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for answer in answers)
        wait_until_idle(gateway)
        assert gateway.metric("gateway_wire_faults_total") == gateway.metric("gateway_retries_total") == 0
        # An engine that takes 2000 requests at once may well be silent for a while.
        troubles = [entry for entry in gateway.log() if entry["level"] in ("WARNING", "ERROR")]
        assert not [entry for entry in troubles if not entry["message"].endswith("is unhealthy")]


async def all_at_once(gateway: Gateway, streams: int, tokens: int) -> list[bytes]:
    """What so many clients read, each on a connection of its own, all of them open before the first one asks."""
    body = json.dumps(
        chat.body("hi", stream=True, max_tokens=tokens, ignore_eos=True, stream_options={"include_usage": True})
    )
    request = (
        f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    )
    connections = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(streams)]
    for _, writer in connections:
        writer.write(request.encode())
    answers = await asyncio.gather(*(reader.read() for reader, _ in connections))
    for _, writer in connections:
        writer.close()
    return list(answers)


def text_of_choice(chunks: list[dict[str, Any]], index: int) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
