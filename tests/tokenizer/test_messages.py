"""Messages as clients send them, in the form that a template takes."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.tokenizer import ChatTemplate
from gateway.tokenizer.messages import fitted
from gateway.types import ChatInput
from tests.tokenizer.templates.shapes import FOLDER

CALLS = "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}"
OBJECTS = f"{{% for m in messages %}}{{{{ m.content }}}}{CALLS}{{% endfor %}}"
TEXTS = OBJECTS.replace(" | tojson", "")
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}"


def call(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}


def render(source: str, *messages: dict[str, Any], **fields: Any) -> str:
    return ChatTemplate(source).render(ChatInput([*messages], **fields))


@pytest.mark.parametrize("given", ['{"a":1}', {"a": 1}])
def test_arguments_come_in_the_form_the_template_prints(given: Any) -> None:
    assert render(OBJECTS, call(given)) == '{"a": 1}'
    assert render(TEXTS, call(given)) == (given if isinstance(given, str) else '{"a": 1}')


def test_no_arguments_are_an_empty_object() -> None:
    assert render(OBJECTS, call("")) == render(OBJECTS, call(" ")) == "{}"


@pytest.mark.parametrize("arguments", ["{", "[1]", "5", "NaN", '{"a": Infinity}', "null"])
def test_arguments_that_are_no_object_are_refused_with_their_path(arguments: str) -> None:
    with pytest.raises(BadRequest) as caught:
        render(OBJECTS, {"role": "user", "content": "a"}, call(arguments))

    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"
    assert caught.value.message.startswith(caught.value.param)


def test_texts_are_made_parts_where_only_those_show() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert render(PARTS, {"role": "user", "content": "a"}, {"role": "user", "content": parts}) == "a|a|b|"
    assert render(OBJECTS, {"role": "user", "content": parts}) == "a\nb"


def test_nothing_that_the_client_sent_is_changed() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}], "name": None},
        {**call('{"a": 1}'), "reasoning": "Hm."},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
    ]
    before = json.dumps(messages)
    for source in (OBJECTS, PARTS):
        template = ChatTemplate(source)
        template.render(ChatInput(messages))
        template.render(ChatInput(messages, continue_final_message=True))

        assert json.dumps(messages) == before


def test_nulls_are_dropped_and_reasoning_has_all_its_names() -> None:
    (message,) = fitted([{"role": "user", "content": "a", "name": None, "reasoning": "Hm."}], ChatTemplate("").facts)

    assert message == {
        "role": "user",
        "content": "a",
        "reasoning": "Hm.",
        "thinking": "Hm.",
        "reasoning_content": "Hm.",
    }


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{{ '<think>\\n' if enable_thinking is defined and enable_thinking else '<think>\\n</think>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("fields", "opened"),
    [
        ({}, None),
        ({"thinking": True}, "<think>"),
        ({"thinking": False}, None),
        ({"reasoning_effort": "high"}, "<think>"),
        ({"reasoning_effort": "none"}, None),
        ({"reasoning_effort": "high", "thinking": False}, None),
        ({"thinking": True, "template_arguments": {"enable_thinking": False}}, None),
        ({"template_arguments": {"enable_thinking": True}}, "<think>"),
    ],
    ids=str,
)
def test_whether_to_think_is_told_under_the_templates_name(fields: dict[str, Any], opened: str | None) -> None:
    template = ChatTemplate(CHATML)
    source = ChatInput([{"role": "user", "content": "a </think> b <think> c"}], **fields)

    assert template.facts.toggles == ("enable_thinking",)
    assert template.open_reasoning(template.render(source), source) == opened


@pytest.mark.parametrize(
    ("content", "opened"),
    [
        ("An answer", None),
        ("<think>\nHm", "<think>"),
        ("<think>" + " hm" * 2000, "<think>"),
        ("<think>\nHm</think>So", None),
        ("[THINK]Hm", "[THINK]"),
        ("<think></think>[THINK]", "[THINK]"),
    ],
)
def test_a_continued_message_may_have_the_block_open(content: str, opened: str | None) -> None:
    template = ChatTemplate(CHATML)
    messages = [{"role": "user", "content": "What is <think>?"}, {"role": "assistant", "content": content}]
    source = ChatInput(messages, continue_final_message=True)

    assert template.open_reasoning(template.render(source), source) == opened


def test_a_turn_that_is_over_leaves_nothing_open() -> None:
    template = ChatTemplate(CHATML)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Write <think> and go on."}]
    source = ChatInput(messages, template_arguments={"add_generation_prompt": False})

    assert template.open_reasoning(template.render(source), source) is None


JSON = st.sampled_from(
    [
        None,
        True,
        0,
        -1.5,
        "",
        "text",
        "</think>",
        "{}",
        [],
        {},
        [1],
        ["a"],
        [{}],
        [{"type": "text"}],
        {"a": {"b": [None]}},
    ]
)
TOOL_LIKE = st.sampled_from([{}, {"function": None}, {"function": {"name": "f"}}, {"function": {"parameters": []}}])
ODD_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "function", "developer"])},
        optional={
            "content": JSON,
            "reasoning_content": JSON,
            "tool_calls": JSON | st.lists(st.fixed_dictionaries({"id": JSON, "function": JSON}), max_size=2),
            "tool_call_id": JSON,
            "name": JSON,
        },
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def some_templates() -> list[ChatTemplate]:
    names = ("qwen_3", "gpt_oss", "jamba", "command_a_reasoning")
    return [ChatTemplate((FOLDER / f"{name}.jinja").read_text("utf-8")) for name in names]


@settings(max_examples=40)
@given(messages=ODD_MESSAGES, tools=st.none() | st.lists(TOOL_LIKE, max_size=2), continues=st.booleans())
def test_whatever_messages_hold_is_rendered_or_refused(
    some_templates: list[ChatTemplate], messages: list[dict[str, Any]], tools: Any, continues: bool
) -> None:
    source = ChatInput(messages, tools, continue_final_message=continues)
    for template in some_templates:
        try:
            prompt = template.render(source)
        except BadRequest as error:
            assert error.param
        else:
            template.open_reasoning(prompt, source)


def test_threads_that_share_a_template_do_not_disturb_each_other(some_templates: list[ChatTemplate]) -> None:
    sources = [ChatInput([{"role": "user", "content": f"{number} " * number}]) for number in range(1, 9)]
    expected = [[template.render(source) for source in sources] for template in some_templates]

    def render_all(number: int) -> bool:
        order = sources[number:] + sources[:number]
        return all(
            [template.render(source) for source in order] == texts[number:] + texts[:number]
            for template, texts in zip(some_templates, expected, strict=True)
            for _ in range(5)
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(render_all, range(8)))
