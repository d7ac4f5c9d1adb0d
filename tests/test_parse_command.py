"""`python3.13t -m gateway parse`: captured answers in, what they are out."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from gateway import parse_command
from gateway.parse_command import Lines
from gateway.parsers.detect import UnknownParser
from tests.demo_model import FOLDER

CALL = '<tool_call>{"name": "f", "arguments": {"n": "1"}}</tool_call>'
XML = "<tool_call><function=f><parameter=n>1</parameter></function></tool_call>"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str, lines: list[Any]
) -> list[Any]:
    source = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(source))
    parse_command.main(words)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_line_is_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run(
        capsys,
        monkeypatch,
        *("--tool-parser", "hermes", "--reasoning-parser", "qwen3"),
        lines=[{"text": f"<think>Hm.</think>Hi.{CALL}"}, {"chunks": ["a<", "tool_call>"]}],
    )

    (call,) = first["tool_calls"]
    assert (first["reasoning"], first["content"]) == ("Hm.", "Hi.")
    assert (call["name"], call["arguments"]) == ("f", {"n": "1"}) and call["id"].startswith("call_")
    assert [next(iter(event)) for event in first["events"]] == ["reasoning", "content", "call", "call", "call"]
    assert second["content"] == "a<tool_call>" and second["tool_calls"] == []


def test_a_line_may_have_its_own_parsers_tools_and_prompt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"text": f"Hm.</think>{XML}", "tool_parser": "qwen3_coder", "reasoning_parser": "qwen3"}
    with_tools, without, other_tools = run(
        capsys,
        monkeypatch,
        lines=[
            line | {"tools": TOOLS, "prompt_opens_reasoning": True},
            line | {"prompt_opens_reasoning": False},
            line | {"tools": [{"name": "g"}], "prompt_opens_reasoning": True},
        ],
    )

    assert with_tools["reasoning"] == "Hm." and with_tools["tool_calls"][0]["arguments"] == {"n": 1}
    assert without["reasoning"] == "" and without["tool_calls"][0]["arguments"] == {"n": "1"}
    assert other_tools["tool_calls"] == [] and XML in other_tools["reasoning"] + other_tools["content"]


def test_a_bad_line_is_told_and_the_others_are_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ["nonsense", [1], {"chunks": "text"}, {"text": "a", "tool_parser": "nope"}, {"text": "a", "tools": [1]}]

    *errors, good = run(capsys, monkeypatch, lines=[*bad, {"text": "a"}])

    assert len(errors) == len(bad) and all(error.keys() == {"error"} for error in errors)
    assert good["content"] == "a"


def test_tools_come_from_a_file_and_parsers_from_a_model_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    words = ("--model-path", str(FOLDER), "--tools", str(tmp_path / "tools.json"))

    known, unknown = run(capsys, monkeypatch, *words, lines=[{"text": CALL}, {"text": CALL.replace('"f"', '"g"')}])

    assert len(known["tool_calls"]) == 1 and unknown["tool_calls"] == []


def test_unknown_parsers_are_told_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_command.main(["--tool-parser", "nope"]) == 2
    assert "hermes" in capsys.readouterr().err
    with pytest.raises(UnknownParser, match="qwen3"):
        Lines("auto", "nope", None, None, None)


def test_the_list_has_every_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(
        name in listed for name in ("kimi_k2", "harmony", "deepseek_r1", "<｜tool▁calls▁begin｜>", "also gpt_oss")
    )
