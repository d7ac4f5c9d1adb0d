"""Reasoning, and what comes behind it, of every family, however the text is cut."""

import itertools
from typing import Any

import pytest

from gateway.parsers.reasoning_families import REASONING_FAMILIES
from tests.parsers.answers import Answer, format_of, read

F = ("f", {"a": 1})
HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{"a": 1}<|tool_call_end|><|tool_calls_section_end|>'
)
COHERE = '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}]<|END_ACTION|>'
HARMONY = '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}'
K3 = (
    '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>argument key="a" type="number"<|sep|>1'
    "<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>"
)


def answer(reasoning: str = "", content: str = "", *calls: tuple[str, Any]) -> Answer:
    return Answer(content, reasoning, list(calls))


# (reasoning family, call family, whether the prompt opens the reasoning, what the model writes, what it means)
CASES: list[tuple[str, str | None, bool | None, str, Answer]] = [
    ("qwen3", None, False, "<think>\nWhy.\n\nSo.\n</think>\n\nBecause.", answer("Why.\n\nSo.", "Because.")),
    ("qwen3", None, True, "Why.\n</think>\n\nBecause.", answer("Why.", "Because.")),
    ("qwen3", None, False, "Because.", answer("", "Because.")),
    ("qwen3", None, False, " \n<think>Why.</think>Because.", answer("Why.", "Because.")),
    ("qwen3", None, False, "<think>\n\n</think>\n\nBecause.", answer("", "Because.")),
    ("qwen3", None, True, "cut off in the midd", answer("cut off in the midd")),
    ("qwen3", None, True, "a < b, </th and </thin\n", answer("a < b, </th and </thin\n")),
    ("qwen3", None, True, "Why.</think>a </think> <think> b", answer("Why.", "a </think> <think> b")),
    ("qwen3", "hermes", True, f"Why.\n</think>\n\n{HERMES}", answer("Why.", "", F)),
    ("qwen3", "hermes", True, f"Why.\n</think>\n\nLet me see.\n{HERMES}", answer("Why.", "Let me see.\n", F)),
    ("qwen3", "hermes", True, f"Why. {HERMES} Done", answer("Why. ", " Done", F)),
    ("qwen3", "hermes", True, "I could <tool_call> it.</think>No.", answer("I could <tool_call> it.", "No.")),
    ("qwen3", "hermes", False, f"  {HERMES}\n", answer("", "", F)),
    ("qwen3", "hermes", False, "  \n", answer("", "  \n")),
    ("qwen3_thinking", None, None, "Why.\n</think>\n\nBecause.", answer("Why.", "Because.")),
    ("deepseek_r1", None, None, "<think>\nWhy.\n</think>\n\nBecause.", answer("Why.", "Because.")),
    ("deepseek_r1", "deepseek_v3", True, "A <｜tool▁calls▁begin｜> B", answer("A <｜tool▁calls▁begin｜> B")),
    ("deepseek_v31", None, True, "Why.</think>Because.", answer("Why.", "Because.")),
    ("glm45", "glm45", False, "<think>Why.</think>\n<tool_call>g\n</tool_call>", answer("Why.", "", ("g", {}))),
    ("kimi_k2", "kimi_k2", True, f"Why.{KIMI}", answer("Why.", "", F)),
    ("kimi_vl", None, False, "◁think▷Why.◁/think▷Because.", answer("Why.", "Because.")),
    ("minimax_m2", None, None, "Why.\n</think>\n\nBecause.", answer("Why.", "Because.")),
    ("minimax_append_think", None, None, "Why.\n</think>\n\nB.", answer("", "<think>Why.\n</think>\n\nB.")),
    ("step3", None, None, "<think>Why.</think>Because.", answer("Why.", "Because.")),
    ("nemotron", "qwen3_coder", True, "Why.\n</think>\n<function=g>\n</function>", answer("Why.", "", ("g", {}))),
    ("cohere", "cohere", False, f"<|START_THINKING|>Why.<|END_THINKING|>{COHERE}", answer("Why.", "", F)),
    ("cohere", None, True, "W<|END_THINKING|><|START_TEXT|>B.<|END_TEXT|>", answer("W", "B.")),
    ("cohere", None, False, "<|START_RESPONSE|>Because.", answer("", "Because.")),
    ("magistral", None, False, "[THINK]Why.[/THINK]Because.", answer("Why.", "Because.")),
    ("magistral", "mistral", False, '[THINK]Why.[TOOL_CALLS]f[ARGS]{"a": 1}', answer("Why.", "", F)),
    (
        "granite",
        None,
        False,
        "Here's my thought process: Why.\nHere is my response: Because.",
        answer("Why.", "Because."),
    ),
    ("granite", None, False, "Here is my answer", answer("", "Here is my answer")),
    ("seed_oss", None, None, "<seed:think>Why.</seed:think>Because.", answer("Why.", "Because.")),
    ("hunyuan_a13b", None, False, "<think>\nW\n</think>\n<answer>\nB.\n</answer>", answer("W", "B.")),
    ("gemma4", None, False, "<|channel>thought\nWhy.\n<channel|>Because.", answer("Why.", "Because.")),
    ("kimi_k3", "kimi_k3", True, f"W<|close|>think<|sep|><|open|>response<|sep|>B.{K3}", answer("W", "B.", F)),
    ("harmony", "harmony", None, "<|channel|>final<|message|>Because.<|return|>", answer("", "Because.")),
    (
        "harmony",
        "harmony",
        None,
        f"<|channel|>analysis<|message|>Why.<|end|><|start|>assistant<|channel|>commentary<|message|>So:<|end|>{HARMONY}",
        answer("Why.", "So:", F),
    ),
    ("harmony", "harmony", True, f"Why.<|end|>{HARMONY}<|call|>", answer("Why.", "", F)),
    (
        "harmony",
        "harmony",
        None,
        "<|start|>assistant to=functions.g<|channel|>commentary<|message|>{}",
        answer("", "", ("g", {})),
    ),
]


def test_every_family_is_tested() -> None:
    assert {case[0] for case in CASES} == {family.name for family in REASONING_FAMILIES}


@pytest.mark.parametrize(
    ("reasoning", "calls", "opens", "text", "meaning"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_answers_mean_the_same_however_they_are_cut(
    reasoning: str, calls: str | None, opens: bool | None, text: str, meaning: Answer
) -> None:
    form = format_of(calls, reasoning)

    assert read(form, [text], opens=opens) == meaning
    assert read(form, text, opens=opens) == meaning, "character by character"
    for size in (2, 3, 4):
        assert read(form, map("".join, itertools.batched(text, size, strict=False)), opens=opens) == meaning
    for place in range(1, len(text)):
        assert read(form, [text[:place], text[place:]], opens=opens) == meaning, place
