"""Tests of the gateway's half of the step stream, against the harness and against frames that no harness would send."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from engine_adapters import codec
from engine_adapters.base import (
    Delivery,
    EngineInfo,
    EngineLost,
    Finish,
    FinishReason,
    KvEvent,
    KvRemoved,
    KvStored,
    Load,
    Logprobs,
    RankLoad,
    Sampling,
    Submission,
)
from engine_adapters.serving import service_of
from engine_adapters.step import PROTOCOL_VERSION, messages, translation
from engine_adapters.step import client as step_client
from engine_adapters.step.client import StepClient
from engine_adapters.step.messages import StepFrame
from engine_adapters.step.server import StepServer
from engine_adapters.step.session import Stream
from tests.attach import f32, u32, u64

INFO = EngineInfo("fake", "7", "model", 1000, 4096, 8, b"\1\2", (998, 999), 16, 2, frozenset({"n", "logprobs"}))
Run = Callable[[Coroutine[Any, Any, None]], None]


class FakeEngine:
    """Remembers what it was asked; the tests emit what they like."""

    def __init__(self) -> None:
        self.submitted: asyncio.Queue[tuple[Sequence[Stream], Submission]] = asyncio.Queue()
        self.aborted: asyncio.Queue[Stream] = asyncio.Queue()
        self.current = Load(1, 2, 3, 4, 5.0, (RankLoad(1, 0, 3, 2), RankLoad(0, 2, 0, 2)))

    def info(self) -> EngineInfo:
        return INFO

    def submit(self, streams: Sequence[Stream], submission: Submission) -> None:
        self.submitted.put_nowait((streams, submission))

    def abort(self, stream: Stream) -> None:
        self.aborted.put_nowait(stream)

    def load(self) -> Load:
        return self.current

    def health(self) -> str:
        return ""


class Connection:
    """A client whose deliveries, KV events and faults are kept."""

    def __init__(self, port: int) -> None:
        self.faults: Counter[str] = Counter()
        self.deliveries: asyncio.Queue[Delivery[str]] = asyncio.Queue()
        self.kv_events: asyncio.Queue[tuple[Sequence[KvEvent], bool]] = asyncio.Queue()
        self.client: StepClient[str] = StepClient(
            f"127.0.0.1:{port}",
            lambda kind: self.faults.update([kind]),
            lambda events, is_first: self.kv_events.put_nowait((events, is_first)),
        )
        self._running: asyncio.Task[None] | None = None

    async def attach(self) -> None:
        """Returns when the executor has spoken."""
        await self.client.connect()
        self._running = asyncio.create_task(self.client.run(self._deliver))
        assert await self.kv_events.get() == ([], True)

    async def run(self) -> None:
        await self.client.connect()
        await self.client.run(self._deliver)

    async def leave(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self.client.close()

    def _deliver(self, deliveries: list[Delivery[str]]) -> None:
        for delivery in deliveries:
            self.deliveries.put_nowait(delivery)


@contextlib.asynccontextmanager
async def attached(make: Callable[[], Any] = FakeEngine) -> AsyncIterator[tuple[Connection, Any, StepServer]]:
    engine = make()
    server = StepServer(engine)
    connection = Connection(await server.start("127.0.0.1", 0))
    try:
        await connection.attach()
        yield connection, engine, server
    finally:
        await connection.leave()
        await server.stop("the test is over")


@contextlib.asynccontextmanager
async def attached_to(*frames: StepFrame) -> AsyncIterator[Connection]:
    """A connection to an executor that says these frames and then nothing."""

    async def attach(_requests: object, context: Any) -> None:
        await context.read()
        for frame in frames:
            await context.write(codec.encode(frame))
        await context.read()

    async def get_info(_request: bytes, _context: object) -> bytes:
        return codec.encode(translation.info_message(INFO))

    server = grpc.aio.server()
    methods = {
        messages.EXECUTOR_ATTACH: grpc.stream_stream_rpc_method_handler(attach),
        messages.EXECUTOR_GET_INFO: grpc.unary_unary_rpc_method_handler(get_info),
    }
    server.add_generic_rpc_handlers((service_of(methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = Connection(port)
    try:
        yield connection
    finally:
        await connection.leave()
        await server.stop(0)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One loop for all: grpc.aio delivers every loop's events through one queue, and minds when a loop closes."""
    with asyncio.Runner() as runner:
        yield lambda story: runner.run(asyncio.wait_for(story, 20))


def ask(request_id: str = "r", **changes: Any) -> Submission:
    return Submission(request_id, u32(1, 2, 3), 10, **changes)


def test_what_the_engine_says_of_itself_arrives_whole(run: Run) -> None:
    async def story() -> None:
        async with attached() as (connection, engine, _):
            assert await connection.client.connect() == INFO
            assert connection.client.load == engine.current

    run(story())


def test_a_submission_arrives_at_the_engine_as_it_was(run: Run) -> None:
    async def story() -> None:
        async with attached() as (connection, engine, _):
            submission = ask(
                sampling=Sampling(temperature=0.5, top_k=5, logit_bias=((7, -100.0), (8, 2.5))),
                min_tokens=2,
                n=2,
                logprobs=0,
                prompt_logprobs=3,
                priority=-1,
                cache_salt="salt",
                dp_rank=1,
            )
            connection.client.submit(["a", "b"], submission)
            streams, arrived = await engine.submitted.get()
            assert arrived == submission
            assert [stream.stream_id for stream in streams] == [1, 2]

    run(story())


def test_each_answer_goes_to_its_own_key(run: Run) -> None:
    async def story() -> None:
        async with attached() as (connection, engine, server):
            connection.client.submit(["a", "b"], ask(n=2, logprobs=1))
            (first, second), _ = await engine.submitted.get()
            end = Finish(FinishReason.LENGTH, prompt_tokens=3, completion_tokens=1)
            scores = Logprobs([-0.5, -1.0], [[(20, -0.5)], [(21, -1.0)]])
            server.emit(1, [(first, (10,), end), (second, (20, 21), None)], {second: scores})
            assert await connection.deliveries.get() == ("a", [10], end, None)
            assert await connection.deliveries.get() == ("b", [20, 21], None, scores)

    run(story())


def test_one_answer_of_several_is_aborted_alone(run: Run) -> None:
    async def story() -> None:
        async with attached() as (connection, engine, server):
            connection.client.submit(["a", "b"], ask(n=2))
            (first, second), _ = await engine.submitted.get()
            connection.client.abort("b")
            assert await engine.aborted.get() is second
            assert connection.client.unconfirmed_aborts == 1
            server.emit(1, [(first, (10,), None), (second, (20,), Finish(FinishReason.ABORTED))])
            assert await connection.deliveries.get() == ("a", (10,), None, None)
            assert connection.client.unconfirmed_aborts == 0 and not connection.faults

    run(story())


def test_an_answer_aborted_before_its_submit_left_is_aborted_right_behind_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_client, "FRAME_BYTES", 1)  # each submit in a frame of its own

    async def story() -> None:
        async with attached() as (connection, engine, _):
            for key in "ab":
                connection.client.submit([key], ask(key))
            connection.client.submit(["c", "d"], ask("c", n=2))
            connection.client.abort("d")
            started = [(await engine.submitted.get())[0] for _ in range(3)]
            assert await engine.aborted.get() is started[-1][1]
            assert connection.client.unconfirmed_aborts == 1

    run(story())


def test_a_submit_whose_answers_are_all_aborted_before_it_left_is_never_sent(run: Run) -> None:
    async def story() -> None:
        async with attached() as (connection, engine, _):
            connection.client.submit(["a", "b"], ask(n=2))
            connection.client.abort("b")
            connection.client.abort("a")
            assert connection.client.unconfirmed_aborts == 0
            connection.client.submit(["c"], ask("c"))
            assert (await engine.submitted.get())[1].request_id == "c"

    run(story())


@pytest.mark.parametrize(("keys", "n"), [("a", 2), ("", 0), ("a" * 129, 129)])
def test_keys_that_do_not_fit_n_are_an_error_of_the_caller(run: Run, keys: str, n: int) -> None:
    async def story() -> None:
        async with attached() as (connection, _, _):
            with pytest.raises(ValueError, match=f"n = {n}"):
                connection.client.submit(list(keys), ask(n=n))

    run(story())


def test_stream_ids_of_one_submit_never_wrap_around(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_client, "STREAM_ID_LIMIT", 10)

    async def story() -> None:
        async with attached() as (connection, engine, server):
            ids = []
            for keys in ("abcd", "efgh", "ijk", "l"):
                connection.client.submit(list(keys), ask(n=len(keys)))
                streams, _ = await engine.submitted.get()
                ids.append([stream.stream_id for stream in streams])
                if "g" not in keys:
                    server.emit(1, [(stream, (), Finish(FinishReason.LENGTH)) for stream in streams])
                    for _ in keys:
                        await connection.deliveries.get()
            assert ids == [[1, 2, 3, 4], [5, 6, 7, 8], [0, 1, 2], [3]]

    run(story())


def test_kv_events_arrive_and_the_first_frame_says_that_they_begin_anew(run: Run) -> None:
    async def story() -> None:
        async with attached() as (connection, _, server):
            events: list[KvEvent] = [KvStored(0, (11, 12), u32(1, 2), "salt", 1), KvRemoved((12,), 1)]
            server.emit_kv_events(events)
            assert await connection.kv_events.get() == (events, False)
            assert not connection.faults

    run(story())


HELLO = StepFrame(protocol_version=PROTOCOL_VERSION)
STORED = messages.KvEvent(messages.KV_EVENT_KIND_STORED, block_hashes=u64(11), token_ids=u32(1))


def test_kv_events_that_are_missing_are_counted(run: Run) -> None:
    frames = [
        HELLO,
        StepFrame(kv_events=[STORED], kv_event_number=1),
        StepFrame(kv_events=[STORED], kv_event_number=4),
        StepFrame(kv_events=[STORED, STORED], kv_event_number=6),
    ]

    async def story() -> None:
        async with attached_to(*frames) as connection:
            await connection.attach()
            for count in (1, 1, 2):
                assert await connection.kv_events.get() == ([KvStored(0, (11,), u32(1))] * count, False)
            assert connection.faults == {"kv_gap": 1}

    run(story())


@pytest.mark.parametrize(
    "frame",
    [
        StepFrame(kv_events=[messages.KvEvent(messages.KV_EVENT_KIND_STORED)], kv_event_number=1),
        StepFrame(stream_ids=u32(1), token_ids=u32(5, 6)),
        StepFrame(
            stream_ids=u32(1), token_ids=u32(5), logprobs=[messages.TokenLogprobs(1, f32(1, 2), top_counts=u32(0, 0))]
        ),
        StepFrame(logprobs=[messages.TokenLogprobs(1, b"123")]),
    ],
    ids=["a stored block of no tokens", "tokens nobody got", "more logprobs than tokens", "half a logprob"],
)
def test_a_frame_that_makes_no_sense_breaks_the_connection(run: Run, frame: StepFrame) -> None:
    async def story() -> None:
        async with attached_to(HELLO, frame) as connection:
            connection.client.submit(["a"], ask())
            with pytest.raises(EngineLost, match="malformed frame"):
                await connection.run()
            assert connection.faults == {"malformed_frame": 1}

    run(story())


def test_what_goes_wrong_here_is_told_to_whoever_runs_it(run: Run) -> None:
    def refuse(_deliveries: object) -> None:
        raise LookupError("nobody takes it")

    async def story() -> None:
        async with attached() as (connection, engine, server):
            other = Connection(int(connection.client._address.rpartition(":")[2]))
            await other.client.connect()
            running = asyncio.create_task(other.client.run(refuse))
            other.client.submit(["a"], ask())
            streams, _ = await engine.submitted.get()
            server.emit(1, [(streams[0], (5,), None)])
            with pytest.raises(LookupError, match="nobody takes it"):
                await running
            await other.leave()

            connection.client.submit(["b"], ask(priority=1 << 80))
            assert connection._running is not None
            with pytest.raises(ValueError, match="priority"):
                await connection._running

    run(story())
