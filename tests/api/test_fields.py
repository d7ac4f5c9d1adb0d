"""The optional fields of a request: what reaches the engine, what comes back, and what is refused with which words."""

import json
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine_adapters.base import FinishReason
from engine_adapters.step.messages import Sampling, Submit
from tests import chat, completions
from tests.api import answers
from tests.api.answers import Scores, answer, say, say_scored
from tests.api.test_chat import refusal
from tests.demo_model import CONTEXT_LENGTH, END_OF_TEXT, END_OF_TURN, VOCAB_SIZE, ids_of, prompt_of
from tests.executor import FakeExecutor
from tests.processes import Gateway, eventually, wait_until_idle

CHAT = "/v1/chat/completions"
BODIES: dict[str, Callable[..., dict[str, Any]]] = {CHAT: chat.body, completions.PATH: completions.body}


def sampling_of(submit: Submit) -> Sampling:
    assert submit.sampling is not None
    return submit.sampling


def biases_of(submit: Submit) -> dict[int, float]:
    sampling = sampling_of(submit)
    return dict(zip(array("I", sampling.logit_bias_token_ids), array("f", sampling.logit_biases), strict=True))


def stops_of(submit: Submit) -> set[int]:
    return set(array("I", submit.stop_token_ids))


REACHING: dict[str, tuple[Any, Callable[[Submit], Any], Any]] = {
    "n": (3, lambda submit: submit.n, 3),
    "min_tokens": (5, lambda submit: submit.min_tokens, 5),
    "priority": (-4, lambda submit: submit.priority, -4),
    "cache_salt": ("größer", lambda submit: submit.cache_salt, "größer"),
    "ignore_eos": (True, lambda submit: (submit.ignore_eos, stops_of(submit)), (True, set())),
    "stop_token_ids": ([7, 9], stops_of, {7, 9, END_OF_TURN, END_OF_TEXT}),
    "top_k": (40, lambda submit: sampling_of(submit).top_k, 40),
    "min_p": (0.25, lambda submit: sampling_of(submit).min_p, 0.25),
    "frequency_penalty": (-1.5, lambda submit: sampling_of(submit).frequency_penalty, -1.5),
    "presence_penalty": (2, lambda submit: sampling_of(submit).presence_penalty, 2.0),
    "repetition_penalty": (1.25, lambda submit: sampling_of(submit).repetition_penalty, 1.25),
    "logit_bias": ({"5": -100, "17": 0.5}, biases_of, {5: -100.0, 17: 0.5}),
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", REACHING)
def test_a_field_reaches_the_engine(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, path: str, field: str
) -> None:
    value, read, expected = REACHING[field]
    response = background.submit(able_gateway.client.post, path, json=BODIES[path](**{field: value}))
    submit = able_executor.next_submit()
    answer(able_executor, submit, *["Yes"] * (submit.n or 1))

    assert response.result().status_code == 200, response.result().text
    assert read(submit) == expected


ASKING_NOTHING: dict[str, Any] = {
    "n": 1,
    "min_tokens": 0,
    "priority": 0,
    "top_k": -1,
    "min_p": 0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
    "ignore_eos": False,
    "stop_token_ids": [],
}


@pytest.mark.parametrize("field", ASKING_NOTHING)
@pytest.mark.parametrize("path", BODIES)
def test_a_value_that_asks_for_nothing_is_taken_by_every_engine(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor, path: str, field: str
) -> None:
    request = BODIES[path](**{field: ASKING_NOTHING[field]})
    response = background.submit(acted_gateway.client.post, path, json=request)
    eventually(lambda: response.done() or not executor.submits.empty())
    assert not response.done(), response.result().text
    executor.finish(executor.next_submit())

    assert response.result().status_code == 200


BEYOND_THE_ENGINE: list[tuple[str, str, Any]] = [
    *((path, field, value) for path in BODIES for field, value in (("n", 2), ("min_tokens", 1), ("priority", 1))),
    *((path, field, 0.5) for path in BODIES for field in ("min_p", "frequency_penalty", "presence_penalty")),
    (CHAT, "logprobs", True),
    (CHAT, "cache_salt", "mine"),
    (CHAT, "top_k", 5),
    (CHAT, "repetition_penalty", 1.1),
    (CHAT, "logit_bias", {"5": 1}),
    (completions.PATH, "logprobs", 0),
]


@pytest.mark.parametrize(("path", "field", "value"), BEYOND_THE_ENGINE)
@pytest.mark.parametrize("streams", [False, True])
def test_a_field_that_the_engine_lacks_is_refused_with_its_name(
    executor: FakeExecutor, acted_gateway: Gateway, path: str, field: str, value: Any, streams: bool
) -> None:
    request = BODIES[path](**{field: value}, stream=streams)

    error = refusal(acted_gateway.client.post(path, json=request))

    assert error["param"] == field
    assert error["message"].startswith(field) and "fake" in error["message"]
    assert executor.submits.empty()
    wait_until_idle(acted_gateway)


BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("n", {"n": 0}),
    ("n", {"n": -1}),
    ("n", {"n": 129}),
    ("n", {"n": 1.5}),
    ("n", {"n": True}),
    ("min_tokens", {"min_tokens": -1}),
    ("min_tokens", {"min_tokens": 8, "max_tokens": 7}),
    ("min_tokens", {"min_tokens": 8, "max_completion_tokens": 7}),
    ("top_k", {"top_k": -2}),
    ("top_k", {"top_k": 0.5}),
    ("min_p", {"min_p": 1.5}),
    ("frequency_penalty", {"frequency_penalty": 2.5}),
    ("presence_penalty", {"presence_penalty": "much"}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("logit_bias", {"logit_bias": [5]}),
    ("logit_bias.five", {"logit_bias": {"five": 1}}),
    ("logit_bias.-5", {"logit_bias": {"-5": 1}}),
    ("logit_bias.٥", {"logit_bias": {"٥": 1}}),
    (f"logit_bias.{VOCAB_SIZE}", {"logit_bias": {"5": 1, str(VOCAB_SIZE): 1}}),
    ("logit_bias." + "9" * 5000, {"logit_bias": {"9" * 5000: 1}}),
    ("logit_bias.5", {"logit_bias": {"5": 100.5}}),
    ("logit_bias.5", {"logit_bias": {"5": None}}),
    ("logit_bias.5", {"logit_bias": {"5": "1"}}),
    ("stop_token_ids", {"stop_token_ids": 5}),
    ("stop_token_ids[1]", {"stop_token_ids": [5, -1]}),
    ("stop_token_ids[0]", {"stop_token_ids": ["five"]}),
    ("stop_token_ids[0]", {"stop_token_ids": [VOCAB_SIZE]}),
    ("ignore_eos", {"ignore_eos": 1}),
    ("skip_special_tokens", {"skip_special_tokens": "no"}),
    ("include_stop_str_in_output", {"include_stop_str_in_output": 0}),
    ("priority", {"priority": 1 << 31}),
    ("priority", {"priority": 0.5}),
    ("cache_salt", {"cache_salt": ""}),
    ("cache_salt", {"cache_salt": 5}),
    ("truncate_prompt_tokens", {"truncate_prompt_tokens": 0}),
    ("truncate_prompt_tokens", {"truncate_prompt_tokens": "few"}),
    ("logprobs", {"logprobs": 1}),
    ("top_logprobs", {"top_logprobs": 21, "logprobs": True}),
    ("top_logprobs", {"top_logprobs": -1, "logprobs": True}),
    ("top_logprobs", {"top_logprobs": 2}),
    ("top_logprobs", {"top_logprobs": 2, "logprobs": False}),
    ("continue_final_message", {"continue_final_message": "yes"}),
    ("chat_template_kwargs", {"chat_template_kwargs": ["tools"]}),
    ("stream_options", {"stream_options": {"continuous_usage_stats": True}}),
    ("stream_options.continuous_usage_stats", {"stream_options": {"continuous_usage_stats": 1}, "stream": True}),
    ("tools[0].function.name", {"tools": [{"type": "function"}]}),
    ("response_format.type", {"response_format": {"type": "yaml"}}),
]


@pytest.mark.parametrize(("param", "fields"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_field_is_refused_with_its_path(gateway: Gateway, param: str, fields: dict[str, Any]) -> None:
    error = refusal(gateway.client.post(CHAT, json=chat.body() | fields))

    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_fields_that_ask_nothing_of_a_gateway_are_taken(gateway: Gateway) -> None:
    fields: dict[str, Any] = {
        "user": "me",
        "metadata": {"a": ["b"]},
        "store": True,
        "service_tier": "auto",
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "no_such_field": {"deep": [1]},
    }

    assert chat.complete(gateway, max_tokens=3, **fields)["usage"]["completion_tokens"] == 3


# --- n


@pytest.mark.parametrize("streams", [False, True])
def test_n_answers_come_to_one_prompt(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, streams: bool
) -> None:
    response = background.submit(ask, able_gateway, streams, n=3)
    submit = able_executor.next_submit()
    for index, text in ((2, "thr"), (0, "one"), (2, "ee"), (1, "two")):
        say(able_executor, submit, index, text)
    answers.end(able_executor, submit, 1)
    answers.end(able_executor, submit, 0, FinishReason.LENGTH)
    answers.end(able_executor, submit, 2)

    texts, reasons, usage = response.result()
    assert submit.n == 3
    assert texts == ["one", "two", "three"]
    assert reasons == ["length", "stop", "stop"]
    assert usage["prompt_tokens"] == len(prompt_of("Hello!"))
    assert usage["completion_tokens"] == sum(len(ids_of(text)) for text in ("thr", "one", "ee", "two"))
    assert able_executor.submits.empty()


def ask(gateway: Gateway, streams: bool, **fields: Any) -> tuple[list[str], list[str], dict[str, Any]]:
    """The texts and the finish reasons of all choices, and the usage, of a streamed or a whole chat answer."""
    if not streams:
        answer = chat.complete(gateway, **fields)
        choices = answer["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        texts = [choice["message"]["content"] for choice in choices]
        return texts, [choice["finish_reason"] for choice in choices], answer["usage"]
    *chunks, last = chat.stream(gateway, **fields, stream_options={"include_usage": True})
    by_index: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            by_index.setdefault(choice["index"], []).append(chunk | {"choices": [choice]})
    ordered = [by_index[index] for index in range(len(by_index))]
    assert all(each[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""} for each in ordered)
    assert all(each[-1]["choices"][0]["finish_reason"] for each in ordered), "nothing follows a choice's end"
    return [*map(chat.text_of, ordered)], [str(chat.finish_reason_of(each)) for each in ordered], last["usage"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_stop_string_ends_only_the_answer_that_says_it(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, streams: bool
) -> None:
    response = background.submit(ask, able_gateway, streams, n=3, stop="END")
    submit = able_executor.next_submit()
    for index, text in enumerate(("first", "second END and more", "third")):
        say(able_executor, submit, index, text)

    assert able_executor.next_abort() == submit.stream_id + 1
    answers.end(able_executor, submit, 1, FinishReason.ABORTED)
    for index in (0, 2):
        say(able_executor, submit, index, " goes on")
        answers.end(able_executor, submit, index)

    texts, reasons, usage = response.result()
    assert texts == ["first goes on", "second ", "third goes on"]
    assert reasons == ["stop"] * 3
    said = ("first", "second END", "third", " goes on", " goes on")
    assert usage["completion_tokens"] == sum(len(ids_of(text)) for text in said)
    assert able_executor.aborts.empty()
    wait_until_idle(able_gateway)


def test_one_answer_that_fails_fails_all(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(able_gateway.client.post, CHAT, json=chat.body(n=3))
    submit = able_executor.next_submit()
    say(able_executor, submit, 0, "whole")
    answers.end(able_executor, submit, 0)
    say(able_executor, submit, 1, "half")
    answers.end(able_executor, submit, 2, FinishReason.ERROR, "out of memory")

    assert able_executor.next_abort() == submit.stream_id + 1
    assert refusal(response.result(), 502)["message"] == "out of memory"
    assert able_executor.aborts.empty()
    wait_until_idle(able_gateway)


def test_all_answers_of_a_client_that_leaves_are_aborted(able_executor: FakeExecutor, able_gateway: Gateway) -> None:
    able_executor.greeting = "first"
    with chat.opened(able_gateway, n=4) as events:
        submit = able_executor.next_submit()
        chat.first_text(events)
        answers.end(able_executor, submit, 2)
        assert next(events)["choices"][0]["index"] == 2

    assert {able_executor.next_abort() for _ in range(3)} == {submit.stream_id + index for index in (0, 1, 3)}
    wait_until_idle(able_gateway)
    assert able_executor.aborts.empty()


# --- logprobs

SAID = "Hello there, 🦊"
TOKENS = ids_of(SAID)
SCORES: Scores = [(-0.5 * number, [(number, -0.25), (token_id, -1.5)]) for number, token_id in enumerate(TOKENS)]


@pytest.mark.parametrize("streams", [False, True])
def test_a_chat_answer_has_the_logprobs_of_its_tokens(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, streams: bool
) -> None:
    response = background.submit(answer_of, able_gateway, streams, logprobs=True, top_logprobs=2)
    submit = able_executor.next_submit()
    for start, stop in ((0, 1), (1, 3), (3, len(TOKENS))):
        say_scored(able_executor, submit, 0, TOKENS[start:stop], SCORES[start:stop])
    answers.end(able_executor, submit)

    content = logprobs_of(response.result())
    assert submit.logprobs == 2
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == SAID
    assert [token["logprob"] for token in content] == [score for score, _ in SCORES]
    for token, token_id in zip(content, TOKENS, strict=True):
        own, other = token["top_logprobs"][1], token["top_logprobs"][0]
        assert token.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert own == {"token": token["token"], "logprob": -1.5, "bytes": token["bytes"]}, token_id
        assert (other["logprob"], other.keys()) == (-0.25, own.keys())
        assert bytes(token["bytes"]).decode(errors="replace") == token["token"]


def answer_of(gateway: Gateway, streams: bool, **fields: Any) -> Any:
    """The whole chat answer, or the chunks of a streamed one."""
    return chat.stream(gateway, **fields) if streams else chat.complete(gateway, **fields)


def logprobs_of(answer: dict[str, Any] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`logprobs.content` of the one choice of a whole answer, or of the chunks of a streamed one."""
    content = []
    for chunk in answer if isinstance(answer, list) else [answer]:
        for choice in chunk["choices"]:
            if choice["logprobs"] is not None:
                assert choice["index"] == 0 and choice["logprobs"].keys() == {"content", "refusal"}
                content += choice["logprobs"]["content"]
    return content


def test_without_top_logprobs_there_are_no_alternatives(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(chat.complete, able_gateway, logprobs=True)
    submit = able_executor.next_submit()
    say_scored(able_executor, submit, 0, TOKENS, [(-1.0, []) for _ in TOKENS])
    answers.end(able_executor, submit)

    assert submit.logprobs == 0
    assert [token["top_logprobs"] for token in logprobs_of(response.result())] == [[] for _ in TOKENS]


def test_without_logprobs_the_engine_is_asked_for_none(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(chat.complete, able_gateway, logprobs=False)
    submit = able_executor.next_submit()
    answer(able_executor, submit, "Yes")

    assert submit.logprobs is None
    assert response.result()["choices"][0]["logprobs"] is None


def test_minus_infinity_becomes_a_number_that_json_has(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(chat.stream, able_gateway, logprobs=True, top_logprobs=1)
    submit = able_executor.next_submit()
    nothing = float("-inf")
    say_scored(able_executor, submit, 0, [5], [(nothing, [(6, nothing)])])
    answers.end(able_executor, submit)

    (token,) = logprobs_of(response.result())
    assert (token["logprob"], token["top_logprobs"][0]["logprob"]) == (-9999.0, -9999.0)


def test_a_logprob_that_is_no_number_does_not_break_the_answers_json(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(able_gateway.client.post, CHAT, json=chat.body(logprobs=True))
    submit = able_executor.next_submit()
    say_scored(able_executor, submit, 0, [5], [(float("nan"), [])])
    answers.end(able_executor, submit)

    text = response.result().text
    assert response.result().status_code in (200, 502)
    assert json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("streams", [False, True])
def test_logprobs_of_text_that_is_held_back_are_not_lost(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, streams: bool
) -> None:
    response = background.submit(answer_of, able_gateway, streams, logprobs=True, stop="🦊END")
    submit = able_executor.next_submit()
    for token_id, score in zip(TOKENS, SCORES, strict=True):
        say_scored(able_executor, submit, 0, [token_id], [score])
    answers.end(able_executor, submit)

    assert [token["logprob"] for token in logprobs_of(response.result())] == [score for score, _ in SCORES]


# --- where answers end


def test_a_stop_token_ends_the_answer_and_is_not_said(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    (stop_id,) = ids_of(" there")
    response = background.submit(chat.complete, acted_gateway, stop_token_ids=[stop_id])
    submit = executor.next_submit()
    executor.say(submit, *ids_of("Hello"))
    executor.finish(submit, matched_stop=stop_id, completion_tokens=2)

    (choice,) = response.result()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "stop")
    assert response.result()["usage"]["completion_tokens"] == 2


INCLUDED: dict[str, tuple[dict[str, Any], str, str | None, str]] = {
    "a stop string": ({"stop": "END"}, "go END on", None, "go END"),
    "the first of two": ({"stop": ["END", "go"]}, "go END on", None, "go"),
    "a stop token": ({"stop_token_ids": ids_of(" there")}, "Hello", " there", "Hello there"),
    "a stop token that is not special": ({"stop_token_ids": ids_of("</think>")}, "Hello", "</think>", "Hello</think>"),
    "a special stop token": ({"stop_token_ids": ids_of("<|im_start|>")}, "Hello", "<|im_start|>", "Hello"),
    "the model's own end": ({"stop": "END"}, "Hello", "<|im_end|>", "Hello"),
    "the model's own end, shown": ({"skip_special_tokens": False}, "Hello", "<|im_end|>", "Hello<|im_end|>"),
}


@pytest.mark.parametrize(("fields", "said", "matched", "expected"), INCLUDED.values(), ids=INCLUDED)
@pytest.mark.parametrize("streams", [False, True])
def test_what_stopped_an_answer_is_included_when_asked_for(
    executor: FakeExecutor,
    acted_gateway: Gateway,
    background: ThreadPoolExecutor,
    fields: dict[str, Any],
    said: str,
    matched: str | None,
    expected: str,
    streams: bool,
) -> None:
    response = background.submit(ask, acted_gateway, streams, include_stop_str_in_output=True, **fields)
    submit = executor.next_submit()
    executor.say(submit, *ids_of(said))
    if matched is None:
        executor.next_abort()
        executor.finish(submit, FinishReason.ABORTED)
    else:
        executor.finish(submit, matched_stop=ids_of(matched)[0])

    texts, reasons, _ = response.result()
    assert texts == [expected]
    assert reasons == ["stop"]


@pytest.mark.parametrize(("skips", "expected"), [(True, "a<think>b"), (False, "a<|im_start|><think>b")])
def test_special_tokens_are_said_when_asked_for(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor, skips: bool, expected: str
) -> None:
    response = background.submit(chat.complete, acted_gateway, skip_special_tokens=skips)
    submit = executor.next_submit()
    executor.say(submit, *ids_of("a<|im_start|><think>b"))
    executor.finish(submit)

    assert response.result()["choices"][0]["message"]["content"] == expected


# --- prompts


def prompt_for(executor: FakeExecutor, gateway: Gateway, background: ThreadPoolExecutor, **fields: Any) -> list[int]:
    """The prompt that a chat request with these fields brings to the engine."""
    response = background.submit(chat.complete, gateway, **fields)
    submit = executor.next_submit()
    executor.finish(submit)
    token_ids = array("I", submit.token_ids).tolist()
    assert response.result()["usage"]["prompt_tokens"] == len(token_ids)
    return token_ids


def test_the_last_tokens_of_a_prompt_are_kept(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    whole = prompt_of("Hello!")

    for count in (1, 3, len(whole), len(whole) + 1):
        assert prompt_for(executor, acted_gateway, background, truncate_prompt_tokens=count) == whole[-count:]


def test_a_prompt_beyond_the_context_fits_when_it_is_cut(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    content = "one two " * 20_000
    fields: dict[str, Any] = {"content": content, "truncate_prompt_tokens": CONTEXT_LENGTH - 10, "max_tokens": 10}

    assert len(prompt_for(executor, acted_gateway, background, **fields)) == CONTEXT_LENGTH - 10


def test_the_last_message_is_continued_when_asked_for(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    for content in ("Well, I", ""):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]

        token_ids = prompt_for(executor, acted_gateway, background, messages=messages, continue_final_message=True)

        assert token_ids == ids_of(f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{content}")


def test_without_a_message_to_continue_the_request_is_refused(acted_gateway: Gateway) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant"}]
    request = chat.body(messages=messages, continue_final_message=True)

    assert refusal(acted_gateway.client.post(CHAT, json=request))["param"] == "continue_final_message"


def test_template_arguments_reach_the_template(
    executor: FakeExecutor, acted_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    arguments = {"add_generation_prompt": False, "tools": [{"name": "add"}]}

    token_ids = prompt_for(executor, acted_gateway, background, chat_template_kwargs=arguments)

    text = answers.prompt_text(token_ids)
    assert text.startswith('<|im_start|>system\nYou may call these functions:\n<tools>\n{"name": "add"}\n</tools>')
    assert text.endswith("<|im_start|>user\nHello!<|im_end|>\n")


def test_template_arguments_that_break_the_template_are_the_clients_fault(acted_gateway: Gateway) -> None:
    request = chat.body(chat_template_kwargs={"tools": 5})

    assert refusal(acted_gateway.client.post(CHAT, json=request))["param"] == "messages"


# --- usage while the answer comes


def test_each_chunk_tells_the_usage_so_far_when_asked_for(executor: FakeExecutor, acted_gateway: Gateway) -> None:
    executor.greeting = "one"
    options = {"continuous_usage_stats": True}
    with chat.opened(acted_gateway, stream_options=options) as events:
        submit = executor.next_submit()
        chat.first_text(events)
        for said, tokens in ((" two", ids_of("one two")), (" three four", ids_of("one two three four"))):
            executor.say(submit, *ids_of(said))
            assert next(events)["usage"]["completion_tokens"] == len(tokens)
        executor.finish(submit, cached_tokens=3)
        end, last, _ = events

    assert end["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(ids_of("one two three four"))
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


@pytest.mark.parametrize("path", BODIES)
def test_every_chunk_knows_the_prompts_tokens(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, path: str
) -> None:
    request = BODIES[path](n=2, stream=True, stream_options={"continuous_usage_stats": True})
    response = background.submit(able_gateway.client.post, path, json=request)
    submit = able_executor.next_submit()
    answer(able_executor, submit, "one", "two")

    *chunks, _ = chat.events_of(response.result())
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {len(submit.token_ids) // 4}
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len(ids_of("one")) + len(ids_of("two"))


def test_the_usage_so_far_is_that_of_all_prompts(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    options = {"continuous_usage_stats": True}
    response = background.submit(completions.stream, able_gateway, ["a", "b c"], stream_options=options)
    for submit in [able_executor.next_submit() for _ in range(2)]:
        answer(able_executor, submit, "one two")

    said = 0
    for chunk in response.result():
        said += sum(len(ids_of(choice["text"])) for choice in chunk["choices"])
        assert chunk["usage"]["prompt_tokens"] == len(ids_of("a")) + len(ids_of("b c"))
        assert chunk["usage"]["completion_tokens"] >= said
    assert chunk["usage"]["completion_tokens"] == 2 * len(ids_of("one two"))
