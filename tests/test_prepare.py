"""How much work a prompt is judged to be, before it is rendered."""

from typing import Any

import pytest

from gateway.pools import INLINE_CHARACTERS
from gateway.types import ChatInput

HI = {"role": "user", "content": "Hi"}
LARGE = {"properties": {f"p{number}": {"description": "what it is for " * 9} for number in range(30)}}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x" * 3000}}]}


@pytest.mark.parametrize(
    "source",
    [
        ChatInput([HI], tools=[{"type": "function", "function": {"name": "f", "parameters": LARGE}}]),
        ChatInput([HI], documents=[{"title": "t", "text": "x" * 3000}]),
        ChatInput([HI, CALL]),
        ChatInput([{"role": "user", "content": [{"type": "text", "text": "x" * 3000}]}]),
    ],
    ids=["tools", "documents", "tool calls", "parts"],
)
def test_whatever_makes_a_prompt_long_takes_it_off_the_event_loop(source: ChatInput) -> None:
    assert source.characters >= INLINE_CHARACTERS


@pytest.mark.parametrize(
    ("source", "renders_fast"),
    [
        (ChatInput([{"role": "user", "content": "x" * 100_000}]), True),
        (ChatInput([HI] * 100), False),
        (ChatInput([HI], tools=[{"type": "function"}]), False),
        (ChatInput([HI], documents=[{}]), False),
        (ChatInput([HI], template="{{ messages }}"), False),
    ],
)
def test_only_what_is_little_more_than_copied_is_rendered_on_the_event_loop(
    source: ChatInput, renders_fast: bool
) -> None:
    assert source.renders_fast == renders_fast


def test_a_short_chat_with_a_small_tool_stays_there() -> None:
    tool: dict[str, Any] = {"type": "function", "function": {"name": "f", "description": "Does it."}}

    assert ChatInput([HI], tools=[tool]).characters < INLINE_CHARACTERS
