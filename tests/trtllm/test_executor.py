"""Our executor for TensorRT-LLM behind a gateway, its engine a stand-in: both versions of the LLM API."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_adapters import codec
from engine_adapters.step import messages
from tests import attach, chat, completions
from tests.attach import u32
from tests.demo_model import END_OF_TURN, echo_of, ids_of, prompt_of, text_of
from tests.processes import Gateway, eventually, wait_until_idle
from tests.trtllm_executor import NEW, OLD, TRANSCEIVER, Executor

PATH = "/v1/chat/completions"
CONTENT = "Say this again, please."


class Served:
    """An executor and its gateway."""

    def __init__(self, version: str, executor: Executor, gateway: Gateway) -> None:
        self.version = version
        self.executor = executor
        self.gateway = gateway


@pytest.fixture(scope="module", params=[OLD, NEW])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    calls = tmp_path_factory.mktemp("calls") / "calls"
    arguments = ("--enable_lora", "--guided_decoding_backend", "xgrammar")
    with Executor(*arguments, version=request.param, calls=calls) as executor:
        with Gateway("--lora", "tuned=7@engine_adapters", workers=[executor.url]) as gateway:
            yield Served(request.param, executor, gateway.wait_until_ready())
            wait_until_idle(gateway)


@pytest.mark.parametrize("streams", [True, False])
def test_an_answer_is_whole_and_counted(served: Served, streams: bool) -> None:
    expected = echo_of(CONTENT)
    if streams:
        chunks = chat.stream(served.gateway, CONTENT, stream_options={"include_usage": True})
        assert (chat.text_of(chunks), chat.finish_reason_of(chunks)) == (text_of(expected), "stop")
        usage = chunks[-1]["usage"]
    else:
        body = chat.complete(served.gateway, CONTENT)
        assert body["choices"][0]["message"]["content"] == text_of(expected)
        usage = body["usage"]
    assert usage["completion_tokens"] == len(expected) + 1
    assert usage["prompt_tokens"] == len(prompt_of(CONTENT))
    assert served.executor.calls()[-1]["streaming"] is streams
    assert chat.complete(served.gateway, CONTENT)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_what_the_api_takes_is_what_was_asked(served: Served) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.75, "top_k": 5, "min_p": 0.25, "seed": -1, "max_tokens": 9, "min_tokens": 2,
        "frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.5, "logit_bias": {"3": 2},
        "top_p_min": 0.25, "top_p_decay": 0.5, "top_p_reset_id": 12, "no_repeat_ngram_size": 3,
        "bad_token_ids": [13, 14],
        "stop_token_ids": [11], "cache_salt": "salt", "logprobs": 0, "echo": True, "model": "tuned",
        "kv_retention": {
            "ranges": [{"start": 0, "end": 4, "priority": 90, "duration_ms": 1500}], "decode_priority": 10
        },
    }  # fmt: skip
    completions.complete(served.gateway, "a b c d e", **fields)
    call = served.executor.calls()[-1]
    params = call["sampling_params"]
    assert call["inputs"] == {"prompt_token_ids": ids_of("a b c d e")}
    same = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "frequency_penalty", "top_p_min")
    for name in (*same, "top_p_decay", "no_repeat_ngram_size", "bad_token_ids"):
        assert params[name] == fields[name]
    assert params["top_p_reset_ids"] == 12
    assert (params["presence_penalty"], params["repetition_penalty"]) == (-0.5, 1.5)
    assert params["seed"] == 2**64 - 1
    assert (params["end_id"], params["pad_id"]) == (END_OF_TURN, END_OF_TURN)
    assert 11 in params["stop_token_ids"] and END_OF_TURN not in params["stop_token_ids"]
    assert (params["logprobs"], params["prompt_logprobs"], params["detokenize"]) == (1, 1, False)
    assert params["embedding_bias"][:5] == [0, 0, 0, 2.0, 0]
    assert call["lora_request"] == {"lora_name": "tuned", "lora_int_id": 7, "lora_path": "engine_adapters"}
    assert call["cache_salt"] == "salt"
    retention = call["kv_cache_retention_config"]
    assert retention["decode_retention_priority"] == 10
    (kept,) = retention["token_range_retention_configs"]
    assert (kept["token_start"], kept["token_end"], kept["priority"]) == (0, 4, 90)
    assert kept["duration_ms"] == "datetime.timedelta(seconds=1, microseconds=500000)"


def test_what_was_not_asked_is_as_openai_has_it_and_not_greedy(served: Served) -> None:
    chat.complete(served.gateway, CONTENT)
    call = served.executor.calls()[-1]
    params = call["sampling_params"]
    assert (params["temperature"], params["top_p"], params["repetition_penalty"]) == (1.0, 1.0, 1.0)
    assert not any(call[name] for name in ("lora_request", "cache_salt", "kv_cache_retention_config"))


def test_priorities_need_a_version_that_has_them(served: Served) -> None:
    response = served.gateway.client.post(PATH, json=chat.body(CONTENT, priority=-1))
    if served.version == OLD:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "priority"
        assert "tensorrt-llm" in response.json()["error"]["message"]
    else:
        assert response.status_code == 200
        assert served.executor.calls()[-1]["priority"] == 0.75


@pytest.mark.parametrize("streams", [True, False])
def test_each_of_several_answers_ends_where_it_ends(served: Served, streams: bool) -> None:
    prompt = ids_of("one two three four five six")
    answers = completions.ask(served.gateway, streams, prompt, n=3, max_tokens=50, temperature=0)
    assert completions.texts_of(answers) == [text_of(prompt[index:]) for index in range(3)]
    assert completions.finish_reasons_of(answers) == ["stop"] * 3
    if not streams:
        assert answers["usage"]["completion_tokens"] == sum(len(prompt) - index + 1 for index in range(3))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("max_tokens", [3, 20])
def test_a_stop_id_ends_an_answer_and_is_not_part_of_it(served: Served, n: int, max_tokens: int) -> None:
    """With three tokens it is the last that is allowed, which the engine calls the length."""
    prompt = ids_of("one two three four five six")
    stop = prompt[2]
    fields = {"n": n, "max_tokens": max_tokens, "stop_token_ids": [stop]}
    answers = completions.ask(served.gateway, True, prompt, **fields)
    assert completions.texts_of(answers) == [text_of(prompt[index:2]) for index in range(n)]
    assert completions.finish_reasons_of(answers) == ["stop"] * n


def test_logprobs_belong_to_their_tokens(served: Served) -> None:
    prompt = ids_of("one two three")
    answer = completions.complete(served.gateway, prompt, logprobs=2, echo=True, max_tokens=3)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [None, *[-0.5] * 5]
    assert [len(top) for top in logprobs["top_logprobs"][1:]] == [2] * 5
    chunks = completions.stream(served.gateway, prompt, logprobs=0, max_tokens=3)
    pieces = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert [value for piece in pieces for value in piece["token_logprobs"]] == [-0.5] * 3


def test_a_prompt_that_is_too_long_for_the_engine_is_the_clients_fault(served: Served) -> None:
    response = served.gateway.client.post(completions.PATH, json=completions.body([5] * 4100, max_tokens=4))
    assert response.status_code == 400
    assert "max_num_tokens" in response.json()["error"]["message"]


def test_what_fails_in_the_engine_is_not_the_clients_fault(served: Served) -> None:
    before = len(served.executor.calls())
    response = served.gateway.client.post(PATH, json=chat.body(CONTENT, cache_salt="refuse"))
    assert response.status_code == 502 and "on purpose" in response.json()["error"]["message"]
    expected_calls = 1 if served.version == OLD else 3  # a RequestError is the request's, whoever serves it
    assert len(served.executor.calls()) - before == expected_calls
    with served.gateway.client.stream(
        "POST", PATH, json=chat.body(CONTENT, stream=True, cache_salt="fail:3")
    ) as response:
        if response.status_code == 200:
            *chunks, last = chat.events_of(response)
        else:  # the tokens and the failure came in the same moment
            assert response.status_code == 502
            chunks, last = [], json.loads(response.read())
    assert text_of(echo_of(CONTENT)[:3]).startswith(chat.text_of(chunks))
    assert "on purpose" in last["error"]["message"]
    wait_until_idle(served.gateway)


@pytest.mark.slow
def test_a_client_that_leaves_takes_its_request_out_of_the_engine() -> None:
    with Executor(step_ms=20) as executor, Gateway(workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        for fields in ({}, {"n": 4}, {"stream": False}):
            with chat.sent(gateway, "long " * 300, **{"stream": True, **fields}):
                eventually(lambda: gateway.metric("gateway_worker_running"))
            wait_until_idle(gateway)
        assert not executor.lines("failed")


@pytest.mark.slow
def test_at_its_end_the_executor_ends_its_streams() -> None:
    with Executor(step_ms=20) as executor, Gateway(workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        with chat.opened(gateway, "long " * 300) as events:
            assert chat.first_text(events)
            executor.send_signal(signal.SIGTERM)
            *_, last = events
        assert "shutting down" in last["error"]["message"]
        assert executor.exit_code() == 0


@pytest.mark.slow
def test_when_the_engine_dies_the_executor_says_why_and_ends() -> None:
    with Executor() as executor, Gateway("--connect-seconds", "0", workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        response = gateway.client.post(PATH, json=chat.body("long " * 300, cache_salt="die:2"))
        assert response.status_code in (502, 503), response.text
        assert executor.exit_code() == 1
        assert executor.lines("the engine died: TensorRT-LLM's executor has shut down")
        eventually(lambda: gateway.worker_states() == ["unhealthy"])


@pytest.mark.slow
@pytest.mark.parametrize("version", [OLD, NEW])
def test_two_executors_share_a_request(version: str) -> None:
    prompt = ids_of("one two three four five six")
    asked: list[dict[str, Any]] = [
        {"max_tokens": 50},
        {"max_tokens": 1},
        {"max_tokens": 2},
        {"stop_token_ids": prompt[:1]},
    ]
    texts = [text_of(prompt), text_of(prompt[:1]), text_of(prompt[:2]), ""]
    reasons, counts = ["stop", "length", "length", "stop"], [len(prompt) + 1, 1, 2, 1]
    arguments = [*TRANSCEIVER, "--role"]
    with (
        Executor(*arguments, "prefill", version=version) as prefill,
        Executor(*arguments, "decode", version=version) as decode,
        Gateway(workers=[prefill.url, decode.url]) as gateway,
    ):
        gateway.wait_until_ready()
        for fields, text, reason, count in zip(asked, texts, reasons, counts, strict=True):
            whole = completions.complete(gateway, prompt, logprobs=1, **fields)
            assert (completions.texts_of(whole), completions.finish_reasons_of(whole)) == ([text], [reason])
            assert whole["usage"]["completion_tokens"] == count
            logprobs = whole["choices"][0]["logprobs"]
            assert logprobs is None if not text else logprobs["token_logprobs"] == [-0.5] * len(logprobs["tokens"])
            chunks = completions.stream(gateway, prompt, **fields)
            assert "".join(completions.texts_of(chunks)) == text
            assert completions.finish_reasons_of(chunks) == [reason]
        wait_until_idle(gateway)


@pytest.mark.slow
def test_load_and_kv_events_travel_with_the_frames() -> None:
    async def story(address: str) -> None:
        gateway = attach.Gateway(address)
        await gateway.greet()
        submit = messages.Submit(stream_id=1, token_ids=u32(*range(10, 20)), max_tokens=50, stop_token_ids=u32(0))
        await gateway.send(messages.ClientFrame(submits=[submit]))
        events: list[messages.KvEvent] = []
        used = 0
        while not events or not used:
            frame = await gateway.read()
            events += frame.kv_events
            used = max(used, frame.load.kv_tokens_used if frame.load else 0)
        # Blocks of 4: the third is not whole. Hashes are the stand-in's.
        stored, removed = events
        assert (stored.kind, stored.parent_hash) == (messages.KV_EVENT_KIND_STORED, 0)
        assert stored.token_ids == u32(*range(10, 18))
        assert stored.block_hashes == attach.u64(1000, 1004)
        assert removed == messages.KvEvent(messages.KV_EVENT_KIND_REMOVED, block_hashes=attach.u64(7))
        await gateway.leave()

    with Executor("--kv_cache_config.tokens_per_block", "4") as executor:
        asyncio.run(asyncio.wait_for(story(executor.address), 20))


@pytest.mark.slow
def test_a_step_of_all_requests_is_one_frame() -> None:
    async def story(address: str) -> list[int]:
        gateway = attach.Gateway(address)
        await gateway.greet()
        submits = [
            messages.Submit(stream_id=each, token_ids=u32(5, 6), max_tokens=30, ignore_eos=True) for each in range(1, 9)
        ]
        await gateway.send(messages.ClientFrame(submits=submits))
        sizes: list[int] = []
        ended = 0
        while ended < len(submits):
            frame = await gateway.read_news()
            ended += len(frame.finished)
            sizes.append(len(attach.columns(frame)))
        await gateway.leave()
        return sizes

    with Executor("--kv_cache_config.event_buffer_max_size", "0", step_ms=20) as executor:
        sizes = asyncio.run(asyncio.wait_for(story(executor.address), 20))
    busy = [size for size in sizes if size]
    # Several steps may share a frame where the reader is late; none has two.
    assert len(busy) <= 32 and busy.count(8) >= len(busy) - 4, sizes


@pytest.mark.parametrize(
    ("arguments", "version", "words"),
    [
        ((), "0.20.0", r"tensorrt_llm 0.20.0 has no LLM.generate_async\(lora_request=\).*needs 1.2 or newer"),
        (("--nonsense", "3"), NEW, "invalid argument: nonsense"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(arguments: tuple[str, ...], version: str, words: str) -> None:
    with Executor(*arguments, version=version, ready=False) as executor:
        assert executor.exit_code() == 1
        assert executor.lines(words), executor.output


@pytest.mark.slow
def test_options_come_from_a_file_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text('{"max_batch_size": 3, "max_seq_len": 999, "kv_cache_config": {"tokens_per_block": 8}}')
    arguments = ("--extra_llm_api_options", str(file), "--max-batch-size=5", "--served-model-name", "demo")

    async def ask(address: str) -> messages.Info:
        gateway = attach.Gateway(address)
        data = await gateway.channel.unary_unary(messages.EXECUTOR_GET_INFO)(b"")
        await gateway.leave()
        return codec.decode(messages.Info, data)

    with Executor(*arguments) as executor:
        info = asyncio.run(ask(executor.address))
    assert (info.model, info.max_running, info.context_length, info.kv_block_size) == ("demo", 5, 999, 8)
    assert (info.engine, info.engine_version) == ("tensorrt-llm", NEW)
    assert "kv_events" in info.features and "constraint.json" not in info.features
