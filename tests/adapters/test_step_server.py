"""Tests of the executor's half of the step stream, over real gRPC, with a gateway of a few lines."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from engine_adapters import codec
from engine_adapters.base import (
    EngineInfo,
    Finish,
    FinishReason,
    KvCleared,
    KvRemoved,
    KvStored,
    Load,
    Logprobs,
    Sampling,
    Submission,
)
from engine_adapters.step import PROTOCOL_VERSION, messages
from engine_adapters.step import server as step_server
from engine_adapters.step.messages import ClientFrame, Finished, StepFrame, Submit
from engine_adapters.step.server import StepServer
from engine_adapters.step.session import Stream
from tests.attach import Gateway, columns, f32, u32, u64

FEATURES = frozenset({"n", "logprobs", "constraint.json"})
INFO = EngineInfo("fake", "7", "model", 1000, 4096, 8, b"\1\2", (998, 999), 16, 2, FEATURES)
Run = Callable[[Coroutine[Any, Any, None]], None]


class FakeEngine:
    """Remembers what it was asked; the tests emit what they like."""

    def __init__(self) -> None:
        self.submitted: asyncio.Queue[tuple[Sequence[Stream], Submission]] = asyncio.Queue()
        self.aborted: asyncio.Queue[Stream] = asyncio.Queue()
        self.running = 0
        self.problem = ""

    def info(self) -> EngineInfo:
        return INFO

    def submit(self, streams: Sequence[Stream], submission: Submission) -> None:
        if submission.request_id == "poison":
            raise RuntimeError("out of memory")
        self.submitted.put_nowait((streams, submission))

    def abort(self, stream: Stream) -> None:
        self.aborted.put_nowait(stream)

    def load(self) -> Load:
        return Load(running=self.running, waiting=2, kv_tokens_used=3, kv_tokens_total=4, tokens_per_second=5.0)

    def health(self) -> str:
        return self.problem


class Fixture:
    """A fake engine behind a real server, and gateways attached to it."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.server = StepServer(self.engine)
        self.gateways: list[Gateway] = []
        self.port = 0

    async def attach(self) -> Gateway:
        gateway = Gateway(f"127.0.0.1:{self.port}")
        self.gateways.append(gateway)
        await gateway.greet()
        return gateway

    async def submit(self, gateway: Gateway, submit: Submit) -> Stream:
        (stream,), _ = await self.start(gateway, submit)
        return stream

    async def start(self, gateway: Gateway, submit: Submit) -> tuple[Sequence[Stream], Submission]:
        await gateway.send(ClientFrame(submits=[submit]))
        return await self.engine.submitted.get()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Fixture]:
    fixture = Fixture()
    fixture.port = await fixture.server.start("127.0.0.1", 0)
    try:
        yield fixture
    finally:
        for gateway in fixture.gateways:
            await gateway.leave()
        await fixture.server.stop("the test is over")


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One loop for all: grpc.aio delivers every loop's events through one queue, and minds when a loop closes."""
    with asyncio.Runner() as runner:
        yield lambda story: runner.run(asyncio.wait_for(story, 20))


def request(stream_id: int, **changes: Any) -> Submit:
    fields: dict[str, Any] = {"request_id": f"r{stream_id}", "token_ids": u32(1, 2, 3), "max_tokens": 10}
    return Submit(stream_id=stream_id, **(fields | changes))


def test_the_first_frame_says_the_version_and_the_load_at_once(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = Gateway(f"127.0.0.1:{fixture.port}")
            fixture.gateways.append(gateway)
            fixture.engine.running = 1
            await gateway.send(ClientFrame(protocol_version=PROTOCOL_VERSION))
            frame = await gateway.read()
            assert frame == StepFrame(
                protocol_version=PROTOCOL_VERSION,
                load=messages.Load(running=1, waiting=2, kv_tokens_used=3, kv_tokens_total=4, tokens_per_second=5.0),
            )

    run(story())


@pytest.mark.parametrize(
    ("hello", "found"),
    [(ClientFrame(protocol_version=99), "99"), (ClientFrame(), "none"), (b"\xff\xff", "none")],
    ids=["another version", "no version", "no frame"],
)
def test_a_gateway_of_another_version_is_told_so(run: Run, hello: ClientFrame | bytes, found: str) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = Gateway(f"127.0.0.1:{fixture.port}")
            fixture.gateways.append(gateway)
            await gateway.send(hello)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await gateway.call.read()
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            details = caught.value.details() or ""
            assert f"speaks version {PROTOCOL_VERSION}" in details and f"carried {found}" in details
            assert fixture.server.faults == {"bad_hello": 1}

    run(story())


def test_a_gateway_that_says_nothing_at_first_is_sent_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_server, "HELLO_SECONDS", 0.05)

    async def story() -> None:
        async with serving() as fixture:
            gateway = Gateway(f"127.0.0.1:{fixture.port}")
            fixture.gateways.append(gateway)
            assert await gateway.call.code() is grpc.StatusCode.FAILED_PRECONDITION

    run(story())


def test_an_idle_stream_gets_a_frame_at_least_every_second(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            began = time.monotonic()
            fixture.engine.running = 5
            frame = await gateway.read()
            assert time.monotonic() - began < 1.0
            assert frame.load is not None and frame.load.running == 5
            assert not frame.protocol_version

    run(story())


def test_a_request_arrives_whole(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            sampling = messages.Sampling(
                temperature=0.0, seed=-3, top_k=0, logit_bias_token_ids=u32(5, 999), logit_biases=f32(-100, 1.5)
            )
            submit = request(7, sampling=sampling, stop_token_ids=u32(9), ignore_eos=True, n=2, logprobs=0, dp_rank=1)
            await gateway.send(ClientFrame(submits=[submit]))
            streams, submission = await fixture.engine.submitted.get()
            assert repr(streams) == "[<Stream 7 'r7'>, <Stream 8 'r7'>]"
            assert submission == Submission(
                request_id="r7",
                token_ids=u32(1, 2, 3),
                max_tokens=10,
                sampling=Sampling(temperature=0.0, seed=-3, top_k=0, logit_bias=((5, -100.0), (999, 1.5))),
                stop_token_ids=u32(9),
                ignore_eos=True,
                n=2,
                logprobs=0,
                dp_rank=1,
            )

    run(story())


def test_a_step_of_one_token_each_is_one_frame_without_counts(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            streams = [await fixture.submit(gateway, request(stream_id)) for stream_id in (4, 5, 6)]
            fixture.server.emit(17, [(stream, (100 + stream.stream_id,), None) for stream in streams])
            frame = await gateway.read_news()
            assert frame.step == 17
            assert frame.stream_ids == u32(4, 5, 6)
            assert frame.token_ids == u32(104, 105, 106)
            assert frame.counts == b""

    run(story())


def test_counts_say_how_many_tokens_each_stream_got(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            first, second, third = [await fixture.submit(gateway, request(stream_id)) for stream_id in (1, 2, 3)]
            end = Finish(FinishReason.STOP, matched_stop=999, prompt_tokens=3, completion_tokens=1)
            fixture.server.emit(1, [(first, (10, 11, 12), None), (second, (20,), None), (third, (), end)])
            frame = await gateway.read_news()
            assert frame.counts == u32(3, 1)
            assert columns(frame) == {1: [10, 11, 12], 2: [20]}
            assert frame.finished == [
                Finished(
                    stream_id=3,
                    reason=messages.FINISH_REASON_STOP,
                    matched_stop=999,
                    prompt_tokens=3,
                    completion_tokens=1,
                )
            ]

    run(story())


def test_a_slow_reader_never_stalls_a_step_and_misses_nothing(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            slow, quick = await fixture.attach(), await fixture.attach()
            slow_streams = [await fixture.submit(slow, request(stream_id)) for stream_id in range(1, 9)]
            quick_stream = await fixture.submit(quick, request(1))
            steps, each = 200, 1000
            for step in range(steps):
                token_ids = range(step * each, (step + 1) * each)
                fixture.server.emit(step, [(stream, token_ids, None) for stream in slow_streams])
                fixture.server.emit(step, [(quick_stream, (step,), None)])
                assert columns(await quick.read_news()) == {1: [step]}
            fixture.server.emit(steps, [(stream, (), Finish(FinishReason.LENGTH)) for stream in slow_streams])
            frames, ends = 0, 0
            got: dict[int, list[int]] = {stream_id: [] for stream_id in range(1, 9)}
            while ends < len(slow_streams):
                frame = await slow.read_news()
                frames += 1
                ends += len(frame.finished)
                for stream_id, token_ids in columns(frame).items():
                    got[stream_id] += token_ids
            assert got == {stream_id: [*range(steps * each)] for stream_id in range(1, 9)}
            assert frames < steps

    run(story())


def test_a_gateway_that_takes_no_frame_for_long_is_dropped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_server, "STUCK_SECONDS", 0.1)
    monkeypatch.setattr(step_server, "BEAT_SECONDS", 0.02)

    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            while fixture.engine.aborted.empty():
                fixture.server.emit(1, [(stream, range(10_000), None)])
                await fixture.server.frames_taken(0.01)
            assert await fixture.engine.aborted.get() is stream
            assert fixture.server.faults == {"stuck_gateway": 1}

    run(story())


def test_what_an_engine_emits_is_in_a_frame_when_frames_taken_returns(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            for step in range(50):
                fixture.server.emit(step, [(stream, (step,), None)])
                await fixture.server.frames_taken(5)
            for step in range(50):
                frame = await gateway.read_news()
                assert (frame.step, columns(frame)) == (step, {1: [step]})

    run(story())


@pytest.mark.parametrize("leave", ["cancels", "closes its channel", "ends its half"])
def test_when_a_gateway_goes_its_streams_are_aborted(run: Run, leave: str) -> None:
    async def story() -> None:
        async with serving() as fixture:
            leaving, staying = await fixture.attach(), await fixture.attach()
            streams = {await fixture.submit(leaving, request(stream_id)) for stream_id in (1, 2)}
            kept = await fixture.submit(staying, request(1))
            if leave == "cancels":
                leaving.call.cancel()
            elif leave == "closes its channel":
                await leaving.channel.close()
            else:
                await leaving.call.done_writing()
            assert {await fixture.engine.aborted.get() for _ in streams} == streams
            fixture.server.emit(1, [(stream, (5,), Finish(FinishReason.ABORTED)) for stream in (*streams, kept)])
            assert columns(await staying.read_news()) == {1: [5]}
            assert fixture.engine.aborted.empty()

    run(story())


def test_two_gateways_may_use_the_same_stream_ids(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateways = [await fixture.attach(), await fixture.attach()]
            streams = [await fixture.submit(gateway, request(1)) for gateway in gateways]
            fixture.server.emit(1, [(streams[0], (10,), None), (streams[1], (20,), None)])
            assert [columns(await gateway.read_news()) for gateway in gateways] == [{1: [10]}, {1: [20]}]

    run(story())


def test_a_stream_whose_time_is_over_is_ended_by_the_executor_itself(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            (stream,), submission = await fixture.start(gateway, request(1, timeout_ms=50))
            assert submission.ends_at - time.monotonic() <= 0.05
            end = await gateway.read_end()
            assert (end.stream_id, end.reason) == (1, messages.FINISH_REASON_DEADLINE)
            assert await fixture.engine.aborted.get() is stream

            quick = await fixture.submit(gateway, request(5, timeout_ms=50))
            fixture.server.emit(1, [(quick, (), Finish(FinishReason.STOP))])
            assert (await gateway.read_end()).reason == messages.FINISH_REASON_STOP
            assert quick.deadline is not None and quick.deadline.cancelled()

    run(story())


def test_an_abort_reaches_the_engine_and_its_end_the_gateway(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            await gateway.send(ClientFrame(aborts=u32(12345, 1)))
            assert await fixture.engine.aborted.get() is stream
            fixture.server.emit(3, [(stream, (), Finish(FinishReason.ABORTED, completion_tokens=2))])
            assert await gateway.read_end() == Finished(
                stream_id=1, reason=messages.FINISH_REASON_ABORTED, completion_tokens=2
            )
            assert not fixture.server.faults

    run(story())


def test_what_comes_for_a_stream_after_its_end_is_dropped(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            end = Finish(FinishReason.LENGTH)
            fixture.server.emit(1, [(stream, (5,), end)])
            fixture.server.emit(2, [(stream, (6,), end)])
            frame = await gateway.read_news()
            assert columns(frame) == {1: [5]} and len(frame.finished) == 1

    run(story())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"token_ids": b""}, "the prompt is empty"),
        ({"token_ids": b"12345"}, "token_ids has 5 bytes"),
        ({"stop_token_ids": b"1"}, "stop_token_ids has 1 bytes"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"token_ids": u32(999, 1000, 3)}, "token id 1000 is not in this model's vocabulary of 1000"),
        ({"dp_rank": 2}, "dp_rank is 2, but there are 2 ranks"),
        ({"sampling": messages.Sampling(logit_bias_token_ids=u32(5))}, "a bias for each token id"),
        (
            {"sampling": messages.Sampling(logit_bias_token_ids=u32(1000), logit_biases=f32(1))},
            "logit_bias names token id 1000",
        ),
        ({"constraint": messages.Constraint("regex", "a*")}, "no constraint of the kind 'regex'"),
        ({"constraint": messages.Constraint("json", begins_after=u32(5))}, "in the middle of an answer"),
        ({"constraint": messages.Constraint("json", begins_after=b"123")}, "in the middle of an answer"),
        ({"sampling": messages.Sampling(bad_token_ids=b"1")}, "bad_token_ids is no column"),
        ({"phase": 3}, "phase 3 is not known here"),
        ({"phase": messages.PHASE_PREFILL}, "serves whole requests only"),
    ],
)
def test_a_request_that_makes_no_sense_is_rejected(run: Run, changes: dict[str, Any], problem: str) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            await gateway.send(ClientFrame(submits=[request(1, **changes), request(2)]))
            end = await gateway.read_end()
            assert (end.stream_id, end.reason, end.retryable) == (1, messages.FINISH_REASON_REJECTED, False)
            assert problem in end.error
            (stream,), _ = await fixture.engine.submitted.get()
            assert stream.stream_id == 2
            assert fixture.server.faults == {"bad_submit": 1}

    run(story())


def test_a_stream_id_used_twice_ends_both_its_streams(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            await gateway.send(ClientFrame(submits=[request(1)]))
            end = await gateway.read_end()
            assert end.reason == messages.FINISH_REASON_REJECTED and "were used again" in end.error
            assert await fixture.engine.aborted.get() is stream
            fixture.server.emit(1, [(stream, (), Finish(FinishReason.ABORTED))])
            again = await fixture.submit(gateway, request(1))
            fixture.server.emit(2, [(again, (5,), None)])
            frame = await gateway.read_news()
            assert columns(frame) == {1: [5]} and not frame.finished

    run(story())


def test_every_stream_of_a_submit_is_rejected_when_one_of_its_ids_is_in_use(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(3))
            await gateway.send(ClientFrame(submits=[request(2, n=3)]))
            ends = (await gateway.read_news()).finished
            assert sorted(end.stream_id for end in ends) == [2, 3, 4]
            assert {end.reason for end in ends} == {messages.FINISH_REASON_REJECTED}
            assert await fixture.engine.aborted.get() is stream

    run(story())


@pytest.mark.parametrize(
    ("stream_id", "n", "ended", "problem"),
    [(1, 129, range(1, 129), "n is 129"), (2**32 - 2, 3, range(2**32 - 2, 2**32), "stream ids must be below")],
)
def test_answers_that_cannot_be_counted_are_rejected(
    run: Run, stream_id: int, n: int, ended: range, problem: str
) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            await gateway.send(ClientFrame(submits=[request(stream_id, n=n)]))
            ends = (await gateway.read_news()).finished
            assert [end.stream_id for end in ends] == [*ended]
            assert all(end.reason == messages.FINISH_REASON_REJECTED and problem in end.error for end in ends)

    run(story())


@pytest.mark.parametrize(
    "nonsense",
    [b"\xff\xff\xff", b"\x12\x7f\x01", codec.encode(ClientFrame(aborts=b"12345"))],
    ids=["no message", "cut off", "half a stream id"],
)
def test_a_frame_that_cannot_be_read_ends_the_session_and_no_other(run: Run, nonsense: bytes) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway, other = await fixture.attach(), await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            others = await fixture.submit(other, request(1))
            await gateway.send(nonsense)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while True:
                    await gateway.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "malformed frame" in (caught.value.details() or "")
            assert await fixture.engine.aborted.get() is stream
            fixture.server.emit(1, [(others, (5,), None)])
            assert columns(await other.read_news()) == {1: [5]}
            assert fixture.server.faults == {"malformed_frame": 1} and fixture.engine.aborted.empty()

    run(story())


def test_logprobs_come_with_the_tokens_they_are_of(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            (asked, other), _ = await fixture.start(gateway, request(1, n=2))
            scores = Logprobs([-0.5, -1.5], [[(10, -0.5), (11, -1.0)], []])
            fixture.server.emit(1, [(asked, (10, 12), None), (other, (20,), None)], {asked: scores})
            frame = await gateway.read_news()
            assert columns(frame) == {1: [10, 12], 2: [20]}
            assert frame.logprobs == [
                messages.TokenLogprobs(
                    stream_id=1,
                    logprobs=f32(-0.5, -1.5),
                    top_counts=u32(2, 0),
                    top_token_ids=u32(10, 11),
                    top_logprobs=f32(-0.5, -1.0),
                )
            ]

    run(story())


def test_logprobs_of_steps_that_share_a_frame_are_joined_like_their_tokens(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            for step in range(3):
                scores = Logprobs([-1.0 - step], [[(step, -0.25)]])
                fixture.server.emit(step, [(stream, (step,), None)], {stream: scores})
            frame = await gateway.read_news()
            assert columns(frame) == {1: [0, 1, 2]}
            (entry,) = frame.logprobs
            assert entry.logprobs == f32(-1, -2, -3) and entry.top_token_ids == u32(0, 1, 2)

    run(story())


def test_prompt_logprobs_come_with_the_end(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            scores = Logprobs([0.0, -2.0], [[], [(7, -0.5)]])
            fixture.server.emit(1, [(stream, (), Finish(FinishReason.STOP, prompt_logprobs=scores))])
            end = await gateway.read_end()
            assert end.prompt_logprobs == messages.TokenLogprobs(
                logprobs=f32(0, -2), top_counts=u32(0, 1), top_token_ids=u32(7), top_logprobs=f32(-0.5)
            )

    run(story())


def test_kv_events_reach_every_gateway_in_order_under_their_numbers(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateways = [await fixture.attach(), await fixture.attach()]
            fixture.server.emit_kv_events([KvStored(0, (11, 12), u32(1, 2, 3, 4), "salt", dp_rank=1)])
            fixture.server.emit_kv_events([KvRemoved((12,), dp_rank=1), KvCleared(dp_rank=1)])
            for gateway in gateways:
                frame = await gateway.read_news()
                assert frame.kv_event_number == 3
                assert frame.kv_events == [
                    messages.KvEvent(
                        kind=messages.KV_EVENT_KIND_STORED,
                        dp_rank=1,
                        block_hashes=u64(11, 12),
                        token_ids=u32(1, 2, 3, 4),
                        cache_salt="salt",
                    ),
                    messages.KvEvent(kind=messages.KV_EVENT_KIND_REMOVED, dp_rank=1, block_hashes=u64(12)),
                    messages.KvEvent(kind=messages.KV_EVENT_KIND_CLEARED, dp_rank=1),
                ]

    run(story())


def test_a_gateway_that_comes_later_is_first_told_all_that_is_cached(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            await fixture.attach()
            fixture.server.emit_kv_events(
                [
                    KvStored(0, (11, 12, 13), u32(1, 2, 3, 4, 5, 6)),
                    KvStored(0, (21,), u32(1, 2), "salt"),
                    KvStored(0, (31,), u32(1, 2), dp_rank=1),
                    KvStored(12, (14,), u32(7, 8)),
                    KvRemoved((13, 99)),
                    KvCleared(dp_rank=1),
                ]
            )
            late = Gateway(f"127.0.0.1:{fixture.port}")
            fixture.gateways.append(late)
            first = await late.greet()
            stored = messages.KV_EVENT_KIND_STORED
            assert first.kv_events == [
                messages.KvEvent(stored, block_hashes=u64(11, 12), token_ids=u32(1, 2, 3, 4)),
                messages.KvEvent(stored, block_hashes=u64(21), token_ids=u32(1, 2), cache_salt="salt"),
                messages.KvEvent(stored, parent_hash=12, block_hashes=u64(14), token_ids=u32(7, 8)),
            ]
            assert first.kv_event_number == 3
            fixture.server.emit_kv_events([KvRemoved((21,))])
            frame = await late.read_news()
            assert (frame.kv_event_number, len(frame.kv_events)) == (4, 1)

    run(story())


def test_what_is_cached_comes_in_pieces_and_what_changes_meanwhile_after_it(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            hashes = [*range(1, 1001)]
            fixture.server.emit_kv_events([KvStored(0, (block_hash,), u32(block_hash)) for block_hash in hashes])
            gateway = Gateway(f"127.0.0.1:{fixture.port}")
            fixture.gateways.append(gateway)
            frames = [await gateway.greet()]
            fixture.server.emit_kv_events([KvRemoved((7,))])
            while frames[-1].kv_event_number < 1001:
                frames.append(await gateway.read_news())
            events = [event for frame in frames for event in frame.kv_events]
            assert [event.block_hashes for event in events] == [u64(block_hash) for block_hash in (*hashes, 7)]
            assert events[-1].kind == messages.KV_EVENT_KIND_REMOVED
            assert max(len(frame.kv_events) for frame in frames) < 100

    run(story())


def test_an_engine_that_fails_to_take_a_request_fails_only_that_one(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            await gateway.send(ClientFrame(submits=[request(1, request_id="poison"), request(2)]))
            end = await gateway.read_end()
            assert end.reason == messages.FINISH_REASON_ERROR and "out of memory" in end.error
            (stream,), _ = await fixture.engine.submitted.get()
            assert stream.stream_id == 2

    run(story())


def test_stopping_ends_every_stream_so_that_it_can_be_tried_elsewhere(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            stream = await fixture.submit(gateway, request(1))
            fixture.server.emit(1, [(stream, (5, 6), None)])
            await fixture.server.stop("moving house")
            frame = await gateway.read_news()
            assert columns(frame) == {1: [5, 6]}
            assert frame.finished == [
                Finished(stream_id=1, reason=messages.FINISH_REASON_ERROR, error="moving house", retryable=True)
            ]
            assert await gateway.call.read() is grpc.aio.EOF
            assert await fixture.engine.aborted.get() is stream

    run(story())


def test_a_busy_port_is_an_error_that_names_it(run: Run) -> None:
    async def story() -> None:
        async with serving() as fixture:
            with pytest.raises(OSError, match=f"port {fixture.port}"):
                await StepServer(FakeEngine()).start("127.0.0.1", fixture.port)

    run(story())


def test_info_and_health_are_the_engines_own(run: Run) -> None:
    async def ask(gateway: Gateway, method: str) -> bytes:
        answer: bytes = await gateway.channel.unary_unary(method)(b"")
        return answer

    async def story() -> None:
        async with serving() as fixture:
            gateway = await fixture.attach()
            info = codec.decode(messages.Info, await ask(gateway, messages.EXECUTOR_GET_INFO))
            assert info == messages.Info(
                protocol_version=PROTOCOL_VERSION,
                engine="fake",
                engine_version="7",
                model="model",
                vocab_size=1000,
                context_length=4096,
                max_running=8,
                tokenizer_fingerprint=b"\1\2",
                eos_token_ids=u32(998, 999),
                kv_block_size=16,
                dp_size=2,
                features=["constraint.json", "logprobs", "n"],
            )
            healthy = codec.decode(messages.HealthReply, await ask(gateway, messages.EXECUTOR_HEALTH))
            assert healthy == messages.HealthReply(healthy=True)
            fixture.engine.problem = "a rank died"
            ill = codec.decode(messages.HealthReply, await ask(gateway, messages.EXECUTOR_HEALTH))
            assert ill == messages.HealthReply(healthy=False, message="a rank died")

    run(story())
