"""Tests of the simulator as an executor: its loop over real gRPC, and the process."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_adapters import codec
from engine_adapters.base import FEATURES
from engine_adapters.simulator.__main__ import SHIPPED_MODEL, make_engine, parse_arguments
from engine_adapters.step import messages, translation
from engine_adapters.step.kv_index import KvIndex
from engine_adapters.step.messages import ClientFrame, Finished, StepFrame, Submit
from engine_adapters.step.server import StepServer
from engine_adapters.tokenizer_file import TokenizerFile
from tests.attach import Gateway, columns, u32

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One loop for all: grpc.aio delivers every loop's events through one queue, and minds when a loop closes."""
    with asyncio.Runner() as runner:
        yield lambda story: runner.run(asyncio.wait_for(story, 50))


@contextlib.asynccontextmanager
async def simulating(*options: str) -> AsyncIterator[Gateway]:
    """A gateway attached to a simulator in this process."""
    engine = make_engine(parse_arguments([*options]))
    server = StepServer(engine)
    port = await server.start("127.0.0.1", 0)
    stepping = asyncio.create_task(engine.run(server))
    gateway = Gateway(f"127.0.0.1:{port}")
    try:
        await gateway.greet()
        yield gateway
        assert not stepping.done()
    finally:
        await gateway.leave()
        stepping.cancel()
        await server.stop("the test is over")


@contextlib.contextmanager
def simulator_process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A simulator in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "engine_adapters.simulator", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    with process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["pid"] == process.pid and ready["model"] == "gateway-demo"
            yield process, ready["address"]
        finally:
            process.kill()


def request(stream_id: int, prompt_tokens: int = 4, **changes: Any) -> Submit:
    fields: dict[str, Any] = {"token_ids": u32(*[7] * prompt_tokens), "max_tokens": 10}
    return Submit(stream_id=stream_id, **(fields | changes))


async def frames_until_ended(gateway: Gateway, count: int) -> list[StepFrame]:
    """The frames with news up to the one with the last of `count` ends."""
    frames: list[StepFrame] = []
    while sum(len(frame.finished) for frame in frames) < count:
        frames.append(await gateway.read_news())
    return frames


def apply(index: KvIndex, frame: StepFrame) -> None:
    for message in frame.kv_events:
        event = translation.as_kv_event(message)
        assert event is not None
        index.apply(event)


def busy(frame: StepFrame) -> tuple[int, int]:
    assert frame.load is not None
    return frame.load.running, frame.load.waiting


def test_a_prompt_is_answered_with_a_shipped_text(run: Run) -> None:
    async def story() -> None:
        async with simulating("--speed", "0") as gateway:
            await gateway.send(ClientFrame(submits=[request(1, max_tokens=2000)]))
            frames = await frames_until_ended(gateway, 1)
            said = [token_id for frame in frames for token_id in columns(frame).get(1, [])]
            tokenizer = TokenizerFile(SHIPPED_MODEL)
            texts = [path.read_text(encoding="utf-8").strip() for path in (SHIPPED_MODEL.parent / "texts").iterdir()]
            assert tokenizer.text_of(said) in texts
            assert frames[-1].finished == [
                Finished(
                    stream_id=1,
                    reason=messages.FINISH_REASON_STOP,
                    matched_stop=tokenizer.ids["<|im_end|>"],
                    prompt_tokens=4,
                    completion_tokens=len(said) + 1,
                )
            ]

    run(story())


def test_without_delay_there_is_still_one_frame_for_each_step(run: Run) -> None:
    async def story() -> None:
        async with simulating("--speed", "0", "--ignore-eos") as gateway:
            streams = range(1, 33)
            await gateway.send(ClientFrame(submits=[request(stream_id, max_tokens=100) for stream_id in streams]))
            frames = await frames_until_ended(gateway, 32)
            assert [frame.step for frame in frames] == [*range(1, 101)]
            assert all(columns(frame).keys() == {*streams} and not frame.counts for frame in frames)

    run(story())


def test_steps_take_the_time_their_costs_say(run: Run) -> None:
    async def story() -> None:
        # 4 tokens at 80 a second, then 50 steps of 9 + 1 ms, all at twice the speed: 25 + 250 ms
        options = ["--speed", "2", "--prefill-tps", "80", "--decode-base-ms", "9", "--decode-per-request-ms", "1"]
        async with simulating("--ignore-eos", *options) as gateway:
            began = time.monotonic()
            await gateway.send(ClientFrame(submits=[request(1, max_tokens=51)]))
            await frames_until_ended(gateway, 1)
            took = time.monotonic() - began
            assert 0.275 <= took < 0.275 + 0.5

    run(story())


def test_the_load_in_every_frame_is_exact(run: Run) -> None:
    async def story() -> None:
        async with simulating("--speed", "0", "--max-running", "2") as gateway:
            submits = [request(stream_id, max_tokens=stream_id) for stream_id in (1, 2, 3)]
            await gateway.send(ClientFrame(submits=submits))
            frames = await frames_until_ended(gateway, 3)
            # 1 ends in step 1, 2 in step 2, and 3, admitted in step 2, in step 4
            assert [busy(frame) for frame in frames] == [(1, 1), (1, 0), (1, 0), (0, 0)]
            assert [sorted(columns(frame)) for frame in frames] == [[1, 2], [2, 3], [3], [3]]

    run(story())


def test_an_abort_frees_the_place_at_once_even_while_a_long_prompt_is_read(run: Run) -> None:
    async def story() -> None:
        async with simulating("--max-running", "1", "--prefill-tps", "100") as gateway:
            await gateway.send(ClientFrame(submits=[request(1, prompt_tokens=9000), request(2), request(3)]))
            await gateway.send(ClientFrame(aborts=u32(2)))
            frame = await gateway.read_news()
            assert [(end.stream_id, end.reason) for end in frame.finished] == [(2, messages.FINISH_REASON_ABORTED)]
            assert busy(frame) == (1, 1)
            await gateway.send(ClientFrame(aborts=u32(1)))
            frame = await gateway.read_news()
            assert frame.finished == [Finished(stream_id=1, reason=messages.FINISH_REASON_ABORTED, prompt_tokens=9000)]
            assert busy(frame) == (0, 1)
            assert columns(await gateway.read_news()).keys() == {3}

    run(story())


def test_a_gateway_that_leaves_frees_its_places(run: Run) -> None:
    async def story() -> None:
        async with simulating("--max-running", "1", "--ignore-eos") as gateway:
            leaving = Gateway(gateway.address)
            await leaving.greet()
            await leaving.send(ClientFrame(submits=[request(1, max_tokens=30_000), request(2)]))
            await leaving.read_news()
            await gateway.send(ClientFrame(submits=[request(1, max_tokens=1)]))
            await leaving.leave()
            frame = await gateway.read_news()
            assert columns(frame).keys() == {1} and busy(frame) == (0, 0)

    run(story())


def test_several_answers_to_one_prompt_are_told_apart(run: Run) -> None:
    async def story() -> None:
        async with simulating("--speed", "0") as gateway:
            await gateway.send(ClientFrame(submits=[request(5, n=3, max_tokens=2000)]))
            frames = await frames_until_ended(gateway, 3)
            said: dict[int, list[int]] = {5: [], 6: [], 7: []}
            for frame in frames:
                for stream_id, token_ids in columns(frame).items():
                    said[stream_id] += token_ids
            assert len({tuple(answer) for answer in said.values()}) == 3
            ends = {end.stream_id: end for frame in frames for end in frame.finished}
            assert {stream_id: end.completion_tokens - 1 for stream_id, end in ends.items()} == {
                stream_id: len(answer) for stream_id, answer in said.items()
            }

    run(story())


def test_each_token_of_a_stream_that_asked_has_its_logprob(run: Run) -> None:
    async def story() -> None:
        async with simulating("--speed", "0") as gateway:
            submits = [request(1, max_tokens=40, logprobs=3), request(2, max_tokens=40)]
            await gateway.send(ClientFrame(submits=submits))
            frames = await frames_until_ended(gateway, 2)
            told = 0
            for frame in frames:
                (entry,) = frame.logprobs
                said, scores = columns(frame)[1], translation.as_logprobs(entry)
                assert entry.stream_id == 1 and len(scores.logprobs) == len(said)
                assert [len(alternatives) for alternatives in scores.alternatives] == [3] * len(said)
                told += len(said)
            assert told == 40

    run(story())


def test_prompt_logprobs_come_with_the_end_of_the_first_answer(run: Run) -> None:
    async def story() -> None:
        async with simulating("--speed", "0") as gateway:
            await gateway.send(ClientFrame(submits=[request(1, n=2, prompt_tokens=6, prompt_logprobs=2)]))
            ends = {end.stream_id: end for frame in await frames_until_ended(gateway, 2) for end in frame.finished}
            assert ends[2].prompt_logprobs is None and ends[1].prompt_logprobs is not None
            scores = translation.as_logprobs(ends[1].prompt_logprobs)
            assert [len(alternatives) for alternatives in scores.alternatives] == [0, 2, 2, 2, 2, 2]
            assert scores.logprobs[0] == 0 and max(scores.logprobs[1:]) < 0

    run(story())


def test_a_gateway_learns_what_is_cached_whenever_it_comes(run: Run) -> None:
    async def story() -> None:
        async with simulating("--speed", "0", "--dp-size", "2", "--kv-tokens", "512") as gateway:
            late = Gateway(gateway.address)
            index = KvIndex()
            for stream_id in range(1, 9):
                prompt = u32(*range(stream_id, stream_id + 200))
                await gateway.send(ClientFrame(submits=[request(stream_id, token_ids=prompt, dp_rank=stream_id % 2)]))
                for frame in await frames_until_ended(gateway, 1):
                    apply(index, frame)
                if stream_id == 4:
                    late_index = KvIndex()
                    apply(late_index, await late.greet())
                    assert [*late_index.snapshot()] == [*index.snapshot()]
            while [*late_index.snapshot()] != [*index.snapshot()]:
                apply(late_index, await late.read_news())
            assert {event.dp_rank for event in index.snapshot()} == {0, 1}
            cached = max(len(event.block_hashes) for event in index.snapshot() if event.dp_rank == 0)
            prompt = u32(*range(8, 208))
            await gateway.send(ClientFrame(submits=[request(9, token_ids=prompt, dp_rank=0)]))
            ((end,),) = [frame.finished for frame in await frames_until_ended(gateway, 1) if frame.finished]
            assert (end.cached_tokens, cached) == (192, 13)
            await late.leave()

    run(story())


def test_the_load_is_told_by_rank(run: Run) -> None:
    async def story() -> None:
        async with simulating("--dp-size", "3", "--max-running", "1", "--ignore-eos") as gateway:
            submits = [request(1, dp_rank=1), request(2, dp_rank=1), request(3, dp_rank=2)]
            await gateway.send(ClientFrame(submits=submits))
            load = (await gateway.read_news()).load
            assert load is not None and (load.running, load.waiting) == (2, 1)
            assert [(rank.running, rank.waiting) for rank in load.ranks] == [(0, 0), (1, 1), (1, 0)]
            assert load.kv_tokens_total == sum(rank.kv_tokens_total for rank in load.ranks) == 3 * 524288

    run(story())


def test_it_says_what_it_can_do(run: Run) -> None:
    async def story() -> None:
        async with simulating("--dp-size", "2", "--max-running", "8", "--block-size", "32") as gateway:
            answer: bytes = await gateway.channel.unary_unary(messages.EXECUTOR_GET_INFO)(b"")
            info = translation.as_info(codec.decode(messages.Info, answer))
            assert (info.dp_size, info.max_running, info.kv_block_size, info.features) == (2, 16, 32, FEATURES)

    run(story())


def test_a_delayed_answer_comes_when_the_script_says(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"steps": [1, {"tokens": [2, 3], "delay_ms": 100}], "finish": "stop"}]))

    async def story() -> None:
        async with simulating("--output", f"script:{script}", "--speed", "1") as gateway:
            await gateway.send(ClientFrame(submits=[request(1)]))
            assert columns(await gateway.read_news()) == {1: [1]}
            began = time.monotonic()
            frame = await gateway.read_news()
            assert columns(frame) == {1: [2, 3]} and frame.finished
            assert 0.09 < time.monotonic() - began < 0.3

    run(story())


def test_without_delay_a_scripts_delays_take_no_time(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"steps": [{"tokens": 1, "delay_ms": 3_600_000}], "finish": "stop"}]))

    async def story() -> None:
        async with simulating("--output", f"script:{script}", "--speed", "0") as gateway:
            await gateway.send(ClientFrame(submits=[request(1)]))
            assert columns(await gateway.read_news()) == {1: [1]}

    run(story())


@pytest.mark.parametrize("options", [["--kv-tokens", "8"], ["--dp-size", "0"], ["--prefill-chunk", "many"]])
def test_options_that_make_no_sense_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(options)
    assert options[0] in capsys.readouterr().err


def test_a_process_that_is_told_to_forget_its_prefix_cache_says_so(run: Run) -> None:
    async def story() -> None:
        with simulator_process("--speed", "0") as (process, address):
            gateway = Gateway(address)
            await gateway.greet()
            await gateway.send(ClientFrame(submits=[request(1, prompt_tokens=40)]))
            await frames_until_ended(gateway, 1)
            process.send_signal(signal.SIGUSR1)
            while not (frame := await gateway.read_news()).kv_events:
                pass
            assert [event.kind for event in frame.kv_events] == [messages.KV_EVENT_KIND_CLEARED]
            await gateway.leave()

    run(story())


def test_the_process_ends_when_its_standard_input_does_and_not_by_ctrl_c(run: Run) -> None:
    async def story() -> None:
        with simulator_process("--until-stdin-closes") as (process, address):
            process.send_signal(signal.SIGINT)
            gateway = Gateway(address)
            await gateway.greet()
            assert process.stdin is not None
            process.stdin.close()
            assert await asyncio.to_thread(process.wait, 5) == 0
            await gateway.leave()

    run(story())


def test_a_process_that_is_terminated_ends_its_streams_so_that_they_can_be_tried_elsewhere(run: Run) -> None:
    async def story() -> None:
        with simulator_process() as (process, address):
            gateway = Gateway(address)
            await gateway.greet()
            await gateway.send(ClientFrame(submits=[request(1, max_tokens=30_000, ignore_eos=True)]))
            await gateway.read_news()
            process.terminate()
            (end,) = (await frames_until_ended(gateway, 1))[-1].finished
            assert (end.reason, end.retryable) == (messages.FINISH_REASON_ERROR, True)
            assert await asyncio.to_thread(process.wait, 5) == 0
            await gateway.leave()

    run(story())


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--model-path", "nowhere"], "nowhere/tokenizer.json: there is no such file"),
        (["--output", "verse"], "none of text, echo, random, script:FILE"),
    ],
)
def test_what_cannot_be_used_is_a_message_and_an_exit_code(options: list[str], fault: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "engine_adapters.simulator", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 1
    assert fault.replace("/", os.sep) in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""
