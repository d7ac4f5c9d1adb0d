"""A request's stream on its HTTP loop: whatever comes when, each answer's tokens are handed over once and in order."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapters.base import Finish, FinishReason, Logprobs
from gateway import streams
from gateway.streams import LoopStreams, Stream, joined
from tests.processes import PATIENCE

STOP = Finish(FinishReason.STOP)


class Reader:
    """Takes what a stream hands over; asks for a pause when `pauses` says so, and when all `answers` have ended."""

    def __init__(self, pauses: Sequence[bool] = (), answers: int = 2) -> None:
        self._pauses = iter(pauses)
        self.parts: list[tuple[int, list[int], Finish | None]] = []
        self.unfinished = answers

    def take(self, index: int, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None) -> bool:
        self.parts.append((index, list(token_ids), finish))
        self.unfinished -= finish is not None
        return not next(self._pauses, False) and self.unfinished > 0

    def tokens(self, index: int) -> list[int]:
        return [token_id for choice, token_ids, _ in self.parts if choice == index for token_id in token_ids]


def in_loop(story: Callable[[Stream], Coroutine[Any, Any, None]], n: int = 2) -> None:
    """The story of a stream with `n` answers, on a loop of its own."""

    async def run() -> None:
        stream = Stream(LoopStreams(), "request", n)
        try:
            await asyncio.wait_for(story(stream), PATIENCE)
        finally:
            stream.close()

    asyncio.run(run())


def test_what_has_gathered_is_handed_over_together() -> None:
    async def story(stream: Stream) -> None:
        reader = Reader(pauses=[False, True])
        stream.deliver(0, [1, 2], None, None)
        stream.deliver(1, [3], None, None)
        stream.deliver(0, (4,), STOP, None)

        assert await stream.pump(reader.take)

        assert reader.parts == [(0, [1, 2, 4], STOP), (1, [3], None)]

    in_loop(story)


def test_what_comes_to_a_reader_that_waits_is_handed_over_at_once() -> None:
    async def story(stream: Stream) -> None:
        reader = Reader(pauses=[False, False, True])
        pumping = asyncio.create_task(stream.pump(reader.take))
        await asyncio.sleep(0)
        for index, token_id in ((0, 1), (1, 2), (0, 3)):
            stream.deliver(index, [token_id], None, None)
            assert reader.parts[-1] == (index, [token_id], None)

        assert await pumping

    in_loop(story)


def test_a_reader_that_pauses_gets_the_rest_later() -> None:
    async def story(stream: Stream) -> None:
        reader = Reader(pauses=[True, True])
        stream.deliver(0, [1], None, None)
        stream.deliver(1, [2], None, None)

        assert await stream.pump(reader.take)
        assert reader.parts == [(0, [1], None)]
        stream.deliver(1, [3], None, None)
        assert await stream.pump(reader.take)
        assert reader.parts == [(0, [1], None), (1, [2, 3], None)]

    in_loop(story)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30),
    pauses=st.lists(st.booleans(), max_size=30),
    turns=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_nothing_is_lost_or_changed_in_its_order(
    sizes: list[tuple[int, int]], pauses: list[bool], turns: list[bool]
) -> None:
    async def story(stream: Stream) -> None:
        reader = Reader(pauses, answers=3)
        sent: dict[int, list[int]] = {0: [], 1: [], 2: []}

        async def read() -> None:
            while reader.unfinished:
                await stream.pump(reader.take)

        reading = asyncio.create_task(read())
        for number, ((index, size), has_turn) in enumerate(zip(sizes, turns, strict=False)):
            token_ids = [100 * number + each for each in range(size)]
            sent[index] += token_ids
            stream.deliver(index, token_ids, None, None)
            if has_turn:
                await asyncio.sleep(0)
        for index in sent:
            stream.deliver(index, [], STOP, None)
        await reading

        assert {index: reader.tokens(index) for index in sent} == sent

    in_loop(story, n=3)


def test_what_a_reader_raises_is_raised_to_who_waits() -> None:
    async def story(stream: Stream) -> None:
        def take(*_: object) -> bool:
            raise ValueError("broken")

        pumping = asyncio.create_task(stream.pump(take))
        await asyncio.sleep(0)
        stream.deliver(0, [1], None, None)
        stream.deliver(0, [2], None, None)

        with pytest.raises(ValueError, match="broken"):
            await pumping

    in_loop(story)


def test_nothing_comes_after_an_end() -> None:
    async def story(stream: Stream) -> None:
        reader = Reader(pauses=[False, True])
        stream.deliver(0, [1], STOP, None)
        stream.deliver(0, [2], STOP, None)
        stream.deliver(1, [3], STOP, None)

        assert await stream.pump(reader.take)

        assert reader.parts == [(0, [1], STOP), (1, [3], STOP)]
        assert stream.close() == []

    in_loop(story)


def test_what_is_forgotten_is_not_handed_over() -> None:
    async def story(stream: Stream) -> None:
        reader = Reader(pauses=[True])
        stream.deliver(0, [1], None, None)
        stream.deliver(1, [2], None, None)
        stream.forget(0)
        stream.deliver(0, [3], STOP, None)

        assert await stream.pump(reader.take)

        assert reader.parts == [(1, [2], None)]
        second = stream.choices[1]
        assert stream.close() == [second]

    in_loop(story)


def test_a_reader_that_left_loses_nothing_that_comes_later() -> None:
    async def story(stream: Stream) -> None:
        pumping = asyncio.create_task(stream.pump(Reader().take))
        await asyncio.sleep(0)
        pumping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pumping
        stream.deliver(0, [1], None, None)

        reader = Reader(pauses=[True])
        assert await stream.pump(reader.take)
        assert reader.parts == [(0, [1], None)]

    in_loop(story)


@pytest.mark.parametrize("fails", [True, False])
def test_a_reader_that_ends_its_own_task_harms_no_delivery(fails: bool) -> None:
    async def story(stream: Stream) -> None:
        def take(*_: object) -> bool:
            pumping.cancel()
            if fails:
                raise ValueError("no more")
            return False

        pumping = asyncio.create_task(stream.pump(take))
        await asyncio.sleep(0)
        stream.deliver(0, [1], None, None)
        with pytest.raises(asyncio.CancelledError):
            await pumping

    in_loop(story)


def test_silence_is_told_and_what_comes_after_it_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.01)

    async def story(stream: Stream) -> None:
        reader = Reader(pauses=[True])
        assert await stream.pump(reader.take) is False
        stream.deliver(0, [1], None, None)
        assert await stream.pump(reader.take) is True
        assert reader.parts == [(0, [1], None)]
        assert await stream.pump(reader.take) is False

    in_loop(story)


SCORES = st.builds(
    lambda scores: Logprobs([logprob for logprob, _ in scores], [alternatives for _, alternatives in scores]),
    st.lists(st.tuples(st.floats(-10, 0), st.lists(st.tuples(st.integers(0, 99), st.floats(-10, 0)), max_size=2))),
)


@settings(max_examples=30)
@given(pieces=st.lists(SCORES, min_size=1, max_size=4))
def test_logprobs_of_several_stretches_are_joined_in_their_order(pieces: list[Logprobs]) -> None:
    whole = joined(pieces)

    assert whole is not None
    assert list(whole.logprobs) == [logprob for piece in pieces for logprob in piece.logprobs]
    assert list(whole.alternatives) == [each for piece in pieces for each in piece.alternatives]


def test_one_stretch_is_passed_on_as_it_is() -> None:
    some = Logprobs([-1.0], [[(5, -2.0)]])

    assert joined([some]) is some
    assert joined([]) is None
