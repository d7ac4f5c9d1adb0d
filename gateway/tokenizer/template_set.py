"""The chat templates of one model: its own ones by name, and those that clients bring along.

Threads: `RequestTemplates` is shared by all threads and models. `_lock` guards the table and the count and is not held
while a template compiles; who asks for one that another thread is compiling waits for that thread.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import NoReturn

from gateway.errors import BadRequest
from gateway.tokenizer.chat_template import ChatTemplate
from gateway.tokenizer.messages import with_placeholders
from gateway.types import ChatInput

DEFAULT, TOOL_USE, RAG = "default", "tool_use", "rag"
MAX_SOURCE_CHARACTERS = 1 << 18

type Key = tuple[str, frozenset[tuple[str, str]]]
"""A source, and the special tokens it is rendered with."""


class RequestTemplates:
    """Templates from request bodies: at most `limit` distinct ones in the life of the process, for all models.

    A compiled template cannot be given back: its functions are immortal on 3.13t.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._templates: dict[Key, Future[ChatTemplate]] = {}

    def get(self, source: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
        """Raises BadRequest when templates of clients are not taken, are used up, or this one is broken."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            _refuse(f"is longer than {MAX_SOURCE_CHARACTERS} characters")
        key = (source, frozenset(special_tokens.items()))
        with self._lock:
            template = self._templates.get(key)
            is_new = template is None
            if template is None:
                if len(self._templates) >= self.limit:
                    self._refuse_more()
                template = self._templates[key] = Future()
        if is_new:
            self._compile(key, special_tokens, template)
        return template.result()

    def _compile(self, key: Key, special_tokens: Mapping[str, str], template: Future[ChatTemplate]) -> None:
        try:
            template.set_result(ChatTemplate(key[0], special_tokens))
        except Exception as error:  # jinja2 raises its own and, for odd sources, Python's compile errors
            with self._lock:
                del self._templates[key]
            template.set_exception(BadRequest(f"chat_template does not compile: {error}", param="chat_template"))

    def _refuse_more(self) -> NoReturn:
        if self.limit == 0:
            _refuse("is not taken from clients here (--allow-request-templates)")
        _refuse(f"is one too many: {self.limit} different ones have been taken (--allow-request-templates)")


@dataclass(frozen=True)
class ChatTemplates:
    """A model's templates by name, none when its folder has none."""

    named: Mapping[str, ChatTemplate]
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    requests: RequestTemplates = field(default_factory=RequestTemplates)

    def of(self, source: ChatInput) -> ChatTemplate:
        """The one for a conversation; raises BadRequest when there is none.

        As transformers chooses: tool_use when there are tools, else the default. Beyond it, rag is for documents that
        the default would drop.
        """
        wanted = source.template
        if wanted is not None:
            return self.named.get(wanted) or self.requests.get(wanted, self.special_tokens)
        if source.tools is not None and TOOL_USE in self.named:
            return self.named[TOOL_USE]
        default = self.named[DEFAULT] if DEFAULT in self.named else None  # `get` is slow here (docs/performance.md)
        if source.documents and RAG in self.named and not (default and default.facts.uses_documents):
            return self.named[RAG]
        if default is None:
            raise BadRequest(self._what_is_missing(), param="messages", code="no_chat_template")
        return default

    def render(self, source: ChatInput, placeholder: str = "") -> tuple[str, str | None]:
        """(the prompt, the marker of the reasoning block that it leaves open); raises BadRequest.

        `placeholder` is what stands for an image.
        """
        template = self.of(source)
        if placeholder and not template.writes(placeholder):
            source = replace(source, messages=with_placeholders(source.messages, placeholder))
        prompt = template.render(source)
        return prompt, template.open_reasoning(prompt, source)

    def _what_is_missing(self) -> str:
        if self.named:
            return f"this model has no default chat template; name one in chat_template: {', '.join(self.named)}"
        return "this model has no chat template: use /v1/completions, or start the gateway with --chat-template FILE"


def _refuse(why: str) -> NoReturn:
    raise BadRequest(f"chat_template {why}", param="chat_template")
