"""Tests of the OpenEngine client against a server over google.protobuf that behaves as TensorRT-LLM's."""

import asyncio
import base64
import contextlib
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from engine_adapters import codec, http2
from engine_adapters.base import (
    Constraint,
    Delivery,
    EngineInfo,
    EngineLost,
    Finish,
    FinishReason,
    KvCleared,
    KvEvent,
    KvRemoved,
    KvStored,
    Load,
    Logprobs,
    Lora,
    RankLoad,
    Sampling,
    Submission,
)
from engine_adapters.trtllm import calls
from engine_adapters.trtllm.openengine import client as openengine
from engine_adapters.trtllm.openengine import messages
from engine_adapters.trtllm.openengine.client import OpenEngineClient
from tests.attach import u32
from tests.openengine import (
    CANCELLED,
    NOT_READY,
    READY,
    STARTING,
    STOP,
    OpenEngineServer,
    error,
    finished,
    kv_batch,
    token,
)
from tests.processes import eventually

Run = Callable[[Coroutine[Any, Any, None]], None]
EOS = 2
BASIC = {
    *("min_tokens", "n", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("logprobs", "prompt_logprobs", "cache_salt"),
    *(f"constraint.{kind}" for kind in ("json", "json_schema", "regex", "ebnf", "structural_tag")),
}


class Connection:
    """A client whose deliveries, KV events and faults are kept."""

    def __init__(self, address: str, with_kv_events: bool = False) -> None:
        self.faults: Counter[str] = Counter()
        self.deliveries: asyncio.Queue[Delivery[str]] = asyncio.Queue()
        self.batches = 0
        self.kv_events: asyncio.Queue[tuple[Sequence[KvEvent], bool]] = asyncio.Queue()
        on_kv_events = (lambda events, first: self.kv_events.put_nowait((events, first))) if with_kv_events else None
        self.client: OpenEngineClient[str] = OpenEngineClient(
            address, lambda kind: self.faults.update([kind]), on_kv_events
        )
        self.running: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        self.info = await self.client.connect()
        self.running = asyncio.create_task(self.client.run(self._deliver))

    async def leave(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait([self.running])
        await self.client.close()

    async def answer(self, submission: Submission, *keys: str) -> "dict[str, Answer]":
        """All of what comes for each key, to its end."""
        self.client.submit(keys, submission)
        answers = {key: Answer() for key in keys}
        while any(answer.finish is None for answer in answers.values()):
            key, token_ids, finish, logprobs = await self.deliveries.get()
            answers[key].take(token_ids, finish, logprobs)
        return answers

    async def one(self, submission: Submission) -> "Answer":
        return (await self.answer(submission, "key"))["key"]

    def _deliver(self, deliveries: list[Delivery[str]]) -> None:
        self.batches += 1
        for delivery in deliveries:
            self.deliveries.put_nowait(delivery)


class Answer:
    """What came for one key."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.alternatives: list[Sequence[tuple[int, float]]] = []
        self.finish: Finish | None = None

    def take(self, token_ids: Sequence[int], finish: Finish | None, logprobs: Logprobs | None) -> None:
        assert self.finish is None, "nothing follows an end"
        self.token_ids += token_ids
        if logprobs is not None:
            assert len(logprobs.logprobs) == len(logprobs.alternatives) == len(token_ids)
            self.logprobs += logprobs.logprobs
            self.alternatives += logprobs.alternatives
        self.finish = finish

    @property
    def end(self) -> Finish:
        assert self.finish is not None
        return self.finish


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One loop for all: grpc.aio delivers every loop's events through one queue, and minds when a loop closes."""
    with asyncio.Runner() as runner:
        yield lambda story: runner.run(asyncio.wait_for(story, 20))


@pytest.fixture(scope="module")
def shared(tools_python: str) -> Iterator[OpenEngineServer]:
    with OpenEngineServer(tools_python) as server:
        yield server


DEFAULTS: dict[str, Any] = {
    "max_seq_len": 4096,
    "step_seconds": 0.0,
    "tokens_per_step": 1,
    "guides": ["json_schema", "regex", "ebnf_grammar", "structural_tag", "json_object"],
    "supports_priority": False,
    "supports_lora": False,
    "supports_stop_in_output": True,
    "loras": [],
    "dp_size": 1,
    "targets_ranks": False,
    "has_connector": False,
    "role": 0,
    "minimum_client_revision": 1,
    "takes_token_ids": True,
    "health": READY,
    "load": {},
    "unimplemented": ["ListLoras", "SubscribeKvEvents"],
}


@pytest.fixture
def server(shared: OpenEngineServer) -> OpenEngineServer:
    """A server as it is at first."""
    shared.set(**DEFAULTS)
    shared.forget()
    return shared


@contextlib.asynccontextmanager
async def connected(
    server: OpenEngineServer, with_kv_events: bool = False, **settings: Any
) -> AsyncIterator[Connection]:
    server.set(**settings)
    connection = Connection(server.address, with_kv_events)
    try:
        await connection.connect()
        yield connection
    finally:
        await connection.leave()


def ask(*token_ids: int, **changes: Any) -> Submission:
    fields: dict[str, Any] = {"max_tokens": 100, "stop_token_ids": u32(EOS)}
    return Submission("r", u32(*(token_ids or (11, 12, 13))), **fields | changes)


async def event(server: OpenEngineServer, kind: str) -> dict[str, Any]:
    return await asyncio.to_thread(server.event, kind)


# --- what an engine says of itself ----------------------------------------------------------------------------------


def test_an_engine_offers_what_it_announces(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            assert connection.info == EngineInfo(
                "tensorrt_llm", "1.4.0rc1", "gateway-demo", 0, 4096, 256, b"", (), 32, 1, frozenset(BASIC)
            )

    run(story())


def test_capabilities_become_features(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        changes = {"supports_priority": True, "supports_lora": True, "has_connector": True, "guides": ["json_object"]}
        async with connected(server, dp_size=4, targets_ranks=True, role=2, **changes) as connection:
            info = connection.info
            guides = {f"constraint.{kind}" for kind in ("json_schema", "regex", "ebnf", "structural_tag")}
            assert info.features == BASIC - guides | {"priority", "lora", "disaggregation"}
            assert (info.dp_size, info.role) == (4, "prefill")

    run(story())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"health": STARTING}, "is not ready: engine health check failed"),
        ({"health": NOT_READY}, "is not ready: engine health check failed"),
        ({"health": 5}, "is not ready"),
        ({"minimum_client_revision": 2}, "clients of revision 2 and above"),
        ({"takes_token_ids": False}, "as text only"),
        ({"unimplemented": ["GetServerInfo"]}, "does not speak OpenEngine; TensorRT-LLM does with --grpc"),
    ],
)
def test_an_engine_that_cannot_be_used_says_why(
    run: Run, server: OpenEngineServer, settings: dict[str, Any], complaint: str
) -> None:
    async def story() -> None:
        with pytest.raises(EngineLost, match=complaint):
            async with connected(server, **settings):
                pass

    run(story())


def test_an_engine_without_health_is_well(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, unimplemented=["Health", "GetLoad", "ListLoras"]) as connection:
            assert (await connection.one(ask())).token_ids == [11, 12, 13]

    run(story())


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("supports_stop_in_output", [True, False])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_the_tokens_come_and_the_end_of_sequence_does_not(
    run: Run, server: OpenEngineServer, supports_stop_in_output: bool, tokens_per_step: int
) -> None:
    async def story() -> None:
        settings = {"supports_stop_in_output": supports_stop_in_output, "tokens_per_step": tokens_per_step}
        async with connected(server, **settings) as connection:
            answer = await connection.one(ask())
            assert answer.token_ids == [11, 12, 13]
            assert answer.end == Finish(FinishReason.STOP, EOS, 3, 1, 4)

    run(story())


@pytest.mark.parametrize("supports_stop_in_output", [True, False])
def test_a_stop_token_is_counted_but_not_delivered(
    run: Run, server: OpenEngineServer, supports_stop_in_output: bool
) -> None:
    async def story() -> None:
        async with connected(server, supports_stop_in_output=supports_stop_in_output) as connection:
            answer = await connection.one(ask(11, 12, 13, 14, stop_token_ids=u32(13, EOS, 13)))
            assert answer.token_ids == [11, 12]
            assert answer.end == Finish(FinishReason.STOP, 13, 4, 2, 3)
            stopping = (await asyncio.to_thread(server.request))["stopping"]
            assert stopping["conditions"] == [{"stop_token_id": 13}, {"stop_token_id": EOS}]

    run(story())


def test_a_stop_token_that_does_not_stop_is_delivered(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            answer = await connection.one(ask(13, 13, 12, stop_token_ids=u32(13), min_tokens=3, max_tokens=3))
            assert answer.token_ids == [13, 13, 12] and answer.end.reason is FinishReason.LENGTH
            answer = await connection.one(ask(12, 13, stop_token_ids=u32(13), min_tokens=3, max_tokens=2))
            assert answer.token_ids == [12, 13] and answer.end.completion_tokens == 2

    run(story())


def test_an_end_that_only_the_engine_knows_is_counted_once(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            answer = await connection.one(ask(stop_token_ids=b""))
            assert answer.token_ids == [11, 12, 13, EOS]
            assert (answer.end.matched_stop, answer.end.completion_tokens) == (EOS, 4)

    run(story())


def test_a_length_is_a_length(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            answer = await connection.one(ask(max_tokens=2))
            assert answer.token_ids == [11, 12] and answer.end == Finish(FinishReason.LENGTH, None, 3, 1, 2)
            answer = await connection.one(ask(11, EOS, 13, ignore_eos=True, stop_token_ids=b"", max_tokens=3))
            assert answer.token_ids == [11, EOS, 13]

    run(story())


def test_a_request_says_all_there_is_to_say(run: Run, server: OpenEngineServer) -> None:
    sampling = Sampling(0.5, 0.25, 7, 40, 0.125, 1.5, -0.5, 1.25)

    async def story() -> None:
        async with connected(server) as connection:
            await connection.one(ask(sampling=sampling, min_tokens=1, ignore_eos=False, cache_salt="salt", logprobs=2))
            request = await asyncio.to_thread(server.request)
            assert request.pop("request_id").startswith("r-")
            assert request == {
                "model": "gateway-demo",
                "token_ids": {"ids": [11, 12, 13]},
                "sampling": {
                    "temperature": 0.5,
                    "top_p": 0.25,
                    "top_k": 40,
                    "min_p": 0.125,
                    "frequency_penalty": 1.5,
                    "presence_penalty": -0.5,
                    "repetition_penalty": 1.25,
                    "seed": "7",
                },
                "stopping": {
                    "max_tokens": 100,
                    "min_tokens": 1,
                    "conditions": [{"stop_token_id": EOS}],
                    "include_stop_in_output": True,
                },
                "response": {"return_output_logprobs": True, "output_candidates": {"top_n": 2}},
                "kv": {"cache_salt": "salt"},
                "extra": {"detokenize": False},
            }

    run(story())


def test_what_is_not_asked_for_is_not_said(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            await connection.one(ask(stop_token_ids=b""))
            request = await asyncio.to_thread(server.request)
            assert request["stopping"] == {"max_tokens": 100} and request["sampling"] == {}
            assert not request.keys() & {"response", "kv", "guided", "lora_name", "media"}

    run(story())


@pytest.mark.parametrize(
    ("constraint", "guided"),
    [
        (Constraint("json"), {"json_object": {}}),
        (Constraint("json_schema", "{}"), {"json_schema": "{}"}),
        (Constraint("regex", "a+"), {"regex": "a+"}),
        (Constraint("ebnf", "root ::= 'a'"), {"ebnf_grammar": "root ::= 'a'"}),
        (Constraint("structural_tag", "{}"), {"structural_tag": "{}"}),
    ],
)
def test_constraints_are_guides(
    run: Run, server: OpenEngineServer, constraint: Constraint, guided: dict[str, Any]
) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            await connection.one(ask(constraint=constraint))
            assert (await asyncio.to_thread(server.request))["guided"] == guided

    run(story())


def test_priority_and_rank_are_metadata(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, supports_priority=True, dp_size=2, targets_ranks=True) as connection:
            assert (await connection.one(ask(priority=-3, dp_rank=1))).end.reason is FinishReason.STOP
            metadata = (await event(server, "request"))["metadata"]
            assert metadata == {"openengine-priority": "3", "openengine-target-dp-rank": "1"}
            await connection.one(ask())
            assert (await event(server, "request"))["metadata"] == {}
        async with connected(server, dp_size=2, targets_ranks=False) as connection:
            await connection.one(ask())
            assert (await event(server, "request"))["metadata"] == {}

    run(story())


def test_several_answers_are_copies_with_seeds_of_their_own(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            seeded = ask(n=3, sampling=Sampling(seed=-1), prompt_logprobs=0)
            answers = await connection.answer(seeded, "a", "b", "c")
            requests = [await asyncio.to_thread(server.request) for _ in range(3)]
            assert [request["sampling"]["seed"] for request in requests] == [str(2**64 - 1), "0", "1"]
            assert len({request["request_id"] for request in requests}) == 3
            assert all(answer.token_ids == [11, 12, 13] for answer in answers.values())
            assert [answer.end.prompt_logprobs is not None for answer in answers.values()] == [True, False, False]
            await connection.answer(ask(n=2), "a", "b")
            first, second = [await asyncio.to_thread(server.request) for _ in range(2)]
            assert int(second["sampling"]["seed"]) == int(first["sampling"]["seed"]) + 1

    run(story())


def test_logprobs_are_sorted_and_cut(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            answer = await connection.one(ask(logprobs=2))
            assert answer.logprobs == [-0.25] * 3
            assert answer.alternatives[0] == [(11, -0.25), (12, -1.25)]
            answer = await connection.one(ask(logprobs=0, max_tokens=1))
            assert answer.logprobs == [-0.25] and answer.alternatives == [[]]

    run(story())


def test_a_logprob_that_the_engine_leaves_out_is_looked_up_or_unknown(run: Run, server: OpenEngineServer) -> None:
    candidates = [{"token_id": 12, "logprob": -3.0}, {"token_id": 11, "logprob": -0.5}]
    events = [{"token": {"tokens": [{"token_id": 12, "candidates": candidates}, {"token_id": 13}]}}, finished()]

    async def story() -> None:
        async with connected(server) as connection:
            server.plan_next(*events)
            answer = await connection.one(ask(logprobs=1))
            assert answer.logprobs[0] == -3.0 and answer.logprobs[1] != answer.logprobs[1]
            assert answer.alternatives == [[(11, -0.5)], []]

    run(story())


def test_the_prompts_logprobs_come_with_the_end(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            answer = await connection.one(ask(prompt_logprobs=1))
            expected = [[], [(12, -0.25)], [(13, -0.25)]]
            assert answer.end.prompt_logprobs == Logprobs([0.0, -0.25, -0.25], expected)
            assert not answer.logprobs

    run(story())


def test_a_long_prompt_and_its_logprobs_pass(run: Run, server: OpenEngineServer) -> None:
    ids = array("I", range(300, 300 + 50_000)).tobytes()

    async def story() -> None:
        async with connected(server, max_seq_len=1 << 20) as connection:
            submission = Submission("long", ids, 3, prompt_logprobs=0)
            answer = await connection.one(submission)
            assert answer.token_ids == [300, 301, 302]
            assert answer.end.prompt_tokens == (await event(server, "request"))["prompt_tokens"] == 50_000
            assert answer.end.prompt_logprobs is not None and len(answer.end.prompt_logprobs.logprobs) == 50_000

    run(story())


# --- what goes wrong ------------------------------------------------------------------------------------------------

CONTEXT_ERROR = "The sum of prompt length (9000), query length (0) should not exceed max_num_tokens (8192)"


@pytest.mark.parametrize(
    ("code", "details", "reason"),
    [
        ("INVALID_ARGUMENT", "require 0 <= top_p <= 1", FinishReason.REJECTED),
        ("UNIMPLEMENTED", "multimodal media is not supported", FinishReason.REJECTED),
        ("INTERNAL", CONTEXT_ERROR, FinishReason.REJECTED),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (70000000 vs. 67108864)", FinishReason.REJECTED),
        ("RESOURCE_EXHAUSTED", "too many requests", FinishReason.ERROR),
        ("INTERNAL", "CUDA error", FinishReason.ERROR),
        ("ALREADY_EXISTS", "request_id 'x' is already active", FinishReason.ERROR),
    ],
)
def test_a_refused_request_says_whose_fault_it_is(
    run: Run, server: OpenEngineServer, code: str, details: str, reason: FinishReason
) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            server.fail_next(code, details)
            answer = await connection.one(ask())
            assert answer.end.reason is reason and details in answer.end.error and not answer.token_ids
            assert answer.end.retryable is (reason is FinishReason.ERROR)
            assert (await connection.one(ask())).end.reason is FinishReason.STOP

    run(story())


def test_a_call_that_is_not_taken_on_is_made_again(
    run: Run, server: OpenEngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gRPC's server does it to some where very many wait."""
    monkeypatch.setattr(calls, "REFUSAL_PAUSE", 0.01)

    async def story() -> None:
        async with connected(server) as connection:
            server.fail_next("CANCELLED", "")
            assert (await connection.one(ask())).token_ids == [11, 12, 13]
            first, second = [await asyncio.to_thread(server.request) for _ in range(2)]
            assert first == second
            monkeypatch.setattr(calls, "REFUSALS", 0)
            server.fail_next("CANCELLED", "")
            assert (await connection.one(ask())).end.retryable

    run(story())


def test_an_abort_finds_a_call_that_waits_to_be_made_again(
    run: Run, server: OpenEngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "REFUSAL_PAUSE", 60)

    async def story() -> None:
        async with connected(server) as connection:
            server.fail_next("CANCELLED", "")
            connection.client.submit(["key"], ask())
            await event(server, "request")
            await connection.one(ask())
            connection.client.abort("key")
            assert connection.client.unconfirmed_aborts == 0 and connection.deliveries.empty()

    run(story())


@pytest.mark.parametrize(
    ("events", "reason", "message"),
    [
        ([error(1, "no such grammar")], FinishReason.REJECTED, "no such grammar"),
        ([error(2, "not here")], FinishReason.REJECTED, "not here"),
        ([token(11), error(11, "CUDA error")], FinishReason.ERROR, "CUDA error"),
        ([error(12, "CUDA error")], FinishReason.ERROR, "CUDA error"),
        ([error(11, CONTEXT_ERROR)], FinishReason.REJECTED, CONTEXT_ERROR),
        ([error(5, "response consumer stalled")], FinishReason.ERROR, "response consumer stalled"),
        ([error(9, "")], FinishReason.ERROR, "the engine failed with code 9"),
        ([finished(CANCELLED, message="generation timed out")], FinishReason.ERROR, "generation timed out"),
        ([token(11), finished(0)], FinishReason.ERROR, "the engine cancelled the request"),
        ([token(11)], FinishReason.ERROR, "the engine ended the call before the answer's end"),
        ([], FinishReason.ERROR, "the engine ended the call before the answer's end"),
    ],
)
def test_an_accepted_request_can_fail_too(
    run: Run, server: OpenEngineServer, events: list[dict[str, Any]], reason: FinishReason, message: str
) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            server.plan_next(*events)
            answer = await connection.one(ask())
            assert (answer.end.reason, answer.end.error) == (reason, message)
            assert answer.token_ids == ([11] if any("token" in each for each in events) else [])

    run(story())


def test_a_stop_without_a_match_is_the_token_that_was_held_back(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            server.plan_next(token(11), token(EOS), finished(STOP))
            answer = await connection.one(ask())
            assert answer.token_ids == [11] and answer.end.matched_stop == EOS and answer.end.completion_tokens == 2
            server.plan_next(token(11, EOS), token(12), finished(STOP, {"stop_text": "x"}))
            answer = await connection.one(ask())
            assert answer.token_ids == [11, EOS, 12] and answer.end.matched_stop is None

    run(story())


def test_a_context_that_is_too_short_is_refused_before_it_is_asked(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, max_seq_len=4) as connection:
            answer = await connection.one(ask(11, 12, 13, 14))
            assert answer.end == Finish(
                FinishReason.REJECTED,
                error="the prompt has 4 tokens, and the context of this engine is 4 tokens",
            )

    run(story())


def test_more_stops_than_the_engine_takes_are_the_clients_fault(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            answer = await connection.one(ask(stop_token_ids=u32(*range(100, 165))))
            assert answer.end.reason is FinishReason.REJECTED and "at most 64" in answer.end.error
            assert (await connection.one(ask(stop_token_ids=u32(*range(100, 164))))).token_ids[:3] == [11, 12, 13]

    run(story())


def test_a_request_larger_than_the_wire_takes_is_refused(
    run: Run, server: OpenEngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MESSAGE_BYTES", 1000)

    async def story() -> None:
        async with connected(server) as connection:
            answer = await connection.one(ask(cache_salt="x" * 1000))
            assert answer.end.reason is FinishReason.REJECTED and "takes 1000 at most" in answer.end.error

    run(story())


def test_a_message_that_makes_no_sense_ends_its_answer_only(run: Run) -> None:
    async def generate(request: bytes, _context: object) -> AsyncIterator[bytes]:
        yield b"\x1a\xff"

    async def story() -> None:
        async with served(Generate=generate) as connection:
            answer = await connection.one(ask())
            assert answer.end.reason is FinishReason.ERROR and "malformed message" in answer.end.error
            assert connection.faults == {"malformed_frame": 1}

    run(story())


# --- aborts ---------------------------------------------------------------------------------------------------------


def test_an_abort_stops_the_engine_before_the_call_ends(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            server.plan_next(token(11), hold=True)
            connection.client.submit(["key"], ask())
            assert (await connection.deliveries.get())[1] == [11]
            connection.client.abort("key")
            assert connection.client.unconfirmed_aborts == 1
            assert (await event(server, "abort"))["found"]
            assert (await event(server, "ended"))["how"] == "aborted"
            await until(lambda: connection.client.unconfirmed_aborts == 0)
            assert connection.deliveries.empty()
            connection.client.abort("key")
            connection.client.abort("another")

    run(story())


def test_an_engine_that_cannot_abort_sees_the_call_end(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, unimplemented=["Abort"]) as connection:
            server.plan_next(token(11), hold=True)
            connection.client.submit(["key"], ask())
            await connection.deliveries.get()
            connection.client.abort("key")
            assert (await event(server, "ended"))["how"] == "left"
            await until(lambda: connection.client.unconfirmed_aborts == 0)

    run(story())


def test_one_of_several_answers_can_be_aborted(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, step_seconds=0.02) as connection:
            connection.client.submit(["a", "b"], ask(*range(100, 110), n=2))
            while (await connection.deliveries.get())[0] != "a":
                pass
            connection.client.abort("a")
            finishes = 0
            while not finishes:
                key, _, finish, _ = await connection.deliveries.get()
                assert key == "b"
                finishes += finish is not None
            assert (await event(server, "abort"))["found"]

    run(story())


def test_an_abort_at_once_stops_the_engine_too(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, step_seconds=0.02) as connection:
            for number in range(20):
                connection.client.submit([f"key{number}"], ask(*range(100, 200), max_tokens=1000))
                connection.client.abort(f"key{number}")
            await until(lambda: connection.client.unconfirmed_aborts == 0)
            assert await running_requests(server) == 0
            assert connection.deliveries.empty()

    run(story())


# --- health, load, connection ---------------------------------------------------------------------------------------


def test_load_is_asked_for(run: Run, server: OpenEngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openengine, "BEAT_SECONDS", 0.02)
    load = {
        "queued_requests": 3,
        "used_kv_blocks": 5,
        "total_kv_blocks": 10,
        "ranks": [
            {"data_parallel_rank": 1, "running_requests": 2, "used_kv_blocks": 4},
            {"data_parallel_rank": 0, "running_requests": 1, "total_kv_blocks": 5},
        ],
    }

    async def story() -> None:
        async with connected(server, load=load, dp_size=2, targets_ranks=True) as connection:
            client = connection.client
            ranks = (RankLoad(1, 0, 0, 160), RankLoad(2, 0, 128, 0))
            await until(lambda: client.load == Load(0, 3, 160, 320, 0.0, ranks))
            server.set(load=None)
            server.plan_next(token(11, 12), hold=True)
            client.submit(["key"], ask())
            await until(lambda: client.load.tokens_per_second > 0)
            await until(lambda: client.load == Load(running=1))

    run(story())


def test_an_engine_that_falls_ill_says_so_and_goes_on(
    run: Run, server: OpenEngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openengine, "BEAT_SECONDS", 0.02)

    async def story() -> None:
        async with connected(server) as connection:
            server.set(health=NOT_READY)
            assert await connection.client.check_health() == "it is not ready: engine health check failed"
            before = connection.client.last_frame_at
            await until(lambda: connection.client.last_frame_at > before)
            assert connection.running is not None and not connection.running.done()
            server.set(health=READY)
            assert await connection.client.check_health() == ""

    run(story())


def test_an_engine_that_dies_is_lost_at_once(run: Run, tools_python: str) -> None:
    async def story() -> None:
        with OpenEngineServer(tools_python) as server:
            async with connected(server) as connection:
                server.plan_next(token(11), hold=True)
                connection.client.submit(["key"], ask())
                await connection.deliveries.get()
                server.child.kill()
                _, _, finish, _ = await connection.deliveries.get()
                assert finish is not None and finish.reason is FinishReason.ERROR and finish.retryable
                assert connection.running is not None
                with pytest.raises(EngineLost, match="does not answer"):
                    await connection.running
                assert openengine.BEAT_SECONDS == 1.0, "and nobody waited for the next beat"

    run(story())


def test_an_engine_that_says_nothing_is_lost_after_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_SECONDS", 0.01), ("SILENCE_SECONDS", 0.05)):
        monkeypatch.setattr(openengine, name, seconds)
    is_silent = asyncio.Event()

    async def well(_request: bytes, _context: object) -> bytes:
        if is_silent.is_set():
            await asyncio.Event().wait()
        return b"\x08\x02"

    async def story() -> None:
        async with served(Health=well, GetLoad=well) as connection:
            monkeypatch.setattr(openengine, "CALL_SECONDS", 0.05)
            is_silent.set()
            assert connection.running is not None
            with pytest.raises(EngineLost, match="silent"):
                await connection.running

    run(story())


def test_what_is_no_openengine_is_lost(run: Run) -> None:
    async def nonsense(_request: bytes, _context: object) -> bytes:
        return b"\xff\xff\xff"

    async def story() -> None:
        with pytest.raises(EngineLost, match="not OpenEngine"):
            async with served(GetServerInfo=nonsense):
                pass

    run(story())


def test_nobody_at_an_address_is_lost(run: Run) -> None:
    async def story() -> None:
        connection = Connection("127.0.0.1:1")
        with pytest.raises(EngineLost, match="cannot be reached"):
            await connection.connect()
        await connection.leave()

    run(story())


def test_many_answers_come_in_fewer_batches(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            keys = [f"key{number}" for number in range(100)]
            answers = await connection.answer(ask(*range(100, 120), n=100), *keys)
            assert all(answer.token_ids == [*range(100, 120)] for answer in answers.values())
            assert connection.batches < 100 * 21

    run(story())


# --- LoRA -----------------------------------------------------------------------------------------------------------


def test_an_adapter_must_be_loaded(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, supports_lora=True, loras=["poems"], unimplemented=[]) as connection:
            assert (await connection.one(ask(lora=Lora("poems", 1)))).end.reason is FinishReason.STOP
            assert (await asyncio.to_thread(server.request))["lora_name"] == "poems"
            answer = await connection.one(ask(lora=Lora("prose", 2)))
            assert answer.end.reason is FinishReason.REJECTED
            assert answer.end.error == "the engine has not loaded the LoRA adapter 'prose'; it has poems"

    run(story())


def test_an_engine_that_does_not_list_adapters_judges_itself(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, supports_lora=True) as connection:
            assert (await connection.one(ask(lora=Lora("poems", 1)))).end.reason is FinishReason.STOP
            server.set(supports_lora=False)
            answer = await connection.one(ask(lora=Lora("poems", 1)))
            assert answer.end == Finish(FinishReason.REJECTED, error="LoRA selection is not supported")

    run(story())


def test_what_is_not_implemented_is_asked_for_once(
    run: Run, server: OpenEngineServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openengine, "BEAT_SECONDS", 0.01)
    caplog.set_level("INFO", "engine_adapters")

    async def story() -> None:
        async with connected(server, unimplemented=["GetLoad", "ListLoras"]) as connection:
            before = connection.client.last_frame_at
            await until(lambda: connection.client.last_frame_at > before + 0.1)

    run(story())
    assert [record.getMessage().split(": ", 1)[0] for record in caplog.records] == [
        f"{server.address} does without GetLoad"
    ]


# --- prefill and decode ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("supports_stop_in_output", [True, False])
def test_a_decode_goes_on_where_its_prefill_ended(
    run: Run, server: OpenEngineServer, supports_stop_in_output: bool
) -> None:
    async def story() -> None:
        settings = {"has_connector": True, "supports_stop_in_output": supports_stop_in_output}
        async with connected(server, **settings) as connection:
            prefill = await connection.one(ask(phase="prefill"))
            request = await asyncio.to_thread(server.request)
            assert request["extra"] == {"detokenize": False, "request_type": "context_only"}
            assert prefill.token_ids == [11]
            handoff = prefill.end.handoff
            assert handoff and prefill.end == Finish(FinishReason.LENGTH, None, 3, 1, 1, handoff=handoff)

            decode = await connection.one(ask(phase="decode", handoff=handoff))
            request = await asyncio.to_thread(server.request)
            assert request["kv"]["session"]["session_id"] == "77"
            assert request["kv"]["session"]["attributes_struct"]["disagg_request_id"] == str(2**60 + 1)
            assert request["extra"] == {"detokenize": False}
            assert decode.token_ids == [12, 13]
            assert decode.end == Finish(FinishReason.STOP, EOS, 3, 1, 4)

    run(story())


def test_logprobs_stay_with_their_tokens_in_a_decode(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, has_connector=True, tokens_per_step=2) as connection:
            prefill = await connection.one(ask(phase="prefill", logprobs=0))
            assert prefill.logprobs == [-0.25]
            decode = await connection.one(ask(phase="decode", handoff=prefill.end.handoff, logprobs=0))
            assert decode.token_ids == [12, 13] and decode.logprobs == [-0.25, -0.25]

    run(story())


def test_an_answer_that_ends_with_its_first_token_needs_no_decode(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, has_connector=True) as connection:
            answer = await connection.one(ask(EOS, 12, phase="prefill"))
            assert answer.end == Finish(FinishReason.STOP, EOS, 2, 1, 1)
            server.forget()
            answer = await connection.one(ask(phase="prefill", max_tokens=1))
            assert answer.token_ids == [11] and answer.end == Finish(FinishReason.LENGTH, None, 3, 1, 1)
            assert (await asyncio.to_thread(server.request))["extra"] == {"detokenize": False}, "nothing is kept there"

    run(story())


def test_a_prefill_whose_token_is_only_in_the_handoff_delivers_it(run: Run, server: OpenEngineServer) -> None:
    session = {"session_id": "1", "attributes_struct": {"first_gen_tokens": [42]}}

    async def story() -> None:
        async with connected(server) as connection:
            server.plan_next({"prefill_ready": {"kv_session": session}})
            answer = await connection.one(ask(phase="prefill"))
            assert answer.token_ids == [42] and answer.end.completion_tokens == 1

    run(story())


def test_an_engine_that_does_not_repeat_the_first_token_loses_none(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, has_connector=True) as connection:
            handoff = (await connection.one(ask(phase="prefill"))).end.handoff
            server.plan_next(token(12), token(11), finished())
            answer = await connection.one(ask(phase="decode", handoff=handoff))
            assert answer.token_ids == [12, 11] and answer.end.completion_tokens == 3

    run(story())


@pytest.mark.parametrize(
    ("submission", "events", "message"),
    [
        (ask(phase="prefill"), [token(11), finished()], "without a handoff"),
        (ask(phase="prefill"), [{"prefill_ready": {}}], "a prefill without a session"),
        (ask(), [{"prefill_ready": {"kv_session": {"session_id": "1"}}}], "a prefill that nobody asked for"),
        (
            ask(phase="prefill"),
            [{"prefill_ready": {"kv_session": {"attributes_struct": {"first_gen_tokens": [-1]}}}}],
            "first_gen_tokens must be token ids",
        ),
        (ask(phase="prefill"), [error(9, "transfer failed")], "transfer failed"),
    ],
)
def test_a_phase_can_fail(
    run: Run, server: OpenEngineServer, submission: Submission, events: list[dict[str, Any]], message: str
) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            server.plan_next(*events)
            end = (await connection.one(submission)).end
            assert end.reason is FinishReason.ERROR and message in end.error and end.retryable

    run(story())


def test_a_handoff_that_is_none_is_refused(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server) as connection:
            end = (await connection.one(ask(phase="decode", handoff=b"\xff"))).end
            assert end.reason is FinishReason.REJECTED and "KvSessionRef" in end.error

    run(story())


# --- KV events ------------------------------------------------------------------------------------------------------


def stored(number: int, *hashes: int, parent: int = 0, **fields: Any) -> dict[str, Any]:
    block = {"block_hashes": [key(each) for each in hashes], "token_ids": [number] * 2 * len(hashes), "block_size": 2}
    if parent:
        block["parent_block_hash"] = key(parent)
    return {"block_stored": block | fields}


def key(block_hash: int) -> dict[str, str]:
    return {"value": base64.b64encode(block_hash.to_bytes(8, "big")).decode(), "encoding": "int64"}


def test_kv_events_are_followed(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, True, unimplemented=[]) as connection:
            assert "kv_events" in connection.info.features
            assert (await event(server, "subscribed"))["request"] == {"include_snapshot": True}
            server.tell_of_kv(kv_batch(7, stored(1, 21, 22, parent=20)), kv_batch(3, stored(2, 31), rank=1))
            assert await connection.kv_events.get() == ([KvStored(20, (21, 22), u32(1, 1, 1, 1))], True)
            assert await connection.kv_events.get() == ([KvStored(0, (31,), u32(2, 2), dp_rank=1)], False)
            removed = {"block_removed": {"block_hashes": [key(22)]}}
            server.tell_of_kv(kv_batch(8, removed, {"all_blocks_cleared": {}}))
            assert await connection.kv_events.get() == ([KvRemoved((22,)), KvCleared()], False)
            assert not connection.faults

    run(story())


def test_blocks_that_are_not_plain_are_left_out(run: Run, server: OpenEngineServer) -> None:
    special: list[dict[str, Any]] = [
        {"lora_name": "poems"},
        {"lora_id": "3"},
        {"medium": 2},
        {"group_idx": 1},
        {"extra_keys": [{"values": ["salt"]}]},
    ]

    async def story() -> None:
        async with connected(server, True, unimplemented=[]) as connection:
            await event(server, "subscribed")
            server.tell_of_kv(kv_batch(1, *(stored(1, 21, **fields) for fields in special), stored(1, 22, medium=1)))
            assert await connection.kv_events.get() == ([KvStored(0, (22,), u32(1, 1))], True)

    run(story())


def test_a_gap_begins_anew(run: Run, server: OpenEngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_adapters.trtllm.openengine.kv_events.AGAIN_SECONDS", (0.01,))

    async def story() -> None:
        async with connected(server, True, unimplemented=[]) as connection:
            await event(server, "subscribed")
            server.tell_of_kv(kv_batch(1, stored(1, 21)), kv_batch(3, stored(1, 23)))
            assert (await connection.kv_events.get())[1]
            await event(server, "subscribed")
            assert connection.faults == {"kv_gap": 1} and connection.kv_events.empty()
            server.tell_of_kv(kv_batch(4, stored(1, 24)))
            assert await connection.kv_events.get() == ([KvStored(0, (24,), u32(1, 1))], True)
            # So do the ends that an engine makes, of its own accord or with an error.
            server.tell_of_kv({"error": {"code": 5, "message": "the subscriber does not keep up"}})
            await event(server, "subscribed")
            server.tell_of_kv(kv_batch(9))
            assert await connection.kv_events.get() == ([], True)
            server.tell_of_kv(kv_batch(10, {"block_stored": {"block_hashes": [key(1)]}}))
            await event(server, "subscribed")
            assert connection.faults == {"kv_gap": 1, "malformed_frame": 1}

    run(story())


def test_an_engine_that_tells_of_no_blocks_serves_without(run: Run, server: OpenEngineServer) -> None:
    async def story() -> None:
        async with connected(server, True) as connection:
            assert "kv_events" not in connection.info.features
            assert (await connection.one(ask())).token_ids == [11, 12, 13]
            assert connection.running is not None and not connection.running.done()

    run(story())


# --- help -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(**methods: Any) -> AsyncIterator[Connection]:
    """A connection to a server of these methods, over bytes; the others answer with empty messages."""

    async def empty(_request: bytes, _context: object) -> bytes:
        return b""

    async def health(_request: bytes, _context: object) -> bytes:
        return b"\x08\x02"

    plain = {"Health": health, "GetServerInfo": empty, "GetModelInfo": empty, "GetLoad": empty}
    generate = methods.pop("Generate", None)
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in (plain | methods).items()}
    front = grpc.aio.server()
    front.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("openengine.v1.Control", handlers),))
    if generate is not None:
        stream = {"Generate": grpc.unary_stream_rpc_method_handler(generate)}
        front.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("openengine.v1.Inference", stream),))
    port = front.add_insecure_port("127.0.0.1:0")
    await front.start()
    connection = Connection(f"127.0.0.1:{port}")
    try:
        await connection.connect()
        yield connection
    finally:
        await connection.leave()
        await front.stop(0)


async def until(check: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, check)


async def running_requests(server: OpenEngineServer) -> int:
    """By the engine's own word."""
    connection = await http2.connect(server.address)
    answer = await connection.ask(messages.CONTROL_GET_LOAD, b"", 5)
    connection.close()
    return codec.decode(messages.LoadInfo, answer).running_requests or 0
