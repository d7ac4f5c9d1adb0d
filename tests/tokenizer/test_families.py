"""The published families' templates: every conversation comes out as transformers renders it."""

import datetime
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.tokenizer import ChatTemplate, environment
from gateway.types import ChatInput
from tests.tokenizer.templates import generate_path
from tests.tokenizer.templates.conversations import CONVERSATIONS
from tests.tokenizer.templates.shapes import DATE, EXPECTED, FOLDER, SHAPES

CASES = [(name, conversation) for name in SHAPES for conversation in CONVERSATIONS]


class Today(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Today":
        return cls(*DATE)


@pytest.fixture(scope="module", autouse=True)
def today() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "datetime", Today)
        yield


@pytest.fixture(scope="module")
def templates() -> dict[str, ChatTemplate]:
    return {name: ChatTemplate((FOLDER / f"{name}.jinja").read_text("utf-8"), specials(name)) for name in SHAPES}


def specials(name: str) -> dict[str, str]:
    return {"bos_token": SHAPES[name].bos, "eos_token": SHAPES[name].eos}


def ours(template: ChatTemplate, conversation: str) -> str | None:
    try:
        return template.render(ChatInput(**CONVERSATIONS[conversation]))
    except BadRequest:
        return None


def expectation(name: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((EXPECTED / f"{name}.json").read_text("utf-8"))
    return expected


@pytest.mark.parametrize("name", SHAPES)
def test_every_conversation_is_rendered_as_by_transformers(templates: dict[str, ChatTemplate], name: str) -> None:
    expected = expectation(name)
    assert expected.keys() == CONVERSATIONS.keys(), "run tests/tokenizer/templates/generate.py"
    for conversation, wanted in expected.items():
        text = ours(templates[name], conversation)
        if text is not None and wanted is not None and wanted.startswith("sha256:"):
            digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]
            assert digest == wanted, f"{conversation}:\n{text}"
        else:
            assert text == wanted, conversation


@pytest.mark.skipif("GATEWAY_TRANSFORMERS_PYTHON" not in os.environ, reason="needs a Python that has transformers")
def test_transformers_itself_renders_the_same(templates: dict[str, ChatTemplate]) -> None:
    python = os.environ["GATEWAY_TRANSFORMERS_PYTHON"]
    printed = subprocess.run([python, generate_path(), "--print"], capture_output=True, text=True, check=True).stdout

    for name, texts in json.loads(printed).items():
        for conversation, text in texts.items():
            assert ours(templates[name], conversation) == text, (name, conversation)


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_template_takes_is_found_out(templates: dict[str, ChatTemplate], name: str) -> None:
    shape, facts = SHAPES[name], templates[name].facts

    assert set(facts.takes_parts) == set(shape.parts)
    assert set(facts.needs_parts) == (set(facts.takes_parts) if shape.wraps else set())
    assert facts.knows_developer == shape.developer
    assert facts.uses_effort == shape.effort
    if "tool_calls" in templates[name].source:
        assert facts.takes_objects == (shape.arguments == "object")


@pytest.mark.parametrize("name", SHAPES)
def test_the_reasoning_block_that_a_prompt_opens_is_seen(templates: dict[str, ChatTemplate], name: str) -> None:
    template = templates[name]
    source = ChatInput([{"role": "user", "content": "What does <think> mean?"}])
    try:
        prompt = template.render(source)
    except BadRequest:
        return

    assert template.open_reasoning(prompt, source) == SHAPES[name].opens
