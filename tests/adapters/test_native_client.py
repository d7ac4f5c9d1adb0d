"""Tests of TensorRT-LLM's own wire against an independent server, which behaves as the real one is documented to."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from engine_adapters.base import (
    Constraint,
    Delivery,
    EngineInfo,
    EngineLost,
    Finish,
    FinishReason,
    Logprobs,
    Lora,
    Sampling,
    Submission,
)
from engine_adapters.trtllm import calls
from engine_adapters.trtllm.native import client as native_client
from engine_adapters.trtllm.native.client import NativeClient
from engine_adapters.trtllm.native.translation import UNKNOWN_LOGPROB
from tests.attach import u32
from tests.native_servicer import Servicer
from tests.processes import PATIENCE

EOS = 2
LIMIT = 1000
"""Of the server's context."""
VOCABULARY = 500
CACHED = 7
Run = Callable[[Coroutine[Any, Any, None]], None]


class Connection:
    """A client whose deliveries and faults are kept."""

    def __init__(self, address: str) -> None:
        self.faults: Counter[str] = Counter()
        self.deliveries: asyncio.Queue[Delivery[str]] = asyncio.Queue()
        self.batches: list[int] = []
        self.client: NativeClient[str] = NativeClient(address, lambda kind: self.faults.update([kind]))
        self.running: asyncio.Task[None] | None = None

    def take(self, deliveries: list[Delivery[str]]) -> None:
        self.batches.append(len(deliveries))
        for delivery in deliveries:
            self.deliveries.put_nowait(delivery)

    async def answer(self) -> tuple[list[int], Finish]:
        """All tokens up to the next end."""
        said: list[int] = []
        while True:
            _, token_ids, finish, _ = await self.deliveries.get()
            said += token_ids
            if finish is not None:
                return said, finish

    async def answers(self, count: int) -> dict[str, tuple[list[int], Finish]]:
        """All tokens of each key and its end, in the order of the ends."""
        said: dict[str, list[int]] = {}
        ends: dict[str, Finish] = {}
        while len(ends) < count:
            key, token_ids, finish, _ = await self.deliveries.get()
            said.setdefault(key, []).extend(token_ids)
            if finish is not None:
                ends[key] = finish
        return {key: (said[key], finish) for key, finish in ends.items()}


@pytest.fixture(scope="module")
def servicer(tools_python: str) -> Iterator[Servicer]:
    with Servicer(tools_python) as servicer:
        yield servicer


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One loop for all: grpc.aio delivers every loop's events through one queue, and minds when a loop closes."""
    with asyncio.Runner() as runner:
        yield lambda story: runner.run(asyncio.wait_for(story, 30))


@asynccontextmanager
async def connected(servicer: Servicer, **plan: Any) -> AsyncIterator[Connection]:
    await servicer.plan(**plan)
    connection = Connection(servicer.address)
    await connection.client.connect()
    connection.running = asyncio.create_task(connection.client.run(connection.take))
    await asyncio.sleep(0)
    try:
        yield connection
    finally:
        connection.running.cancel()
        await asyncio.wait([connection.running])
        await connection.client.close()


def ask(token_ids: Sequence[int] = (11, 12, 13), max_tokens: int = 5, **changes: Any) -> Submission:
    return Submission("request", u32(*token_ids), max_tokens, **{"stop_token_ids": u32(EOS), **changes})


def story(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """A test that is a coroutine, run on the module's loop."""

    def wrapper(run: Run, servicer: Servicer) -> None:
        run(test(servicer))

    wrapper.__name__ = test.__name__
    wrapper.__doc__ = test.__doc__
    return wrapper


# --- what the engine says of itself ---------------------------------------------------------------------------------


@story
async def test_what_the_engine_says_of_itself_arrives(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        info = await connection.client.connect()
        assert (info.engine, info.engine_version, info.model) == ("tensorrt-llm", "1.3.0rc24", "demo")
        assert (info.vocab_size, info.context_length, info.tokenizer_fingerprint) == (VOCABULARY, LIMIT, b"")
        assert {"n", "logprobs", "logit_bias", "lora", "constraint.regex"} <= info.features
        assert not {"priority", "cache_salt", "kv_retention", "disaggregation", "kv_events"} & info.features


@story
async def test_a_method_that_is_not_there_is_no_fault(servicer: Servicer) -> None:
    async with connected(servicer, lacks=["GetModelInfo", "GetServerInfo"]) as connection:
        info: EngineInfo = await connection.client.connect()
        assert info.vocab_size == info.context_length == 0
        assert "logit_bias" not in info.features, "which needs to know how large the vocabulary is"
        connection.client.submit(["a"], ask())
        assert (await connection.answer())[0] == [100, 101, 102, 103, 104]


def test_a_time_limit_is_grpcs_header() -> None:
    assert calls.time_limit(0.0) == ()
    ((name, value),) = calls.time_limit(time.monotonic() + 2.0)
    assert name == "grpc-timeout" and 2900 < int(value.removesuffix("m")) <= 3000
    assert calls.time_limit(time.monotonic() + 1e6) == (("grpc-timeout", "99999999S"),)
    assert calls.time_limit(0.1) == (("grpc-timeout", "1000m"),), "a moment that has passed"


def test_a_call_has_its_time_and_the_server_ends_it(
    run: Run, servicer: Servicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "GRACE_SECONDS", 0.05)

    async def story() -> None:
        async with connected(servicer, hangs_at=1) as connection:
            connection.client.submit(["a"], replace(ask(), ends_at=time.monotonic() + 0.05))
            said, finish = await connection.answer()
            assert len(said) == 1 and finish.reason is FinishReason.DEADLINE, finish

    run(story())


@story
async def test_health_is_what_the_text_says(servicer: Servicer) -> None:
    for text in ("OK", " ok\n"):
        async with connected(servicer, health=text):
            pass
    await servicer.plan(health="RuntimeError: CUDA error")
    connection = Connection(servicer.address)
    with pytest.raises(EngineLost, match="not healthy: RuntimeError: CUDA error"):
        await connection.client.connect()
    await connection.client.close()


def test_an_engine_that_falls_ill_says_so_and_goes_on(
    run: Run, servicer: Servicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_client, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(native_client, "TICK_SECONDS", 0.02)

    async def story() -> None:
        async with connected(servicer) as connection:
            before = connection.client.last_frame_at
            await until(lambda: connection.client.last_frame_at > before)
            await servicer.plan(health="Executor is unhealthy")
            assert await connection.client.check_health() == "it says it is not healthy: Executor is unhealthy"
            before = connection.client.last_frame_at
            await until(lambda: connection.client.last_frame_at > before)
            assert connection.running is not None and not connection.running.done()
            await servicer.plan()
            assert await connection.client.check_health() == ""

    run(story())


@story
async def test_an_address_where_nobody_listens_is_lost(servicer: Servicer) -> None:
    connection = Connection("127.0.0.1:1")
    with pytest.raises(EngineLost, match="cannot be reached"):
        await connection.client.connect()
    await connection.client.close()


# --- what is sent ---------------------------------------------------------------------------------------------------


@story
async def test_defaults_are_said_and_ids_are_unique(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        requests = []
        for _ in range(2):
            connection.client.submit(["a"], ask())
            requests.append(await servicer.request())
            await connection.answer()
        first, second = requests
        assert first["request_id"].startswith("request-") and first["request_id"] != second["request_id"]
        assert first["sampling_config"] == {
            "beam_width": 1,
            "num_return_sequences": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
        }
        assert first["output_config"] == {"exclude_input_from_output": True}
        assert first["tokenized"] == {"input_token_ids": [11, 12, 13]}
        assert (first["max_tokens"], first["streaming"], first["stop_token_ids"]) == (5, True, [EOS])
        assert "ignore_eos" not in first and "embedding_bias" not in first and "guided_decoding" not in first


@story
async def test_every_field_arrives(servicer: Servicer) -> None:
    sampling = Sampling(
        temperature=0.5,
        top_p=0.25,
        seed=-1,
        top_k=5,
        min_p=0.125,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.25,
        logit_bias=((3, -100.0), (VOCABULARY - 1, 2.5)),
    )
    async with connected(servicer) as connection:
        submission = ask(
            sampling=sampling, n=3, min_tokens=2, stop_token_ids=u32(EOS, 400), ignore_eos=True, lora=Lora("poet", 4)
        )
        connection.client.submit(["a", "b", "c"], submission)
        request = await servicer.request()
        assert request["sampling_config"] == {
            "beam_width": 1,
            "num_return_sequences": 3,
            "temperature": 0.5,
            "top_p": 0.25,
            "seed": str(2**64 - 1),
            "top_k": 5,
            "min_p": 0.125,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "repetition_penalty": 1.25,
            "min_tokens": 2,
        }
        bias = request["embedding_bias"]
        assert len(bias) == VOCABULARY
        assert {place: value for place, value in enumerate(bias) if value} == {3: -100.0, VOCABULARY - 1: 2.5}
        assert request["lora_config"] == {"task_id": "4"}
        assert request["stop_token_ids"] == [EOS, 400] and request["ignore_eos"] is True
        await connection.answers(3)


@pytest.mark.parametrize(
    ("constraint", "sent"),
    [
        (Constraint("json"), {"guide_type": "GUIDE_TYPE_JSON", "guide": "{}"}),
        (Constraint("json_schema", '{"type":"object"}'), {"guide_type": "GUIDE_TYPE_JSON_SCHEMA"}),
        (Constraint("regex", "[ab]+"), {"guide_type": "GUIDE_TYPE_REGEX"}),
        (Constraint("ebnf", 'root ::= "a"'), {"guide_type": "GUIDE_TYPE_EBNF_GRAMMAR"}),
        (Constraint("structural_tag", '{"type":"x"}'), {"guide_type": "GUIDE_TYPE_STRUCTURAL_TAG"}),
    ],
    ids=lambda value: value.kind if isinstance(value, Constraint) else "",
)
def test_a_constraint_arrives_and_is_never_empty(
    run: Run, servicer: Servicer, constraint: Constraint, sent: dict[str, str]
) -> None:
    async def story() -> None:
        async with connected(servicer) as connection:
            connection.client.submit(["a"], ask(constraint=constraint))
            assert (await servicer.request())["guided_decoding"] == {"guide": constraint.guide, **sent}
            await connection.answer()

    run(story())


@story
async def test_a_reply_in_one_piece_comes_as_one_message(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask(stream=False))
        assert "streaming" not in await servicer.request()
        key, token_ids, finish, _ = await connection.deliveries.get()
        assert (key, token_ids) == ("a", [100, 101, 102, 103, 104])
        assert finish is None or finish.reason is FinishReason.LENGTH


@story
async def test_an_only_token_comes_with_the_end(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask(max_tokens=1))
        assert "streaming" not in await servicer.request()
        key, token_ids, finish, _ = await connection.deliveries.get()
        assert (key, token_ids) == ("a", [100])
        assert finish == Finish(FinishReason.LENGTH, prompt_tokens=3, cached_tokens=CACHED, completion_tokens=1)


@story
async def test_an_answer_never_goes_beyond_the_context(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask([11] * 790, max_tokens=10_000))
        assert (await servicer.request())["max_tokens"] == LIMIT - 790
        said, finish = await connection.answer()
        assert len(said) == LIMIT - 790 and finish.reason is FinishReason.LENGTH


@story
async def test_a_prompt_of_many_tokens_arrives_whole(servicer: Servicer) -> None:
    prompt = [place % VOCABULARY for place in range(100_000)]
    async with connected(servicer, max_seq_len=1 << 20, max_num_tokens=1 << 20) as connection:
        connection.client.submit(["a"], ask(prompt, max_tokens=1))
        assert (await servicer.request())["tokenized"]["input_token_ids"] == prompt
        assert (await connection.answer())[1].prompt_tokens == len(prompt)


@story
async def test_greedy_answers_are_copies_of_one(servicer: Servicer) -> None:
    for sampling in (Sampling(temperature=0.0), Sampling(top_k=1)):
        async with connected(servicer) as connection:
            connection.client.submit(["a", "b"], ask(sampling=sampling, n=2, max_tokens=2))
            assert (await servicer.request())["sampling_config"]["num_return_sequences"] == 1
            answers = await connection.answers(2)
            assert answers["a"] == answers["b"]
            assert answers["a"][0] == [100, 101]


# --- how answers end ------------------------------------------------------------------------------------------------


@story
async def test_tokens_come_one_by_one_and_then_the_limit(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask(max_tokens=3))
        assert await connection.answer() == (
            [100, 101, 102],
            Finish(FinishReason.LENGTH, prompt_tokens=3, cached_tokens=CACHED, completion_tokens=3),
        )
        await until(lambda: connection.client.load.running == 0)
        assert not connection.faults


@pytest.mark.parametrize("stream", [True, False])
def test_the_models_own_end_is_counted_and_not_delivered(run: Run, servicer: Servicer, stream: bool) -> None:
    async def story() -> None:
        async with connected(servicer, steps=[[[50], [51], [EOS]]]) as connection:
            connection.client.submit(["a"], ask(max_tokens=9, stream=stream))
            assert await connection.answer() == ([50, 51], Finish(FinishReason.STOP, EOS, 3, CACHED, 3))

    run(story())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("knows_stop_ids", [True, False])
def test_a_stop_id_ends_an_answer_also_where_the_server_ignores_it(
    run: Run, servicer: Servicer, stream: bool, knows_stop_ids: bool
) -> None:
    async def story() -> None:
        plan = {"steps": [[[50], [60, 61], [62]]], "knows_stop_ids": knows_stop_ids, "step_seconds": 0.01}
        async with connected(servicer, **plan) as connection:
            connection.client.submit(["a"], ask(max_tokens=9, stop_token_ids=u32(EOS, 61), stream=stream))
            assert await connection.answer() == ([50, 60], Finish(FinishReason.STOP, 61, 3, CACHED, 3))
            if stream and not knows_stop_ids:
                assert (await servicer.event("aborted"))["by"] == "Abort"
            else:
                await servicer.event("ended")

    run(story())


@story
async def test_before_min_tokens_a_stop_id_is_none(servicer: Servicer) -> None:
    async with connected(servicer, steps=[[[60], [61], [61]]], knows_stop_ids=False) as connection:
        connection.client.submit(["a"], ask(stop_token_ids=u32(61), min_tokens=2))
        assert (await connection.answer())[0] == [60, 61]


@story
async def test_what_was_streamed_stands_although_the_engine_trims_a_stop(servicer: Servicer) -> None:
    """As if a stop string had been sent, which we never do: the server's last message is shorter than its chunks."""
    async with connected(servicer, steps=[[[97], [98], [99], [100]]]) as connection:
        original = native_client.translation.generate_message

        def with_stop(*arguments: Any) -> Any:
            message = original(*arguments)
            message.stop = ["bcd"]
            return message

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_client.translation, "generate_message", with_stop)
            connection.client.submit(["a"], ask(max_tokens=9))
        said, finish = await connection.answer()
        assert (said, finish.reason, finish.completion_tokens) == ([97, 98, 99], FinishReason.STOP, 3)


@story
async def test_answers_that_end_early_have_no_reason_and_get_one(servicer: Servicer) -> None:
    steps = [[[50], [EOS]], [[50], [400]], [[50], [51, 52]], [[50], [51], [52], [53], [54]]]
    async with connected(servicer, steps=steps) as connection:
        connection.client.submit(list("abcd"), ask(n=4, max_tokens=5, stop_token_ids=u32(EOS, 400)))
        answers = await connection.answers(4)
        assert {key: said for key, (said, _) in answers.items()} == {
            "a": [50],
            "b": [50],
            "c": [50, 51, 52, 99, 99],
            "d": [50, 51, 52, 53, 54],
        }
        reasons = {key: (finish.reason, finish.matched_stop) for key, (_, finish) in answers.items()}
        assert reasons["a"] == (FinishReason.STOP, EOS)
        assert reasons["b"] == (FinishReason.STOP, None)
        assert reasons["c"][0] is reasons["d"][0] is FinishReason.LENGTH


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("at", [0, 2])
def test_an_end_without_a_reason_is_a_failure(run: Run, servicer: Servicer, n: int, at: int) -> None:
    async def story() -> None:
        async with connected(servicer, fails_silently_at=at) as connection:
            connection.client.submit(list("ab")[:n], ask(n=n))
            for said, finish in (await connection.answers(n)).values():
                assert said == [100, 101, 102][:at]
                assert (finish.reason, finish.retryable) == (FinishReason.ERROR, True)
                assert "without a reason" in finish.error

    run(story())


@pytest.mark.parametrize(
    ("reason", "expected", "text"),
    [
        ("cancelled", FinishReason.ABORTED, ""),
        ("timeout", FinishReason.DEADLINE, "time limit"),
        ("error", FinishReason.ERROR, "failed"),
        ("not_finished", FinishReason.ERROR, "unfinished"),
        ("boredom", FinishReason.ERROR, "'boredom'"),
    ],
)
def test_other_reasons(run: Run, servicer: Servicer, reason: str, expected: FinishReason, text: str) -> None:
    async def story() -> None:
        async with connected(servicer, reason=reason) as connection:
            connection.client.submit(["a"], ask())
            said, finish = await connection.answer()
            assert len(said) == 5 and finish.reason is expected and text in finish.error

    run(story())


# --- errors ---------------------------------------------------------------------------------------------------------


@story
async def test_a_prompt_too_long_for_the_context_never_leaves(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask([11] * LIMIT))
        said, finish = await connection.answer()
        assert not said and finish.reason is FinishReason.REJECTED and f"context of {LIMIT}" in finish.error


@story
async def test_a_bias_beyond_the_vocabulary_is_refused(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask(sampling=Sampling(logit_bias=((VOCABULARY, 1.0),))))
        assert f"below {VOCABULARY}" in (await connection.answer())[1].error


@story
async def test_a_phase_is_refused_with_the_remedy(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask(phase="prefill"))
        _, finish = await connection.answer()
        assert finish.reason is FinishReason.REJECTED and "OpenEngine" in finish.error


@story
async def test_what_the_engine_calls_its_own_fault_may_be_the_requests(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask([11] * 900))
        _, finish = await connection.answer()
        assert (finish.reason, finish.retryable) == (FinishReason.REJECTED, False)
        assert "should not exceed max_num_tokens (800)" in finish.error


@story
async def test_an_invalid_argument_is_the_requests_fault(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask(sampling=Sampling(top_p=2.0)))
        _, finish = await connection.answer()
        assert finish.reason is FinishReason.REJECTED and "top_p" in finish.error


@story
async def test_an_engine_that_breaks_says_so_after_what_it_said(servicer: Servicer) -> None:
    async with connected(servicer, fails_at=2, failure="CUDA error") as connection:
        connection.client.submit(["a"], ask())
        said, finish = await connection.answer()
        assert said == [100, 101]
        assert (finish.reason, finish.retryable) == (FinishReason.ERROR, True) and "CUDA error" in finish.error


@pytest.mark.parametrize(("code", "reason"), [(400, FinishReason.REJECTED), (500, FinishReason.ERROR)])
def test_errors_of_old_servers_are_understood(run: Run, servicer: Servicer, code: int, reason: FinishReason) -> None:
    async def story() -> None:
        error = {"message": "no such thing", "type": "ValueError", "code": code}
        async with connected(servicer, old_error=error) as connection:
            connection.client.submit(["a"], ask())
            _, finish = await connection.answer()
            assert finish.reason is reason and "no such thing" in finish.error

    run(story())


@story
async def test_a_message_larger_than_the_server_takes_is_the_requests_fault(servicer: Servicer) -> None:
    async with connected(servicer, max_seq_len=1 << 26, max_num_tokens=1 << 26) as connection:
        connection.client.submit(["a"], Submission("big", u32(1 << 31) * (7 << 20), 1))
        _, finish = await connection.answer()
        assert finish.reason is FinishReason.REJECTED and "larger than max" in finish.error


@story
async def test_a_call_that_was_not_taken_on_is_made_again(servicer: Servicer) -> None:
    async with connected(servicer, refusals=2) as connection:
        connection.client.submit(["a"], ask(max_tokens=2))
        first, second, third = [await servicer.request() for _ in range(3)]
        assert first == second == third
        assert (await connection.answer())[0] == [100, 101]


def test_a_call_that_is_never_taken_on_fails(run: Run, servicer: Servicer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "REFUSAL_PAUSE", 0.001)

    async def story() -> None:
        async with connected(servicer, refusals=1000) as connection:
            connection.client.submit(["a"], ask())
            _, finish = await connection.answer()
            assert (finish.reason, finish.retryable) == (FinishReason.ERROR, True) and "CANCELLED" in finish.error
            assert connection.client.load.running == 0

    run(story())


@story
async def test_a_call_that_waits_to_be_made_again_can_be_aborted(servicer: Servicer) -> None:
    async with connected(servicer, refusals=2) as connection:
        connection.client.submit(["a"], ask())
        await servicer.request()
        await servicer.request()
        await until(lambda: connection.client.unconfirmed_aborts == 0 and paused(connection.client))
        connection.client.abort("a")
        assert connection.client.load.running == connection.client.unconfirmed_aborts == 0
        connection.client.submit(["b"], ask(max_tokens=1))
        assert (await connection.answers(1)).keys() == {"b"}


def paused(client: NativeClient[str]) -> bool:
    return any(call.pause is not None for call, _ in client._calls._running.values())


# --- aborts ---------------------------------------------------------------------------------------------------------


@story
async def test_an_abort_reaches_the_engine_and_is_confirmed_when_the_call_has_ended(servicer: Servicer) -> None:
    async with connected(servicer, hangs_at=2) as connection:
        connection.client.submit(["a"], ask())
        request = await servicer.request()
        assert [(await connection.deliveries.get())[1] for _ in range(2)] == [[100], [101]]
        connection.client.abort("a")
        assert connection.client.unconfirmed_aborts == 1
        aborted = await servicer.event("aborted")
        assert (aborted["by"], aborted["request_id"]) == ("Abort", request["request_id"])
        await servicer.event("ended")
        await until(lambda: connection.client.unconfirmed_aborts == 0)
        assert connection.deliveries.empty() and connection.client.load.running == 0


@story
async def test_one_answer_of_several_is_dropped_and_the_last_one_aborts(servicer: Servicer) -> None:
    async with connected(servicer, hangs_at=2) as connection:
        connection.client.submit(["a", "b"], ask(n=2))
        await servicer.request()
        for _ in range(4):
            await connection.deliveries.get()
        connection.client.abort("a")
        connection.client.abort("a")
        assert connection.client.unconfirmed_aborts == 0
        connection.client.abort("b")
        assert (await servicer.event("aborted", "not found"))["event"] == "aborted"
        await until(lambda: connection.client.unconfirmed_aborts == 0)


@story
async def test_an_abort_that_the_server_does_not_find_ends_in_a_cancel(servicer: Servicer) -> None:
    async with connected(servicer, hangs_at=0, has_begun=False) as connection:
        connection.client.submit(["a"], ask())
        await servicer.request()
        connection.client.abort("a")
        for _ in range(calls.ABORT_TRIES):
            await servicer.event("not found")
        assert (await servicer.event("aborted"))["by"] == "cancel"
        await until(lambda: connection.client.unconfirmed_aborts == 0)


@story
async def test_a_stream_is_drained_while_nobody_takes_its_tokens(servicer: Servicer) -> None:
    """More than HTTP/2's windows hold: a server that cannot write on would not hear of the abort."""
    step = list(range(100, 400)) * 10
    async with connected(servicer, steps=[[step] * 20], max_seq_len=1 << 20) as connection:
        connection.client.submit(["a"], ask(max_tokens=60_000))
        said, finish = await connection.answer()
        assert len(said) == 60_000 and finish.reason is FinishReason.LENGTH


@story
async def test_a_client_that_goes_leaves_nothing_running(servicer: Servicer) -> None:
    async with connected(servicer, hangs_at=1) as connection:
        connection.client.submit(["a"], ask())
        await connection.deliveries.get()
    assert (await servicer.event("aborted"))["by"] == "cancel"


# --- logprobs -------------------------------------------------------------------------------------------------------


def of_token(token_id: int) -> float:
    """What the server's engine says of a token that was sampled."""
    return -0.5 * (token_id % 7 + 1)


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_are_sorted_and_cut(run: Run, servicer: Servicer, stream: bool) -> None:
    async def story() -> None:
        async with connected(servicer) as connection:
            connection.client.submit(["a"], ask(max_tokens=2, logprobs=2, stream=stream))
            found = Logprobs([], [])
            for scores in await all_logprobs(connection):
                found = Logprobs([*found.logprobs, *scores.logprobs], [*found.alternatives, *scores.alternatives])
            assert found.logprobs == [of_token(100), of_token(101)]
            every = [[(token, of_token(token)), (300, -1.0), (301, -2.0)] for token in (100, 101)]
            expected = [tuple(sorted(each, key=lambda pair: -pair[1])[:2]) for each in every]
            assert [tuple(each) for each in found.alternatives] == expected

    run(story())


@story
async def test_a_logprob_that_the_engine_did_not_tell_is_not_certainty(servicer: Servicer) -> None:
    async with connected(servicer, lacks_sampled=True) as connection:
        connection.client.submit(["a"], ask(max_tokens=1, logprobs=2))
        (scores,) = await all_logprobs(connection)
        assert scores.logprobs == [UNKNOWN_LOGPROB] and scores.alternatives == [((300, -1.0), (301, -2.0))]


@story
async def test_logprobs_without_alternatives(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask(max_tokens=1, logprobs=0))
        (scores,) = await all_logprobs(connection)
        assert scores == Logprobs([of_token(100)], [()])


@story
async def test_prompt_logprobs_stand_where_they_belong(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        connection.client.submit(["a"], ask([11, 12, 13], max_tokens=1, prompt_logprobs=1))
        assert "streaming" not in await servicer.request(), "since they come with the end only"
        _, finish = await connection.answer()
        assert finish.prompt_logprobs is not None
        assert finish.prompt_logprobs.logprobs == [0.0, of_token(12), of_token(13)]
        assert [len(each) for each in finish.prompt_logprobs.alternatives] == [0, 1, 1]


async def all_logprobs(connection: Connection) -> list[Logprobs]:
    """Those of all deliveries up to the end."""
    found = []
    while True:
        _, token_ids, finish, scores = await connection.deliveries.get()
        if scores is not None:
            assert len(scores.logprobs) == len(token_ids)
            found.append(scores)
        if finish is not None:
            return found


# --- many -----------------------------------------------------------------------------------------------------------


@story
async def test_what_comes_in_one_turn_of_the_loop_is_one_batch(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        for key in "abc":
            connection.client.submit([key], ask([11] * LIMIT))
        await connection.answers(3)
        assert connection.batches == [3]


@story
async def test_hundreds_of_streams_at_once(servicer: Servicer) -> None:
    async with connected(servicer) as connection:
        keys = [str(number) for number in range(300)]
        for key in keys:
            connection.client.submit([key], ask(max_tokens=3))
        answers = await connection.answers(len(keys))
        assert all(
            said == [100, 101, 102] and finish.reason is FinishReason.LENGTH for said, finish in answers.values()
        )
        assert not connection.faults and math.isfinite(connection.client.last_frame_at)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
