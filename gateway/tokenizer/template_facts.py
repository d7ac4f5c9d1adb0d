"""What a chat template takes and does, found out by rendering small conversations with it when it is loaded.

Asking the template itself beats reading its source: whatever its macros and branches look like, it either shows what
a message holds or it does not, and it does so for each role on its own.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import BadRequest
from gateway.tokenizer.environment import CompiledTemplate
from gateway.tokenizer.reasoning import without_reasoning

Message = dict[str, Any]

TOGGLES = ("enable_thinking", "thinking", "reasoning")
"""The names under which templates take whether to think: Qwen, GLM, SmolLM; DeepSeek, Kimi, Granite; Command-A."""
EFFORTS = ("low", "medium", "high", "none")
FIRST, SECOND = "first probing words", "second probing words"
ARGUMENTS = {"probe_key": "probe value"}
TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A tool that probes.",
        "parameters": {
            "type": "object",
            "properties": {"probe_key": {"type": "string", "description": "What to probe."}},
            "required": ["probe_key"],
        },
    },
}
CALL_ID = "probe1234"
"""Nine characters, on which Mistral's templates insist."""
USER: Message = {"role": "user", "content": "Say something."}
SYSTEM: Message = {"role": "system", "content": "Be brief."}
ANSWER: Message = {
    "role": "assistant",
    "content": "An answer.",
    "reasoning_content": "Thoughts.",
    "thinking": "Thoughts.",
}
DOCUMENT = {"title": "A title", "text": "A text.", "content": "A text."}
DUMPED_PART = re.compile(r"""['"]text['"]: ?['"]""")
"""What a list of parts looks like when it was printed as it is, which is not what its model has learned."""
ABSENT: tuple[dict[str, Any], ...] = ({}, {"content": None}, {"content": ""})
"""How to tell a template that a message has no content: the first way is transformers' own."""


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """`takes_parts`: roles whose content may stay a list of parts. `needs_parts`: roles whose text shows only as one.

    `bare_call` and `bare_message` are the fields that say a message with and one without tool calls has no content.
    `takes_objects`: tool calls' arguments are to be objects, not JSON text. `toggles` are variables that switch
    thinking. `header` is what opens the model's turn.
    """

    takes_parts: tuple[str, ...]
    needs_parts: tuple[str, ...]
    bare_call: Mapping[str, Any]
    bare_message: Mapping[str, Any]
    takes_objects: bool
    knows_developer: bool
    toggles: tuple[str, ...]
    uses_effort: bool
    uses_tools: bool
    uses_documents: bool
    writes_bos: bool
    header: str


class Probe:
    """Renders with a template's special tokens; a refusal is an empty text."""

    def __init__(self, compiled: CompiledTemplate, special_tokens: Mapping[str, str]) -> None:
        self._compiled = compiled
        self._special_tokens = special_tokens

    def text(self, *messages: Message, **variables: Any) -> str:
        plain = {"messages": [*messages], "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self._compiled.render({**plain, **self._special_tokens, **variables})
        except BadRequest:
            return ""

    def differs(self, name: str, one: Any, other: Any) -> bool:
        """Whether a variable's value makes a difference anywhere."""
        conversations = ((USER,), (SYSTEM, USER), (USER, ANSWER, USER))
        return any(self.text(*each, **{name: one}) != self.text(*each, **{name: other}) for each in conversations)


def examine(compiled: CompiledTemplate, special_tokens: Mapping[str, str]) -> TemplateFacts:
    """Some seventy renderings, which take about 30 ms."""
    probe = Probe(compiled, special_tokens)
    absent, takes_objects = examine_tool_calls(probe)
    knows_developer = "developer" in compiled.strings
    takes, needs = set(), set()
    for role, conversation in CONVERSATIONS.items():
        form = "object" if takes_objects else "text"
        if role == "developer" and not knows_developer:
            continue
        shows_text = is_shown(probe.text(*conversation(FIRST + SECOND, form, absent), tools=tools_for(role)))
        if is_shown(probe.text(*conversation(parts(), form, absent), tools=tools_for(role))):
            takes.add(role)
            if not shows_text:
                needs.add(role)
    return TemplateFacts(
        takes_parts=tuple(takes),
        needs_parts=tuple(needs),
        bare_call=absent,
        bare_message=examine_bare_messages(probe),
        takes_objects=takes_objects,
        knows_developer=knows_developer,
        toggles=tuple(name for name in TOGGLES if probe.differs(name, True, False)),
        uses_effort=any(probe.differs("reasoning_effort", EFFORTS[0], other) for other in EFFORTS[1:]),
        uses_tools=probe.differs("tools", None, [TOOL]),
        uses_documents=probe.differs("documents", None, [DOCUMENT]),
        writes_bos=writes_bos(probe, special_tokens.get("bos_token", "")),
        header=find_header(probe),
    )


def tools_for(role: str) -> list[dict[str, Any]] | None:
    return [TOOL] if role == "tool" else None


def parts() -> list[dict[str, str]]:
    return [{"type": "text", "text": FIRST}, {"type": "text", "text": SECOND}]


def is_shown(text: str) -> bool:
    return FIRST in text and SECOND in text and not DUMPED_PART.search(text)


def call(form: str, absent: Mapping[str, Any]) -> Message:
    """A message that calls the tool, with its arguments as an object or as text."""
    arguments = ARGUMENTS if form == "object" else json.dumps(ARGUMENTS)
    function = {"name": "probe_tool", "arguments": arguments}
    return {"role": "assistant", **absent, "tool_calls": [{"id": CALL_ID, "type": "function", "function": function}]}


def result(content: Any) -> Message:
    return {"role": "tool", "tool_call_id": CALL_ID, "name": "probe_tool", "content": content}


type Conversation = Callable[[Any, str, Mapping[str, Any]], list[Message]]

CONVERSATIONS: dict[str, Conversation] = {
    "system": lambda content, form, absent: [{"role": "system", "content": content}, USER],
    "developer": lambda content, form, absent: [{"role": "developer", "content": content}, USER],
    "user": lambda content, form, absent: [{"role": "user", "content": content}],
    "assistant": lambda content, form, absent: [USER, {"role": "assistant", "content": content}, USER],
    "tool": lambda content, form, absent: [USER, call(form, absent), result(content)],
}
"""For each role, a conversation in which it says something."""


def examine_tool_calls(probe: Probe) -> tuple[Mapping[str, Any], bool]:
    """(How absent content is told, whether arguments are objects): the first way in which the call shows."""
    for absent in ABSENT:
        for form in ("object", "text"):
            text = probe.text(USER, call(form, absent), result("A result."), tools=[TOOL])
            if shows_call(text):
                return absent, form == "object"
    return ABSENT[0], True


def examine_bare_messages(probe: Probe) -> Mapping[str, Any]:
    """How an answer that has neither content nor tool calls is told: the first way that is not refused."""
    for absent in ABSENT:
        text = probe.text(USER, {"role": "assistant", **absent}, USER)
        if text and "None" not in text:
            return absent
    return ABSENT[0]


def shows_call(text: str) -> bool:
    """Whether the arguments are there, neither as Python prints them nor as JSON inside of JSON."""
    is_dumped = "'probe_key':" in text or '\\"probe_key' in text
    return ARGUMENTS["probe_key"] in text and not is_dumped


def writes_bos(probe: Probe, bos: str) -> bool:
    return bool(bos) and (bos in probe.text(USER) or bos in probe.text(SYSTEM, USER))


def find_header(probe: Probe) -> str:
    """What `add_generation_prompt` adds, up to the first mark of reasoning; empty where it adds nothing."""
    for conversation in ((USER,), (SYSTEM, USER)):
        without, text = probe.text(*conversation, add_generation_prompt=False), probe.text(*conversation)
        if without and text.startswith(without):
            return without_reasoning(text.removeprefix(without))
    return ""
