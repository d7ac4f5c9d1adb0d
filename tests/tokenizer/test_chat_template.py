"""Chat templates: what they may use, how they fail, and that they cannot get out."""

from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.tokenizer import ChatTemplate
from gateway.types import ChatInput

USER = {"role": "user", "content": "Hi"}
SIMPLE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)


def render(source: str, *messages: dict[str, Any], **special_tokens: str) -> str:
    return ChatTemplate(source, special_tokens).render(ChatInput([*messages] or [USER]))


def test_messages_are_rendered_up_to_where_the_assistant_begins() -> None:
    assert render(SIMPLE, {"role": "system", "content": "Be brief."}, USER) == "<system>Be brief.<user>Hi<answer>"


def test_special_tokens_are_variables() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos_token="<s>", eos_token="</s>") == (
        "<s>Hi</s>"
    )


def test_blocks_leave_no_white_space() -> None:
    assert render("{% if true %}\n  {% if true %}\na\n  {% endif %}\n{% endif %}\nb") == "a\nb"


USED_BY_MODELS: dict[str, tuple[str, str]] = {
    "tojson keeps letters": ("{{ {'b': 'é<&', 'a': [1, none]} | tojson }}", '{"b": "é<&", "a": [1, null]}'),
    "tojson with an indent": ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
    "loop controls": ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    "namespace": ("{% set n = namespace(x=1) %}{% for i in [2, 3] %}{% set n.x = i %}{% endfor %}{{ n.x }}", "3"),
    "Python's methods of strings": ("{{ ' a,b '.strip().split(',')[-1].upper() }}", "B"),
    "the date": ("{{ strftime_now('%Y') | length }}", "4"),
    "undefined variables": ("{% if tools is defined and tools %}x{% else %}y{% endif %}", "y"),
    "macros": ("{% macro twice(text) %}{{ text }}{{ text }}{% endmacro %}{{ twice('ab') }}", "abab"),
    "slices": ("{{ messages[1:] | length }}{{ 'abc'[::-1] }}", "0cba"),
}


@pytest.mark.parametrize(("source", "expected"), USED_BY_MODELS.values(), ids=USED_BY_MODELS)
def test_what_models_templates_use_is_there(source: str, expected: str) -> None:
    assert render(source) == expected


FAULTS: dict[str, tuple[str, str]] = {
    "a refusal of its own": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "an undefined field": ("{{ messages[0].tool.name }}", "tool"),
    "an operation on the wrong type": ("{{ messages[0].content + 1 }}", "str"),
    "a division by zero": ("{{ 1 // 0 }}", "zero"),
    "an index out of range": ("{{ messages[0].content.index('x') }}", "substring"),
    "what cannot be JSON": ("{{ {'f': range} | tojson }}", "JSON"),
}


@pytest.mark.parametrize(("source", "word"), FAULTS.values(), ids=FAULTS)
def test_a_template_that_fails_blames_the_messages(source: str, word: str) -> None:
    with pytest.raises(BadRequest) as caught:
        render(source)

    assert caught.value.param == "messages"
    assert word in caught.value.message


ESCAPES = [
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].clear() }}",
    "{{ range(100000000) | list }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{% for x in messages %}{{ x.__setitem__('role', 1) }}{% endfor %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_get_out_or_change_the_messages(source: str) -> None:
    message = dict(USER)

    try:
        text = render(source, message)
    except BadRequest:
        text = ""

    assert text == "", "what is out of reach is undefined, and undefined is empty"
    assert message == USER


def test_a_template_that_does_not_compile_is_told_at_once() -> None:
    with pytest.raises(jinja2.TemplateSyntaxError):
        ChatTemplate("{% for %}", {})


@given(content=st.text(), role=st.text())
def test_content_is_never_taken_for_a_template(content: str, role: str) -> None:
    expected = f"<{role}>{content}<answer>"
    # As in Python's own templates, str() of a string is itself, whatever it holds.
    assert render(SIMPLE, {"role": role, "content": content}) == expected


def test_a_final_message_may_be_continued() -> None:
    template = ChatTemplate(SIMPLE + "<end>")
    messages = [USER, {"role": "assistant", "content": "Well, "}]

    assert template.render(ChatInput(messages, continue_final_message=True)) == "<user>Hi<assistant>Well, "


def test_a_final_message_that_the_template_drops_cannot_be_continued() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    for content in ("gone", "", None):
        messages = [USER, {"role": "assistant", "content": content}]
        with pytest.raises(BadRequest) as caught:
            template.render(ChatInput(messages, continue_final_message=True))

        assert caught.value.param == "continue_final_message"
