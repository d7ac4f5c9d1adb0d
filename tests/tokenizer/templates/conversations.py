"""What clients send: conversations in OpenAI's shape. Read by the tests and by generate.py, which runs elsewhere."""

from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city, now or soon.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": 'Where, as in "Zürich".'},
                    "days": {"type": "integer", "default": 1},
                    "unit": {"type": "string", "enum": ["°C", "°F"], "default": "°C"},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Finds texts.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "filters": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
        },
    },
]
DOCUMENTS = [
    {"title": "Herons", "text": "A heron stands <still> & waits."},
    {"title": "Clocks", "text": "Clocks don't."},
]


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(number: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(number: int, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "content": content}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


WEATHER = call(1, "get_weather", '{"city": "Zürich <b>", "days": 2}')
SEARCH = call(
    2, "search", '{"query":"it\'s \\"quoted\\"\\n","tags":["a","é"],"filters":{"n": 1.50, "ok": true, "none": null}}'
)
ASK = user("What will the weather be?")
CALLED = [ASK, assistant(None, tool_calls=[WEATHER]), result(1, '{"sky": "grey"}')]

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [user("Hello!")]},
    "system": {"messages": [system("Be brief."), user("Hello!")]},
    "turns": {"messages": [user("  One. \n"), assistant("Two.\n\n"), user('\tThree & <four> "five" {{ six }} 🦊')]},
    "system and turns": {
        "messages": [system(" Ja. "), user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    },
    "two systems": {"messages": [system("One."), user("a"), assistant("b"), system("Two."), user("c")]},
    "developer": {"messages": [{"role": "developer", "content": "Be kind."}, user("Hello!")]},
    "two users": {"messages": [user("a"), user("b")]},
    "assistant last": {"messages": [user("a"), assistant("b")]},
    "no generation prompt": {
        "messages": [user("a"), assistant("b")],
        "template_arguments": {"add_generation_prompt": False},
    },
    "tools": {"messages": [ASK], "tools": TOOLS},
    "system and tools": {"messages": [system("Be brief."), ASK], "tools": TOOLS},
    "call": {"messages": CALLED, "tools": TOOLS},
    "call without tools": {"messages": CALLED},
    "call and answer": {"messages": [*CALLED, assistant("Grey."), user("And then?")], "tools": TOOLS},
    "call with words": {
        "messages": [ASK, assistant("I look.", tool_calls=[WEATHER]), result(1, "grey")],
        "tools": TOOLS,
    },
    "empty words": {"messages": [ASK, assistant("", tool_calls=[SEARCH]), result(2, "none")], "tools": TOOLS},
    "two calls": {
        "messages": [ASK, assistant(None, tool_calls=[WEATHER, SEARCH]), result(1, "grey"), result(2, "none")],
        "tools": TOOLS,
    },
    "call and thoughts": {
        "messages": [ASK, assistant(None, reasoning_content="Look.", tool_calls=[WEATHER]), result(1, "grey")],
        "tools": TOOLS,
    },
    "thoughts": {"messages": [user("a"), assistant("b", reasoning_content="Hm.\n"), user("c")]},
    "thoughts under another name": {"messages": [user("a"), assistant("b", reasoning="Hm."), user("c")]},
    "thoughts in the text": {"messages": [user("a"), assistant("<think>\nHm.\n</think>\n\nb"), user("c")]},
    "last thoughts": {
        "messages": [user("a"), assistant("b", reasoning_content="Hm.")],
        "template_arguments": {"add_generation_prompt": False},
    },
    "not thinking": {"messages": [user("Hello!")], "thinking": False},
    "thinking": {"messages": [system("Be brief."), user("a"), assistant("b"), user("c")], "thinking": True},
    "effort": {"messages": [user("Hello!")], "reasoning_effort": "high"},
    "documents": {"messages": [user("What does a heron do?")], "documents": DOCUMENTS},
    "continue": {"messages": [user("a"), assistant("The answer is")], "continue_final_message": True},
    "continue a space": {"messages": [user("a"), assistant("The answer is \n")], "continue_final_message": True},
    "continue nothing": {"messages": [user("a"), assistant("")], "continue_final_message": True},
    "continue twice the same": {"messages": [user("ab"), assistant("ab")], "continue_final_message": True},
    "continue a user": {"messages": [system("s"), user("To be or")], "continue_final_message": True},
    "continue thinking in the text": {
        "messages": [user("a"), assistant("<think>\nHm, ")],
        "continue_final_message": True,
    },
    "continue thoughts": {
        "messages": [user("a"), assistant("", reasoning_content="Hm, so ")],
        "continue_final_message": "reasoning_content",
    },
    "continue parts": {
        "messages": [user("a"), assistant([part("The answer"), part(" is")])],
        "continue_final_message": True,
    },
    "parts": {"messages": [user([part(" One "), part("two")])]},
    "parts everywhere": {
        "messages": [system([part("s1"), part("s2")]), user([part("a")]), assistant([part("b")]), user([part("c")])]
    },
    "parts of a result": {
        "messages": [ASK, assistant(None, tool_calls=[WEATHER]), result(1, [part("gr"), part("ey")])],
        "tools": TOOLS,
    },
    "arguments": {
        "messages": [user("Hello!")],
        "template_arguments": {"citation_mode": "accurate", "controls": {"length": "short"}, "thinking_budget": 0},
    },
}
WRITTEN_OUT = ("system and turns", "call", "continue a space")
"""The conversations whose expected text is kept whole; of the others, a digest."""
