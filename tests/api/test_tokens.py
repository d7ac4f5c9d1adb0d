"""/v1/tokenize and /v1/detokenize: there and back, and what they refuse."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.test_chat import refusal
from tests.demo_model import CONTEXT_LENGTH, TOKENIZER, VOCAB_SIZE, ids_of, prompt_of, text_of
from tests.processes import Gateway

TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def tokenize(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    response = gateway.client.post(TOKENIZE, json={"model": "demo", **fields})
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def detokenize(gateway: Gateway, tokens: list[int], **fields: Any) -> str:
    response = gateway.client.post(DETOKENIZE, json={"model": "demo", "tokens": tokens, **fields})
    assert response.status_code == 200, response.text
    assert response.json().keys() == {"prompt"}
    text: str = response.json()["prompt"]
    return text


@pytest.mark.parametrize("text", ["one two", "größer 🦊", "<|im_start|>user\nHi<|im_end|>", "a\u2028b\x00", " "])
def test_a_text_becomes_the_tokenizers_ids_and_comes_back(gateway: Gateway, text: str) -> None:
    answer = tokenize(gateway, prompt=text)

    tokens = ids_of(text)
    assert answer == {"count": len(tokens), "max_model_len": CONTEXT_LENGTH, "tokens": tokens, "token_strs": None}
    assert detokenize(gateway, tokens) == text


@settings(max_examples=40)
@given(text=TEXTS)
def test_any_text_comes_back(gateway: Gateway, text: str) -> None:
    tokens = tokenize(gateway, prompt=text)["tokens"]

    assert tokens == ids_of(text)
    assert detokenize(gateway, tokens) == text


@settings(max_examples=40)
@given(tokens=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=20))
def test_any_ids_become_the_tokenizers_text(gateway: Gateway, tokens: list[int]) -> None:
    assert detokenize(gateway, tokens) == TOKENIZER.decode(tokens, skip_special_tokens=False)
    assert detokenize(gateway, tokens, skip_special_tokens=True) == text_of(tokens)


def test_a_long_text_is_tokenized_too(gateway: Gateway) -> None:
    text = "Ein größerer Satz über 世界 und 🦊. " * 2000

    tokens = tokenize(gateway, prompt=text)["tokens"]

    assert tokens == ids_of(text)
    assert detokenize(gateway, tokens) == text


def test_an_empty_text_has_no_tokens(gateway: Gateway) -> None:
    assert tokenize(gateway, prompt="")["tokens"] == []
    assert detokenize(gateway, []) == ""


def test_the_tokens_texts_come_when_asked_for(gateway: Gateway) -> None:
    answer = tokenize(gateway, prompt="one two<|im_end|>🦊", return_token_strs=True)

    texts = answer["token_strs"]
    assert len(texts) == answer["count"]
    assert texts[:3] == ["one", " two", "<|im_end|>"]
    assert set(texts[3:]) == {"\N{REPLACEMENT CHARACTER}"}, "parts of a character have no text of their own"


def test_messages_are_what_a_chat_makes_of_them(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]

    assert tokenize(gateway, messages=messages)["tokens"] == prompt_of("Hi")


def test_messages_may_be_continued_and_have_template_arguments(gateway: Gateway) -> None:
    messages = [{"role": "assistant", "content": "Well, I"}]

    continued = tokenize(gateway, messages=messages, continue_final_message=True)
    unprompted = tokenize(gateway, messages=messages, chat_template_kwargs={"add_generation_prompt": False})

    assert continued["tokens"] == ids_of("<|im_start|>assistant\nWell, I")
    assert unprompted["tokens"] == ids_of("<|im_start|>assistant\nWell, I<|im_end|>\n")


BAD_FIELDS: list[tuple[str, str, dict[str, Any]]] = [
    (TOKENIZE, "model", {"model": None, "prompt": "Hi"}),
    (TOKENIZE, "prompt", {}),
    (TOKENIZE, "prompt", {"prompt": 5}),
    (TOKENIZE, "prompt", {"prompt": ["Hi"]}),
    (TOKENIZE, "messages", {"messages": []}),
    (TOKENIZE, "messages[0].role", {"messages": [{"content": "Hi"}]}),
    (TOKENIZE, "return_token_strs", {"prompt": "Hi", "return_token_strs": 1}),
    (DETOKENIZE, "tokens", {}),
    (DETOKENIZE, "tokens", {"tokens": 5}),
    (DETOKENIZE, "tokens", {"tokens": "one two"}),
    (DETOKENIZE, "tokens[1]", {"tokens": [1, VOCAB_SIZE]}),
    (DETOKENIZE, "tokens[0]", {"tokens": [-1]}),
    (DETOKENIZE, "tokens[2]", {"tokens": [1, 2, "three"]}),
    (DETOKENIZE, "tokens[0]", {"tokens": [True]}),
    (DETOKENIZE, "tokens[0]", {"tokens": [[1]]}),
    (DETOKENIZE, "tokens[1]", {"tokens": [1, 1 << 40]}),
    (DETOKENIZE, "skip_special_tokens", {"tokens": [1], "skip_special_tokens": "no"}),
]


@pytest.mark.parametrize(("path", "param", "fields"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:50])
def test_a_bad_field_is_refused_with_its_path(gateway: Gateway, path: str, param: str, fields: dict[str, Any]) -> None:
    error = refusal(gateway.client.post(path, json={"model": "demo"} | fields))

    assert error["param"] == param
    assert error["message"].startswith(param)


@pytest.mark.parametrize("path", [TOKENIZE, DETOKENIZE])
def test_an_unknown_model_is_not_found(gateway: Gateway, path: str) -> None:
    request = {"model": "gpt-1", "prompt": "Hi", "tokens": [1]}

    assert refusal(gateway.client.post(path, json=request), 404)["code"] == "model_not_found"
