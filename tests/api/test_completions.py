"""/v1/completions through the front door: its prompts, its choices, echo, logprobs, and what it refuses."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine_adapters.base import FinishReason
from tests import chat, completions
from tests.api import answers
from tests.api.answers import Scores, answer, say_scored
from tests.api.test_chat import refusal
from tests.completions import PATH, ask, complete, finish_reasons_of, stream, texts_of
from tests.demo_model import CONTEXT_LENGTH, END_OF_TURN, VOCAB_SIZE, ids_of
from tests.executor import FakeExecutor, column
from tests.processes import Gateway, eventually, wait_until_idle

FOX = ids_of("🦊")
assert len(FOX) > 1

PROMPTS: dict[str, tuple[Any, list[str]]] = {
    "a string": ("one two", ["one two"]),
    "a list of strings": (["one", "two", "größer"], ["one", "two", "größer"]),
    "a list of one string": (["one"], ["one"]),
    "token ids": (ids_of("one two"), ["one two"]),
    "one token id": (ids_of("one")[:1], ["one"]),
    "lists of token ids": ([ids_of("one"), ids_of("two 🦊")], ["one", "two 🦊"]),
    "a list of one list": ([ids_of("one two")], ["one two"]),
    "one prompt twice": (["one", "one"], ["one", "one"]),
}


@pytest.mark.parametrize(("prompt", "texts"), PROMPTS.values(), ids=PROMPTS)
def test_each_form_of_a_prompt_reaches_the_model(echo_gateway: Gateway, prompt: Any, texts: list[str]) -> None:
    whole = complete(echo_gateway, prompt)
    streamed = stream(echo_gateway, prompt, stream_options={"include_usage": True})

    assert texts_of(whole) == texts_of(streamed) == texts
    assert finish_reasons_of(whole) == finish_reasons_of(streamed) == ["stop"] * len(texts)
    usage = whole["usage"]
    assert usage["prompt_tokens"] == sum(len(ids_of(text)) for text in texts)
    assert usage["completion_tokens"] == sum(len(ids_of(text)) + 1 for text in texts)
    assert streamed[-1]["usage"] == usage


def test_an_answer_is_labelled_as_clients_expect(gateway: Gateway) -> None:
    response = gateway.client.post(PATH, json=completions.body(), headers={"x-request-id": "lab-1"})
    (first, *_, last) = chunks = stream(gateway)

    body = response.json()
    assert (body["id"], body["object"], body["model"]) == ("cmpl-lab-1", "text_completion", "demo")
    assert body["system_fingerprint"].startswith("fp_")
    assert body["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}
    assert {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        (first["id"], "text_completion", first["created"], "demo")
    }
    assert last["choices"][0]["finish_reason"] == "length"
    assert all("usage" not in chunk for chunk in chunks)


def test_special_tokens_in_a_prompt_are_tokens(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(complete, able_gateway, "<|im_start|>user\nHi<|im_end|>")
    submit = able_executor.next_submit()
    answer(able_executor, submit, "Yes")

    assert submit.token_ids == column(ids_of("<|im_start|>user\nHi<|im_end|>"))
    assert END_OF_TURN in memoryview(submit.token_ids).cast("I")
    assert texts_of(response.result()) == ["Yes"]


def test_sixteen_tokens_are_the_default(gateway: Gateway, echo_gateway: Gateway) -> None:
    assert complete(gateway)["usage"]["completion_tokens"] == 16
    assert finish_reasons_of(complete(gateway)) == ["length"]
    assert complete(gateway, max_tokens=None)["usage"]["completion_tokens"] == 16
    assert complete(gateway, max_tokens=40)["usage"]["completion_tokens"] == 40
    assert texts_of(complete(echo_gateway, ids_of("word") * 20)) == ["word" * 16]


@pytest.mark.parametrize("streams", [False, True])
def test_choices_are_numbered_prompt_by_prompt(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, streams: bool
) -> None:
    response = background.submit(ask, able_gateway, streams, ["a", "b", "c"], n=2)
    submits = [able_executor.next_submit() for _ in range(3)]
    for submit in reversed(submits):
        name = answers.prompt_of(submit)
        answer(able_executor, submit, f"{name} first", f"{name} second")

    assert [submit.n for submit in submits] == [2, 2, 2]
    result = response.result()
    assert texts_of(result) == ["a first", "a second", "b first", "b second", "c first", "c second"]
    assert finish_reasons_of(result) == ["stop"] * 6
    if not streams:
        assert [choice["index"] for choice in result["choices"]] == list(range(6))


@pytest.mark.parametrize("prompt", ["one two ", ids_of("one two "), "<|im_start|>🦊<think>"])
@pytest.mark.parametrize("streams", [False, True])
def test_echo_puts_the_prompt_before_each_answer(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, prompt: Any, streams: bool
) -> None:
    response = background.submit(ask, able_gateway, streams, prompt, echo=True, n=2)
    submit = able_executor.next_submit()
    answer(able_executor, submit, "three", "four")

    text = prompt if isinstance(prompt, str) else "one two "
    assert texts_of(response.result()) == [f"{text}three", f"{text}four"]
    assert submit.token_ids == column(ids_of(text))


def test_echo_numbers_the_choices_of_several_prompts(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(stream, able_gateway, ["a", "b"], echo=True)
    for _ in range(2):
        submit = able_executor.next_submit()
        answer(able_executor, submit, f" after {answers.prompt_of(submit)}")

    assert texts_of(response.result()) == ["a after a", "b after b"]


def test_echo_gives_what_is_left_of_a_cut_prompt(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    prompt = "zero one two three four"
    kept = ids_of(prompt)[-3:]
    response = background.submit(complete, able_gateway, prompt, echo=True, truncate_prompt_tokens=3)
    submit = able_executor.next_submit()
    answer(able_executor, submit, "!")

    assert submit.token_ids == column(kept)
    assert texts_of(response.result()) == [" two three four!"]
    assert response.result()["usage"]["prompt_tokens"] == 3


SAID = "Hello there, fox"
TOKENS = ids_of(SAID)
SCORES: Scores = [(-0.5 * number, [(token_id, -0.25), (number, -1.5)]) for number, token_id in enumerate(TOKENS)]
"""The token itself and another one."""


def logprobs_of(chunks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The four lists of a streamed answer with one choice."""
    whole: dict[str, list[Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for name, values in (choice["logprobs"] or {}).items():
                whole.setdefault(name, []).extend(values)
    return whole


@pytest.mark.parametrize("streams", [False, True])
def test_logprobs_are_four_lists_with_an_entry_for_each_token(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, streams: bool
) -> None:
    response = background.submit(ask, able_gateway, streams, logprobs=2)
    submit = able_executor.next_submit()
    for start, stop in ((0, 1), (1, 3), (3, len(TOKENS))):
        say_scored(able_executor, submit, 0, TOKENS[start:stop], SCORES[start:stop])
    answers.end(able_executor, submit)

    result = response.result()
    logprobs = logprobs_of(result) if streams else result["choices"][0]["logprobs"]
    assert submit.logprobs == 2
    assert logprobs.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert "".join(logprobs["tokens"]) == SAID
    assert logprobs["token_logprobs"] == [-0.5 * number for number in range(len(TOKENS))]
    for token, tops, (_, alternatives) in zip(logprobs["tokens"], logprobs["top_logprobs"], SCORES, strict=True):
        assert tops[token] == -0.25
        assert len(tops) == len({token_id for token_id, _ in alternatives})
    assert_offsets_point_at(texts_of(result)[0], logprobs)


def assert_offsets_point_at(text: str, logprobs: dict[str, list[Any]]) -> None:
    """Each token stands in the text where its offset says."""
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert text[offset:].startswith(token), (text, token, offset)


def test_without_alternatives_only_the_tokens_own_logprobs_come(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(complete, able_gateway, logprobs=0)
    submit = able_executor.next_submit()
    say_scored(able_executor, submit, 0, TOKENS, [(-1.0, []) for _ in TOKENS])
    answers.end(able_executor, submit)

    logprobs = response.result()["choices"][0]["logprobs"]
    assert submit.logprobs == 0
    assert logprobs["token_logprobs"] == [-1.0] * len(TOKENS)
    assert logprobs["top_logprobs"] == [{}] * len(TOKENS)


def test_minus_infinity_becomes_a_number_that_json_has(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(complete, able_gateway, logprobs=1)
    submit = able_executor.next_submit()
    nothing = float("-inf")
    say_scored(able_executor, submit, 0, TOKENS[:1], [(nothing, [(TOKENS[0], nothing)])])
    answers.end(able_executor, submit)

    logprobs = response.result()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-9999.0]
    assert logprobs["top_logprobs"] == [{"Hello": -9999.0}]


@pytest.mark.parametrize("streams", [False, True])
def test_offsets_point_behind_characters_of_several_tokens(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, streams: bool
) -> None:
    tokens = [*ids_of("a"), *FOX, *ids_of("b")]
    response = background.submit(ask, able_gateway, streams, logprobs=0)
    submit = able_executor.next_submit()
    for token_id in tokens:
        say_scored(able_executor, submit, 0, [token_id], [(-1.0, [])])
    answers.end(able_executor, submit)

    result = response.result()
    logprobs = logprobs_of(result) if streams else result["choices"][0]["logprobs"]
    assert texts_of(result) == ["a🦊b"]
    assert len(logprobs["tokens"]) == len(tokens)
    assert logprobs["text_offset"][:2] == [0, 1]
    assert logprobs["text_offset"][-1] == 2


def test_offsets_do_not_count_special_tokens_that_are_not_in_the_text(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    tokens = ids_of("a<|im_start|>b")
    response = background.submit(complete, able_gateway, logprobs=0)
    submit = able_executor.next_submit()
    say_scored(able_executor, submit, 0, tokens, [(-1.0, []) for _ in tokens])
    answers.end(able_executor, submit)

    (choice,) = response.result()["choices"]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1]


def test_each_choice_has_the_logprobs_of_its_own_tokens(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(complete, able_gateway, n=2, logprobs=0)
    submit = able_executor.next_submit()
    for index, text in ((1, "two"), (0, "one"), (1, " more")):
        say_scored(able_executor, submit, index, ids_of(text), [(-1.0 - index, []) for _ in ids_of(text)])
    for index in range(2):
        answers.end(able_executor, submit, index)

    first, second = response.result()["choices"]
    assert (first["text"], second["text"]) == ("one", "two more")
    for choice, logprob in ((first, -1.0), (second, -2.0)):
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
        assert set(choice["logprobs"]["token_logprobs"]) == {logprob}
        assert_offsets_point_at(choice["text"], choice["logprobs"])


def test_echo_with_logprobs_begins_with_those_of_the_prompt(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    prompt = ids_of("one two three ")
    prompt_scores: Scores = [(0.0, []), *((-1.0 * number, [(number, -0.5)]) for number in range(1, len(prompt)))]
    response = background.submit(complete, able_gateway, prompt, echo=True, logprobs=1, n=2)
    submit = able_executor.next_submit()
    for index in (1, 0):
        say_scored(able_executor, submit, index, TOKENS, SCORES)
        answers.end(able_executor, submit, index, prompt_logprobs=None if index else prompt_scores)

    assert (submit.logprobs, submit.prompt_logprobs) == (1, 1)
    for choice in response.result()["choices"]:
        logprobs = choice["logprobs"]
        assert choice["text"] == f"one two three {SAID}"
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
        own = [-1.0 * number for number in range(1, len(prompt))]
        assert logprobs["token_logprobs"][1:] == own + [score for score, _ in SCORES]
        assert [list(tops.values()) for tops in logprobs["top_logprobs"][1 : len(prompt)]] == [[-0.5]] * len(own)
        assert_offsets_point_at(choice["text"], logprobs)


def test_without_echo_no_logprobs_of_the_prompt_are_asked_for(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    for fields in ({"logprobs": 3}, {"echo": True}):
        response = background.submit(complete, able_gateway, **fields)
        submit = able_executor.next_submit()
        answer(able_executor, submit, "Yes")

        assert submit.prompt_logprobs is None
        assert response.result()


@pytest.mark.parametrize("prompt", ["Tell me", ["Tell me", "Show me", "Sing"]])
def test_a_stream_says_what_the_whole_answer_says(gateway: Gateway, prompt: Any) -> None:
    fields: dict[str, Any] = {"seed": 7, "temperature": 1, "max_tokens": 60}
    whole = complete(gateway, prompt, **fields)
    streamed = stream(gateway, prompt, **fields, stream_options={"include_usage": True})

    assert texts_of(streamed) == texts_of(whole)
    assert finish_reasons_of(streamed) == finish_reasons_of(whole)
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert streamed[-1]["usage"][count] == whole["usage"][count]
    assert complete(gateway, prompt, **fields | {"seed": 8})["choices"] != whole["choices"]


@pytest.mark.parametrize("streams", [False, True])
def test_one_prompt_that_fails_fails_the_request_once(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor, streams: bool
) -> None:
    failed_before = able_gateway.metric("gateway_requests_total", status="502")
    request = completions.body(["a", "b", "c"], stream=streams)
    response = background.submit(able_gateway.client.post, PATH, json=request)
    submits = {answers.prompt_of(submit): submit for submit in (able_executor.next_submit() for _ in range(3))}

    answers.end(able_executor, submits["b"], reason=FinishReason.ERROR, error="out of memory")

    assert {able_executor.next_abort() for _ in range(2)} == {submits["a"].stream_id, submits["c"].stream_id}
    assert refusal(response.result(), 502)["message"] == "out of memory"
    wait_until_idle(able_gateway)
    assert able_executor.submits.empty()
    eventually(lambda: able_gateway.metric("gateway_requests_total", status="502") == failed_before + 1)


def test_a_prompt_that_fails_after_the_first_token_ends_the_stream_with_one_error(
    able_executor: FakeExecutor, able_gateway: Gateway
) -> None:
    able_executor.greeting = "half"
    request = completions.body(["a", "b"], stream=True)
    with able_gateway.client.stream("POST", PATH, json=request) as response:
        events = chat.events_of(response)
        submits = [able_executor.next_submit() for _ in range(2)]
        assert [next(events)["choices"][0]["text"] for _ in submits] == ["half", "half"]
        answers.end(able_executor, submits[1], reason=FinishReason.ERROR, error="out of memory")

        (last,) = events

    assert last["error"]["message"] == "out of memory"
    assert able_executor.next_abort() == submits[0].stream_id
    wait_until_idle(able_gateway)


def test_a_client_that_leaves_ends_all_its_prompts(able_executor: FakeExecutor, able_gateway: Gateway) -> None:
    able_executor.greeting = "half"
    request = completions.body(["a", "b", "c"], n=2, stream=True)
    with able_gateway.client.stream("POST", PATH, json=request):
        submits = [able_executor.next_submit() for _ in range(3)]

    left = {able_executor.next_abort() for _ in range(6)}
    assert left == {submit.stream_id + index for submit in submits for index in range(2)}
    wait_until_idle(able_gateway)


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "echo": True}, {"echo": True}])
@pytest.mark.parametrize("prompts", [["Hello " * 30], ["Hello", "Hello " * 30]], ids=["one", "two"])
def test_a_prompt_that_does_not_fit_is_refused(gateway: Gateway, fields: dict[str, Any], prompts: list[str]) -> None:
    request = completions.body(prompts, max_tokens=CONTEXT_LENGTH - 20, **fields)

    error = refusal(gateway.client.post(PATH, json=request))

    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    for number in (CONTEXT_LENGTH, CONTEXT_LENGTH - 20, len(ids_of("Hello " * 30))):
        assert str(number) in error["message"]
    wait_until_idle(gateway)


BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("model", {"model": None}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": 5}),
    ("prompt", {"prompt": {"text": "a"}}),
    ("prompt", {"prompt": True}),
    ("prompt", {"prompt": ["a"] * 257}),
    ("prompt[0]", {"prompt": [""]}),
    ("prompt[1]", {"prompt": ["a", ""]}),
    ("prompt[0]", {"prompt": [[]]}),
    ("prompt[1]", {"prompt": [[1], []]}),
    ("prompt[0]", {"prompt": [None]}),
    ("prompt[0]", {"prompt": [1.5]}),
    ("prompt[0]", {"prompt": [{"a": 1}]}),
    ("prompt[1]", {"prompt": ["a", 5]}),
    ("prompt[0]", {"prompt": [-1]}),
    ("prompt[0]", {"prompt": [True]}),
    ("prompt[0]", {"prompt": [10**30]}),
    ("prompt[1]", {"prompt": [1, VOCAB_SIZE]}),
    ("prompt[2]", {"prompt": [1, 2, "three"]}),
    ("prompt[2]", {"prompt": [1, 2, 3.0]}),
    ("prompt[2]", {"prompt": [1, 2, None]}),
    ("prompt[1][2]", {"prompt": [[1], [1, 2, VOCAB_SIZE]]}),
    ("prompt[1][2]", {"prompt": [[1], [1, 2, -3]]}),
    ("prompt[1][0]", {"prompt": [[1], ["a"]]}),
    ("prompt[1][0]", {"prompt": ["a", [[1]]]}),
    ("prompt[0][1]", {"prompt": [[1, False]]}),
    ("suffix", {"suffix": "the end"}),
    ("best_of", {"best_of": 2}),
    ("best_of", {"best_of": 3, "n": 2}),
    ("best_of", {"best_of": 1, "n": 2}),
    ("best_of", {"best_of": "two"}),
    ("logprobs", {"logprobs": 21}),
    ("logprobs", {"logprobs": -1}),
    ("logprobs", {"logprobs": True}),
    ("echo", {"echo": "yes"}),
    ("echo", {"echo": True, "logprobs": 1, "stream": True}),
    ("n", {"n": 0}),
    ("max_tokens", {"max_tokens": 0}),
    ("min_tokens", {"min_tokens": 17}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
]


@pytest.mark.parametrize(("param", "fields"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_field_is_refused_with_its_path(gateway: Gateway, param: str, fields: dict[str, Any]) -> None:
    error = refusal(gateway.client.post(PATH, json=completions.body() | fields))

    assert error["param"] == param
    assert error["message"].startswith(f"{param} ")
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("fields", [{"suffix": ""}, {"suffix": None}, {"best_of": 1}, {"best_of": None, "echo": None}])
def test_fields_that_ask_for_nothing_are_taken(gateway: Gateway, fields: dict[str, Any]) -> None:
    assert texts_of(complete(gateway, **fields)) == texts_of(complete(gateway))


def test_best_of_may_equal_n(
    able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor
) -> None:
    response = background.submit(complete, able_gateway, n=2, best_of=2)
    answer(able_executor, able_executor.next_submit(), "one", "two")

    assert texts_of(response.result()) == ["one", "two"]


def test_as_many_prompts_as_allowed_are_answered(echo_gateway: Gateway) -> None:
    prompts = [f"number {number}" for number in range(256)]

    assert texts_of(complete(echo_gateway, prompts)) == prompts
