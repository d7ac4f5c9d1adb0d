"""The simulator on TensorRT-LLM's own wire, message by message."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from engine_adapters import codec, http2
from engine_adapters.http2 import CallFailed
from engine_adapters.simulator.__main__ import make_engine, parse_arguments
from engine_adapters.simulator.trtllm_server import TrtllmServer
from engine_adapters.trtllm.native import messages
from tests.demo_model import CONTEXT_LENGTH, END_OF_TURN, VOCAB_SIZE

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One loop for all: grpc.aio delivers every loop's events through one queue, and minds when a loop closes."""
    with asyncio.Runner() as runner:
        yield lambda story: runner.run(asyncio.wait_for(story, 50))


class Caller:
    """One Generate call."""

    def __init__(self) -> None:
        self.responses: asyncio.Queue[messages.GenerateResponse] = asyncio.Queue()
        self.end: asyncio.Future[CallFailed | None] = asyncio.get_running_loop().create_future()

    def received(self, message: bytes) -> None:
        self.responses.put_nowait(codec.decode(messages.GenerateResponse, message))

    def ended(self, failure: CallFailed | None) -> None:
        self.end.set_result(failure)

    async def all(self) -> tuple[list[messages.GenerateStreamChunk], list[messages.GenerateComplete]]:
        assert await self.end is None
        responses = [self.responses.get_nowait() for _ in range(self.responses.qsize())]
        assert {response.request_id for response in responses} == {"r"}
        chunks = [response.chunk for response in responses if response.chunk is not None]
        completes = [response.complete for response in responses if response.complete is not None]
        assert responses[-len(completes) :] == [messages.GenerateResponse("r", complete=each) for each in completes]
        return chunks, completes


@contextlib.asynccontextmanager
async def simulating(*options: str) -> AsyncIterator[http2.Connection]:
    engine = make_engine(parse_arguments(["--speed", "0", *options]))
    server = TrtllmServer(engine)
    port = await server.start("127.0.0.1", 0)
    stepping = asyncio.create_task(engine.run(server))
    connection = await http2.connect(f"127.0.0.1:{port}")
    try:
        yield connection
        assert not stepping.done()
    finally:
        connection.close()
        stepping.cancel()
        await server.stop("the test is over")


def request(*prompt: int, **fields: Any) -> messages.GenerateRequest:
    content = {"max_tokens": 5, "streaming": True, "sampling_config": messages.SamplingConfig(temperature=0.0)} | fields
    return messages.GenerateRequest("r", messages.TokenizedInput(input_token_ids=prompt or (300, 301, 302)), **content)


def call(connection: http2.Connection, asked: messages.GenerateRequest) -> Caller:
    caller = Caller()
    connection.call(messages.TRTLLM_SERVICE_GENERATE, codec.encode(asked), caller)
    return caller


async def ask(connection: http2.Connection, path: str, question: codec.Message, answer: type[Any]) -> Any:
    return codec.decode(answer, await connection.ask(path, codec.encode(question), 5))


def test_it_says_what_it_serves_and_that_it_is_well(run: Run) -> None:
    async def story() -> None:
        async with simulating("--max-running", "7") as connection:
            path, question = messages.TRTLLM_SERVICE_GET_MODEL_INFO, messages.GetModelInfoRequest()
            model = await ask(connection, path, question, messages.GetModelInfoResponse)
            expected = ("gateway-demo", CONTEXT_LENGTH, 7, VOCAB_SIZE)
            assert (model.model_id, model.max_seq_len, model.max_batch_size, model.vocab_size) == expected
            path, health = messages.TRTLLM_SERVICE_HEALTH_CHECK, messages.HealthCheckRequest()
            assert (await ask(connection, path, health, messages.HealthCheckResponse)).status == "OK"

    run(story())


def test_the_models_end_is_among_the_ids_and_another_stop_is_not(run: Run) -> None:
    async def story() -> None:
        async with simulating("--output", "echo") as connection:
            chunks, (complete,) = await call(connection, request(max_tokens=9)).all()
            assert [chunk.token_ids for chunk in chunks] == [[300], [301], [302], [END_OF_TURN]]
            assert [chunk.completion_tokens for chunk in chunks] == [1, 2, 3, 4]
            assert complete.output_token_ids == [300, 301, 302, END_OF_TURN]
            assert (complete.finish_reason, complete.matched_token_id) == ("stop", None)

            chunks, (complete,) = await call(connection, request(max_tokens=9, stop_token_ids=[302])).all()
            assert complete.output_token_ids == [300, 301] and len(chunks) == 2
            assert (complete.finish_reason, complete.matched_token_id) == ("stop", 302)

    run(story())


def test_without_streaming_there_are_only_completes_together(run: Run) -> None:
    async def story() -> None:
        async with simulating("--output", "random") as connection:
            sampling = messages.SamplingConfig(num_return_sequences=3)
            chunks, completes = await call(connection, request(streaming=False, sampling_config=sampling)).all()
            assert not chunks
            assert [complete.sequence_index for complete in completes] == [0, 1, 2]
            assert {complete.finish_reason for complete in completes} == {"length"}
            assert all(len(complete.output_token_ids) == complete.completion_tokens == 5 for complete in completes)

    run(story())


def test_prompt_logprobs_come_one_place_too_early(run: Run) -> None:
    async def story() -> None:
        async with simulating() as connection:
            output = messages.OutputConfig(logprobs=1, prompt_logprobs=1)
            _, (complete,) = await call(connection, request(output_config=output)).all()
            assert [entry.token_id for entry in complete.prompt_logprobs] == [300, 301]
            for entry, after in zip(complete.prompt_logprobs, (301, 302), strict=True):
                assert after in [each.token_id for each in entry.top_logprobs]
            assert [entry.token_id for entry in complete.logprobs] == complete.output_token_ids

    run(story())


def test_an_abort_ends_the_call_in_peace(run: Run) -> None:
    async def story() -> None:
        async with simulating("--output", "random", "--speed", "1") as connection:
            caller = call(connection, request(max_tokens=10_000))
            await caller.responses.get()
            path, question = messages.TRTLLM_SERVICE_ABORT, messages.AbortRequest("r")
            assert (await ask(connection, path, question, messages.AbortResponse)).success
            _, (complete,) = await caller.all()
            assert complete.finish_reason == "cancelled"
            assert not (await ask(connection, path, question, messages.AbortResponse)).success

    run(story())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (messages.GenerateRequest("r"), "Missing tokenized input"),
        (request(VOCAB_SIZE), "not in this model's vocabulary"),
        (request(max_tokens=0), "max_tokens"),
        (request(embedding_bias=[1.0]), "embedding_bias length"),
        (request(sampling_config=messages.SamplingConfig(num_return_sequences=2, temperature=0.0)), "Greedy"),
        (request(*([1] * CONTEXT_LENGTH)), "leaves no room"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, asked: messages.GenerateRequest, reason: str) -> None:
    async def story() -> None:
        async with simulating() as connection:
            failure = await call(connection, asked).end
            assert failure is not None
            assert failure.code == "INVALID_ARGUMENT" and reason in failure.details

    run(story())
