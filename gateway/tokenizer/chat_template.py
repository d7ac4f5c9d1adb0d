"""Chat templates: a conversation rendered to the text its model was trained on, just as transformers renders it.

Threads: one template serves every thread; all that changes while it renders is in locals.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from gateway.errors import BadRequest
from gateway.tokenizer.environment import CompiledTemplate
from gateway.tokenizer.messages import REASONING, fitted
from gateway.tokenizer.reasoning import open_marker
from gateway.tokenizer.template_facts import Message, examine
from gateway.types import ChatInput

TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message that is continued, as in transformers. Whether its space survives tells if the template
strips contents."""
TAIL_CHARACTERS = 512
"""How much of a prompt's end is searched for the opening of the model's turn: more than any template writes there."""
NO_THINKING = ("none", "minimal")


class ChatTemplate:
    """`source` is the template as the model folder has it; `special_tokens` are variables such as `bos_token`.

    Raises jinja2.TemplateSyntaxError for a source that cannot be compiled.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] = MappingProxyType({})) -> None:
        self._compiled = CompiledTemplate(source)
        self._special_tokens = dict(special_tokens)
        self.source = source
        self.facts = examine(self._compiled, special_tokens)
        self.opens_reasoning = self._probe_opening()
        """The marker that a prompt leaves open when nobody says whether to think."""

    def render(self, source: ChatInput) -> str:
        """The prompt, ending where the assistant begins to speak, or where the last message stops.

        Raises BadRequest when the template refuses.
        """
        messages = fitted(source.messages, self.facts)
        variables = {
            "messages": messages,
            "tools": source.tools,
            "documents": source.documents,
            "add_generation_prompt": not source.continue_final_message,
            **self._special_tokens,
            **self._thinking(source),
            **source.template_arguments,
        }
        if not source.continue_final_message:
            return self._compiled.render(variables)
        field = source.continue_final_message if isinstance(source.continue_final_message, str) else "content"
        continued = self._tag(messages, field)
        return _up_to_tag(self._compiled.render(variables), continued)

    def open_reasoning(self, prompt: str, source: ChatInput) -> str | None:
        """The opening marker of the reasoning block that a rendered `prompt` leaves open, if it does.

        Looks only at the model's own turn, so that markers in other messages do not count.
        """
        continues = bool(source.continue_final_message)
        length = TAIL_CHARACTERS
        if continues:
            length += sum(len(str(value)) for value in source.messages[-1].values())
        tail = prompt[-length:]
        header = self.facts.header
        arguments = source.template_arguments
        is_in_turn = continues or "add_generation_prompt" not in arguments or arguments["add_generation_prompt"]
        if header and is_in_turn and header in tail:
            return open_marker(tail.rpartition(header)[2])
        marker = open_marker(tail)
        return marker if marker and (continues or tail.rstrip().endswith(marker.rstrip())) else None

    def _probe_opening(self) -> str | None:
        source = ChatInput([{"role": "user", "content": "Say something."}])
        try:
            return self.open_reasoning(self.render(source), source)
        except BadRequest:
            return None

    def _thinking(self, source: ChatInput) -> dict[str, Any]:
        """The client's wish to have it think or not, under the names that this template has for it."""
        effort, wanted = source.reasoning_effort, source.thinking
        if wanted is None and effort is not None and not self.facts.uses_effort:
            wanted = effort not in NO_THINKING
        variables: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
        return variables if wanted is None else variables | dict.fromkeys(self.facts.toggles, wanted)

    def _tag(self, messages: list[Message], field: str) -> str:
        """Mark the end of the last message's `field`; returns what it says."""
        if not messages or (value := messages[-1].get(field)) is None:
            _refuse(f"needs a last message with {field!r}")
        last = messages[-1] = dict(messages[-1])
        fields = [field]
        if field in REASONING:
            fields = [name for name in REASONING if last.get(name) == value]
        if not any(name in self.source for name in fields):
            _refuse(f"cannot continue {field!r}: the chat template does not use it")
        if isinstance(value, list):
            return _tag_part(last, field, value)
        if not isinstance(value, str):
            _refuse(f"needs a last message whose {field!r} is text")
        for name in fields:
            last[name] = value + TAG
        return value


def _tag_part(message: Message, field: str, parts: list[Any]) -> str:
    """Mark the last part that has a text, in a copy."""
    for index in reversed(range(len(parts))):
        if isinstance(parts[index], dict) and isinstance(text := parts[index].get("text"), str):
            message[field] = [*parts[:index], {**parts[index], "text": text + TAG}, *parts[index + 1 :]]
            return text
    _refuse("needs a last message with a text")


def _up_to_tag(text: str, continued: str) -> str:
    """Drop all that the template writes after the message, and the space it may have stripped from its end."""
    place = text.rfind(TAG.strip())
    if place < 0 or continued.strip() not in text:
        _refuse("needs a last message whose text the chat template leaves as it is")
    is_stripped = not text.startswith(TAG, place)
    return text[:place].rstrip() if is_stripped else text[:place]


def _refuse(why: str) -> NoReturn:
    raise BadRequest(f"continue_final_message {why}", param="continue_final_message")
