"""What of a conversation reaches the template, through the front door: /v1/tokenize says what a prompt became."""

import json
import shutil
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.api.test_chat import refusal
from tests.demo_model import END_OF_TEXT, FOLDER, ids_of, text_of
from tests.executor import FakeExecutor
from tests.processes import Gateway

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
BOS = "<|endoftext|>"
TEMPLATE = """{{ bos_token }}
{%- for d in documents or [] %}({{ d.title }}: {{ d.text }}){% endfor %}
{%- for t in tools or [] %}[{{ t | tojson }}]{% endfor %}
{%- for m in messages %}<{{ m.role }}>
{{- m.content if m.content is string else m.content | map(attribute='text') | join('+') }}
{%- for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}
{%- if add_generation_prompt %}<answer>{{ reasoning_effort or '' }}{{ '<think>' if thinking }}{% endif %}"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`own`: another template, and a BOS before texts. `bare`: no template."""
    root = tmp_path_factory.mktemp("models")
    for name, template in (("own", TEMPLATE), ("bare", None)):
        folder = Path(shutil.copytree(FOLDER, root / name))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, END_OF_TEXT)])
        tokenizer.save(str(folder / "tokenizer.json"))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text("utf-8")) | {"bos_token": BOS, "chat_template": template}
        path.write_text(json.dumps(config), "utf-8")
    return root


@pytest.fixture(scope="module")
def executor_of_own() -> Iterator[FakeExecutor]:
    with FakeExecutor() as executor:
        yield executor


@pytest.fixture(scope="module")
def two_models(folders: Path, executor_of_own: FakeExecutor) -> Iterator[Gateway]:
    paths = ("--model-path", f"own={folders / 'own'}", "--model-path", f"bare={folders / 'bare'}")
    workers = [f"{executor_of_own.url}?model=own"]
    with Gateway(*paths, "--allow-request-templates", "2", workers=workers) as gateway:
        yield gateway


def tokens(gateway: Gateway, **fields: Any) -> list[int]:
    response = gateway.client.post("/v1/tokenize", json={"model": "own", **fields})
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["tokens"]
    return ids


def prompt(gateway: Gateway, *messages: dict[str, Any], **fields: Any) -> str:
    """The rendered text, without its BOS, of which there is always one."""
    ids = tokens(gateway, messages=[*messages] or [USER], **fields)
    assert ids[0] == END_OF_TEXT
    assert ids.count(END_OF_TEXT) == 1
    return text_of(ids)


def test_documents_and_tools_reach_the_template(two_models: Gateway) -> None:
    documents = [{"title": "Heron", "text": "It waits."}]

    assert prompt(two_models, documents=documents) == "(Heron: It waits.)<user>Hi<answer>"
    assert prompt(two_models, tools=[TOOL]) == f"[{json.dumps(TOOL)}]<user>Hi<answer>"
    assert prompt(two_models, tools=[]) == "<user>Hi<answer>"


def test_contents_and_arguments_come_as_the_template_takes_them(two_models: Gateway) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a":"é"}'}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}

    assert prompt(two_models, parts, refused) == "<user>a+b<assistant>No.<answer>"
    assert prompt(two_models, {"role": "developer", "content": "Be."}, USER) == "<system>Be.<user>Hi<answer>"
    assert prompt(two_models, USER, called).endswith('look{"a": "é"}<answer>')


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "<answer>"),
        ({"enable_thinking": True}, "<answer><think>"),
        ({"enable_thinking": False}, "<answer>"),
        ({"thinking": True}, "<answer><think>"),
        ({"thinking": {"type": "enabled"}}, "<answer><think>"),
        ({"thinking": {"type": "disabled"}}, "<answer>"),
        ({"reasoning_effort": "high"}, "<answer>high"),
        ({"reasoning_effort": "high", "thinking": True}, "<answer>high<think>"),
        ({"chat_template_kwargs": {"thinking": True}}, "<answer><think>"),
        ({"add_generation_prompt": False}, "<user>Hi"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "<user>Hi"),
        ({"continue_final_message": True}, "<user>Hi"),
    ],
    ids=str,
)
def test_how_to_render_may_be_said_in_the_body(two_models: Gateway, fields: dict[str, Any], end: str) -> None:
    assert prompt(two_models, **fields).endswith(end)


def test_texts_have_the_bos_that_the_tokenizer_puts_there(two_models: Gateway) -> None:
    assert tokens(two_models, prompt="Hi") == [END_OF_TEXT, *ids_of("Hi")]
    assert tokens(two_models, prompt=f"{BOS}Hi") == [END_OF_TEXT, *ids_of("Hi")]
    assert tokens(two_models, prompt="Hi", add_special_tokens=False) == ids_of("Hi")
    assert tokens(two_models, messages=[USER], add_special_tokens=True) == tokens(two_models, messages=[USER])


def test_templates_of_clients_are_counted(two_models: Gateway) -> None:
    def text(template: str) -> str:
        return text_of(tokens(two_models, messages=[USER], chat_template=template))

    assert text("one {{ messages[0].content }}") == text("one {{ messages[0].content }}") == "one Hi"
    assert text("two") == "two"
    body = {"model": "own", "messages": [USER], "chat_template": "three"}
    assert "one too many" in refusal(two_models.client.post("/v1/tokenize", json=body))["message"]
    assert text("two") == "two"


def test_a_model_without_a_template_completes_texts_only(two_models: Gateway) -> None:
    chat = {"model": "bare", "messages": [USER]}
    error = refusal(two_models.client.post("/v1/chat/completions", json=chat))

    assert error["code"] == "no_chat_template"
    assert error["param"] == "messages"
    assert tokens(two_models, model="bare", prompt="Hi") == [END_OF_TEXT, *ids_of("Hi")]
    assert two_models.lines("no chat template, so only texts are completed")


def test_an_echo_shows_the_prompt_without_the_bos(
    two_models: Gateway, executor_of_own: FakeExecutor, background: ThreadPoolExecutor
) -> None:
    body = {"model": "own", "prompt": "Hi", "echo": True}
    response = background.submit(two_models.client.post, "/v1/completions", json=body)
    submit = executor_of_own.next_submit()
    executor_of_own.say(submit, *ids_of(" and so on"))
    executor_of_own.finish(submit)

    assert submit.token_ids == array("I", [END_OF_TEXT, *ids_of("Hi")]).tobytes()
    assert response.result().json()["choices"][0]["text"] == "Hi and so on"


BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("documents", {"documents": "x"}),
    ("documents", {"documents": []}),
    ("documents[1]", {"documents": [{}, "x"]}),
    ("tools", {"tools": {}}),
    ("tools[0].type", {"tools": [{}]}),
    ("tools[0].function.name", {"tools": [{"type": "function"}]}),
    ("chat_template_kwargs", {"chat_template_kwargs": []}),
    ("chat_template_kwargs.messages", {"chat_template_kwargs": {"messages": []}}),
    ("chat_template_kwargs.chat_template", {"chat_template_kwargs": {"chat_template": "x"}}),
    ("chat_template", {"chat_template": ["x"]}),
    ("chat_template", {"chat_template": "{% if %}"}),
    ("continue_final_message", {"continue_final_message": 1}),
    ("continue_final_message", {"continue_final_message": "thinking"}),
    ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": True}),
    ("add_generation_prompt", {"add_generation_prompt": "yes"}),
    ("add_special_tokens", {"add_special_tokens": 1}),
    ("enable_thinking", {"enable_thinking": "yes"}),
    ("thinking", {"thinking": "yes"}),
    ("thinking.type", {"thinking": {"type": "often"}}),
    ("reasoning_effort", {"reasoning_effort": 3}),
]


@pytest.mark.parametrize(("param", "fields"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_field_is_refused_with_its_path(gateway: Gateway, param: str, fields: dict[str, Any]) -> None:
    body = {"model": "demo", "messages": [USER]} | fields
    error = refusal(gateway.client.post("/v1/tokenize", json=body))

    assert error["param"] == param
    assert error["message"].startswith(param)
