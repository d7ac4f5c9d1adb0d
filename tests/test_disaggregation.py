"""Requests that a prefill and a decode worker share: what the client sees, what each worker hears, and who may fail."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine_adapters.base import FEATURES, FinishReason
from engine_adapters.step import messages
from tests import chat, completions
from tests.demo_model import END_OF_TURN, ids_of, prompt_of
from tests.executor import FakeExecutor, column, demo_info, end_of, frame_of
from tests.processes import Gateway, Simulator, eventually, wait_until_idle

PATH = "/v1/chat/completions"
HANDOFF = b"\x00\xffwhatever the engine says"
INFO = {"features": sorted(FEATURES)}
ROLES = {"prefill": messages.PHASE_PREFILL, "decode": messages.PHASE_DECODE}


def fake(role: str) -> FakeExecutor:
    return FakeExecutor(info=demo_info(**INFO, role=ROLES[role]))


def url(executor: FakeExecutor | Simulator, role: str) -> str:
    return f"{executor.url}?role={role}"


class Stage:
    """A gateway with a prefill and a decode worker that say what the test tells them to."""

    def __init__(self, gateway: Gateway, prefill: FakeExecutor, decode: FakeExecutor) -> None:
        self.gateway = gateway
        self.prefill = prefill
        self.decode = decode

    def hand_over(self, text: str, **fields: Any) -> messages.Submit:
        """Have the prefill say its first tokens; returns what the decode worker is asked then."""
        submit = self.prefill.next_submit()
        end = end_of(submit, FinishReason.LENGTH, handoff=HANDOFF, completion_tokens=1, **fields)
        self.prefill.send(frame_of({submit.stream_id: ids_of(text)}, [end]))
        return self.decode.next_submit()


@pytest.fixture(scope="module")
def acted() -> Iterator[Stage]:
    with fake("prefill") as prefill, fake("decode") as decode:
        workers = [url(prefill, "prefill"), url(decode, "decode")]
        with Gateway("--connect-seconds", "1", workers=workers) as gateway:
            yield Stage(gateway.wait_until_ready(), prefill, decode)


@pytest.fixture
def stage(acted: Stage) -> Stage:
    for executor in (acted.prefill, acted.decode):
        executor.start_anew()
    acted.gateway.wait_until_ready()
    wait_until_idle(acted.gateway)
    return acted


def test_each_worker_gets_its_phase_and_the_handoff_as_it_was(stage: Stage, background: ThreadPoolExecutor) -> None:
    response = background.submit(stage.gateway.client.post, PATH, json=chat.body("Hi", max_tokens=9, temperature=0.5))
    prefill = stage.prefill.next_submit()
    assert (prefill.phase, prefill.handoff, prefill.max_tokens) == (messages.PHASE_PREFILL, b"", 9)
    end = end_of(prefill, FinishReason.LENGTH, handoff=HANDOFF, cached_tokens=3, completion_tokens=1)
    stage.prefill.send(frame_of({prefill.stream_id: ids_of("One")}, [end]))

    decode = stage.decode.next_submit()
    assert (decode.phase, decode.handoff, decode.max_tokens) == (messages.PHASE_DECODE, HANDOFF, 9)
    assert decode.token_ids == prefill.token_ids == column(prompt_of("Hi"))
    assert decode.sampling == prefill.sampling
    stage.decode.say(decode, *ids_of(" two"))
    stage.decode.finish(decode, matched_stop=END_OF_TURN, cached_tokens=99, completion_tokens=3)

    body = response.result().json()
    assert body["choices"][0]["message"]["content"] == "One two"
    assert body["usage"]["completion_tokens"] == 3
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    names = [worker["name"] for worker in stage.gateway.ready()["workers"]]
    (entry,) = eventually(lambda: [entry for entry in stage.gateway.log() if entry.get("worker") == "+".join(names)])
    assert entry["completion_tokens"] == 3


def test_the_first_token_is_written_before_the_decode_has_said_anything(stage: Stage) -> None:
    stage.prefill.greeting = "One"
    with chat.opened(stage.gateway) as events:
        submit = stage.prefill.next_submit()
        assert chat.first_text(events) == "One"
        stage.prefill.finish(submit, FinishReason.LENGTH, handoff=HANDOFF)
        decode = stage.decode.next_submit()
        stage.decode.say(decode, *ids_of(" two"))
        assert chat.first_text(events) == " two"
        stage.decode.finish(decode, FinishReason.LENGTH)
        assert [*events][-1] == chat.DONE


@pytest.mark.parametrize("end", ["eos", "length", "stop string"])
def test_an_answer_that_the_prefill_completes_needs_no_decode(
    stage: Stage, background: ThreadPoolExecutor, end: str
) -> None:
    response = background.submit(stage.gateway.client.post, PATH, json=chat.body(stop="ONE"))
    submit = stage.prefill.next_submit()
    reason = FinishReason.STOP if end == "eos" else FinishReason.LENGTH
    handoff = HANDOFF if end == "stop string" else b""
    text = "is ONE" if end == "stop string" else "is"
    finish = end_of(submit, reason, handoff=handoff, completion_tokens=2)
    stage.prefill.send(frame_of({submit.stream_id: ids_of(text)}, [finish]))

    (choice,) = response.result().json()["choices"]
    assert choice["message"]["content"] == ("is " if end == "stop string" else "is")
    assert choice["finish_reason"] == ("length" if end == "length" else "stop")
    wait_until_idle(stage.gateway)
    assert stage.decode.submits.empty()


def test_prompt_logprobs_are_the_prefills(stage: Stage, background: ThreadPoolExecutor) -> None:
    body = completions.body("a b", echo=True, logprobs=0, max_tokens=2)
    response = background.submit(stage.gateway.client.post, completions.PATH, json=body)
    submit = stage.prefill.next_submit()
    count = len(submit.token_ids) // 4
    floats = messages.TokenLogprobs(logprobs=b"\0\0\x80\xbf" * count, top_counts=column([0] * count))
    one = messages.TokenLogprobs(submit.stream_id, b"\0\0\x80\xbf", column([0]))
    end = end_of(submit, FinishReason.LENGTH, handoff=HANDOFF, prompt_logprobs=floats)
    frame = frame_of({submit.stream_id: ids_of(" c")}, [end])
    frame.logprobs = [one]
    stage.prefill.send(frame)
    decode = stage.decode.next_submit()
    assert decode.prompt_logprobs is None and decode.logprobs == 0
    frame = frame_of({decode.stream_id: ids_of(" d")}, [end_of(decode, FinishReason.LENGTH)])
    frame.logprobs = [messages.TokenLogprobs(decode.stream_id, b"\0\0\x80\xbf", column([0]))]
    stage.decode.send(frame)
    (choice,) = response.result().json()["choices"]
    assert choice["text"] == "a b c d"
    assert choice["logprobs"]["token_logprobs"][1:] == [-1.0] * (count + 1)


def test_a_client_that_leaves_stops_whichever_leg_runs(stage: Stage) -> None:
    with chat.sent(stage.gateway, stream=True):
        submit = stage.prefill.next_submit()
    assert stage.prefill.next_abort() == submit.stream_id
    stage.prefill.finish(submit, FinishReason.ABORTED)
    with chat.sent(stage.gateway, stream=True):
        decode = stage.hand_over("One")
        stage.decode.say(decode, *ids_of(" two"))
    assert stage.decode.next_abort() == decode.stream_id
    stage.decode.finish(decode, FinishReason.ABORTED)
    wait_until_idle(stage.gateway)


def test_a_decode_that_fails_ends_the_stream_and_is_not_tried_again(stage: Stage) -> None:
    stage.prefill.greeting = "One"
    with chat.opened(stage.gateway) as events:
        stage.prefill.finish(stage.prefill.next_submit(), FinishReason.LENGTH, handoff=HANDOFF)
        decode = stage.decode.next_submit()
        stage.decode.finish(decode, FinishReason.ERROR, error="out of memory", retryable=True)
        chunks = [*events]
    assert chat.text_of(chunks[:-1]) == "One"
    assert "out of memory" in chunks[-1]["error"]["message"]
    assert stage.decode.submits.empty() and stage.prefill.submits.empty()
    wait_until_idle(stage.gateway)


def test_several_answers_need_a_worker_for_whole_requests(stage: Stage, background: ThreadPoolExecutor) -> None:
    response = stage.gateway.client.post(PATH, json=chat.body(n=2))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"
    assert "prefill or decode" in response.json()["error"]["message"]


@pytest.mark.slow
def test_a_prefill_that_fails_before_its_token_is_tried_on_another() -> None:
    with fake("prefill") as one, fake("prefill") as two, fake("decode") as decode:
        one.greeting = two.greeting = ""
        workers = [url(one, "prefill"), url(two, "prefill"), url(decode, "decode")]
        with Gateway(workers=workers) as gateway, ThreadPoolExecutor(1) as background:
            response = background.submit(gateway.wait_until_ready().client.post, PATH, json=chat.body())
            both = [one, two]
            first = eventually(lambda: next((each for each in both if not each.submits.empty()), None))
            assert first is not None
            first.finish(first.next_submit(), FinishReason.ERROR, error="no", retryable=True)
            (other,) = [each for each in both if each is not first]
            stage = Stage(gateway, other, decode)
            last = stage.hand_over("Well")
            decode.finish(last, FinishReason.LENGTH)
            assert response.result().json()["choices"][0]["message"]["content"] == "Well"


@pytest.mark.slow
def test_whole_requests_go_to_workers_of_any_role_when_half_of_a_pair_is_missing() -> None:
    with fake("prefill") as prefill, Gateway("--connect-seconds", "0", workers=[url(prefill, "prefill")]) as gateway:
        eventually(lambda: gateway.worker_states() == ["ready"])
        answer = gateway.client.get("/ready")
        assert answer.status_code == 503
        reason = "no decode worker of model 'demo' is ready, and its prefill workers need one"
        assert answer.json()["reasons"] == [reason]
        refusal = gateway.client.post(PATH, json=chat.body())
        assert refusal.status_code == 503 and refusal.json()["error"]["message"] == reason
    with fake("prefill") as prefill, FakeExecutor(info=demo_info(**INFO)) as whole:
        with Gateway(workers=[url(prefill, "prefill"), whole.url]) as gateway, ThreadPoolExecutor(1) as background:
            response = background.submit(gateway.wait_until_ready().client.post, PATH, json=chat.body())
            submit = whole.next_submit()
            assert submit.phase == messages.PHASE_WHOLE
            whole.finish(submit, FinishReason.LENGTH)
            assert response.result().status_code == 200


@pytest.mark.parametrize(
    ("info", "role", "reason"),
    [
        ({"features": []}, "prefill", "hands nothing over between prefill and decode"),
        ({**INFO, "role": messages.PHASE_DECODE}, "prefill", "its engine serves 'decode' only"),
    ],
)
def test_a_worker_that_cannot_have_its_role_is_unfit(info: dict[str, Any], role: str, reason: str) -> None:
    with FakeExecutor(info=demo_info(**info)) as executor, Gateway(workers=[url(executor, role)]) as gateway:
        eventually(lambda: gateway.worker_states() == ["unhealthy"])
        (worker,) = gateway.ready()["workers"]
        assert reason in worker["reason"]


# --- real executors -------------------------------------------------------------------------------------------------

TIMED = ("--decode-base-ms", "5", "--decode-per-request-ms", "0")


@pytest.fixture(scope="module")
def split_gateway() -> Iterator[Gateway]:
    """Two simulators that share their requests."""
    with Simulator("--speed", "0", "--role", "prefill") as prefill, Simulator("--speed", "0") as decode:
        with Gateway(workers=[prefill.url, url(decode, "decode")]) as gateway:
            yield gateway.wait_until_ready()


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    "fields", [{"max_tokens": 40}, {"max_tokens": 1}, {"max_tokens": 2}, {"max_tokens": 30, "stop": "the"}]
)
def test_two_workers_say_what_one_would(
    gateway: Gateway, split_gateway: Gateway, streams: bool, fields: dict[str, Any]
) -> None:
    prompt = "Tell me something about the sea. " * 20
    whole, split = (
        completions.ask(each, streams, prompt, temperature=0, logprobs=2, **fields) for each in (gateway, split_gateway)
    )
    assert completions.texts_of(split) == completions.texts_of(whole)
    assert completions.finish_reasons_of(split) == completions.finish_reasons_of(whole)
    if not streams:
        assert split["choices"][0]["logprobs"] == whole["choices"][0]["logprobs"]
        assert split["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.slow
def test_the_handoff_has_its_place_among_the_timings() -> None:
    arguments = ("--prefill-tps", "10000", "--transfer-base-ms", "80", "--transfer-tps", "100000", *TIMED)
    with Simulator("--role", "prefill", *arguments) as prefill, Simulator("--role", "decode", *arguments) as decode:
        with Gateway(workers=[prefill.url, decode.url]) as gateway:
            gateway.wait_until_ready()
            response = gateway.client.post(
                completions.PATH,
                json=completions.body("word " * 500, max_tokens=4, stream=True),
                headers={"x-server-timing": "end"},
            )
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", response.text))
    assert float(timing["engine"]) >= 45
    assert float(timing["handoff"]) >= 84
    assert float(timing["decode"]) >= float(timing["handoff"])


@pytest.mark.slow
def test_a_prefill_worker_that_dies_early_costs_the_client_nothing() -> None:
    slow = ("--role", "prefill", "--prefill-tps", "500", *TIMED)
    with Simulator(*slow) as one, Simulator(*slow) as two, Simulator("--role", "decode", *TIMED) as decode:
        with Gateway(workers=[one.url, two.url, decode.url]) as gateway, ThreadPoolExecutor(1) as background:
            gateway.wait_until_ready()
            response = background.submit(completions.complete, gateway, "word " * 300, max_tokens=5)
            busy = eventually(
                lambda: next(
                    (each for each in (one, two) if gateway.metric("gateway_worker_in_flight", worker=each.url)), None
                )
            )
            assert busy is not None
            busy.child.kill()
            assert response.result()["usage"]["completion_tokens"] == 5
            wait_until_idle(gateway)


@pytest.mark.slow
def test_a_decode_worker_that_dies_ends_the_stream_and_leaves_nothing_running() -> None:
    endless = ("--output", "random", *TIMED)
    with Simulator("--role", "prefill", *endless) as prefill, Simulator("--role", "decode", *endless) as decode:
        with Gateway(workers=[prefill.url, decode.url]) as gateway:
            gateway.wait_until_ready()
            with chat.opened(gateway) as events:
                for _ in range(5):
                    chat.first_text(events)
                decode.child.kill()
                *_, last = events
            assert "was lost" in last["error"]["message"]
            wait_until_idle(gateway)
            assert gateway.ready()["reasons"] == [
                "no decode worker of model 'demo' is ready, and its prefill workers need one"
            ]
