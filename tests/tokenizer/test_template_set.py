"""Which of a model's templates a conversation gets, and templates that clients bring along."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.tokenizer import ChatTemplate, ChatTemplates, RequestTemplates
from gateway.types import ChatInput

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
DOCUMENTS = [{"title": "t", "text": "x"}]


def rendered(templates: ChatTemplates, **fields: Any) -> str:
    return templates.render(ChatInput(MESSAGES, **fields))[0]


def named(**sources: str) -> ChatTemplates:
    return ChatTemplates({name: ChatTemplate(source) for name, source in sources.items()})


def refusal(templates: ChatTemplates, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        rendered(templates, **fields)
    return caught.value


def test_tools_have_a_template_of_their_own_if_there_is_one() -> None:
    templates = named(default="default", tool_use="tools")

    assert rendered(templates) == "default"
    assert rendered(templates, tools=TOOLS) == "tools"
    assert rendered(named(default="default"), tools=TOOLS) == "default"


def test_documents_have_one_if_the_default_would_drop_them() -> None:
    takes_them = "{% for d in documents or [] %}{{ d.text }}{% endfor %}."

    assert rendered(named(default="default", rag="rag"), documents=DOCUMENTS) == "rag"
    assert rendered(named(default=takes_them, rag="rag"), documents=DOCUMENTS) == "x."
    assert rendered(named(default="default", rag="rag", tool_use="tools"), documents=DOCUMENTS, tools=TOOLS) == "tools"


def test_a_template_can_be_asked_for_by_its_name() -> None:
    assert rendered(named(default="default", rag="rag"), template="rag") == "rag"


def test_without_a_template_chats_are_refused_with_the_remedy() -> None:
    error = refusal(ChatTemplates({}))

    assert error.code == "no_chat_template"
    assert "--chat-template" in error.message and "/v1/completions" in error.message
    assert "name one in chat_template: rag, tool_use" in refusal(named(rag="", tool_use="")).message


def test_templates_of_clients_are_refused_by_default() -> None:
    error = refusal(named(default="default"), template="{{ messages }}")

    assert error.param == "chat_template"
    assert "--allow-request-templates" in error.message


def test_so_many_different_templates_of_clients_are_taken() -> None:
    templates = ChatTemplates({}, {"bos_token": "<s>"}, RequestTemplates(2))

    for _ in range(3):
        assert rendered(templates, template="{{ bos_token }}one") == "<s>one"
        assert rendered(templates, template="two") == "two"
    assert "2 different ones" in refusal(templates, template="three").message
    assert rendered(templates, template="two") == "two"


def test_a_broken_template_of_a_client_takes_no_place() -> None:
    templates = ChatTemplates({}, {}, RequestTemplates(1))

    for _ in range(2):
        assert "does not compile" in refusal(templates, template="{% if %}").message
    assert rendered(templates, template="fine") == "fine"


def test_a_very_long_template_of_a_client_is_refused() -> None:
    assert "longer than" in refusal(ChatTemplates({}, {}, RequestTemplates(1)), template="x" * 300_000).message


def test_threads_that_bring_the_same_templates_have_each_compiled_once() -> None:
    requests = RequestTemplates(8)
    together = threading.Barrier(16)

    def bring(number: int) -> set[int]:
        together.wait()
        return {id(requests.get(f"{{{{ messages }}}}{each % 8}", {})) for each in range(number, number + 8)}

    with ThreadPoolExecutor(16) as threads:
        seen = set().union(*threads.map(bring, range(16)))

    assert len(seen) == 8
    with pytest.raises(BadRequest):
        requests.get("one more", {})
