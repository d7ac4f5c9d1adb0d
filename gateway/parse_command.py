"""`python3.13t -m gateway parse`: reads captured answers as the gateway would, and shows what they are to it."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from engine_adapters.tokenizer_file import TokenizerFileError
from gateway.model import read_signs
from gateway.parsers.call_families import CALL_FAMILIES
from gateway.parsers.detect import AUTO, Signs, UnknownParser, choose_calls, choose_reasoning
from gateway.parsers.family import Family
from gateway.parsers.json_value import parsed
from gateway.parsers.message import Call, Message
from gateway.parsers.output import Format
from gateway.parsers.reader import Tools
from gateway.parsers.reasoning_families import REASONING_FAMILIES
from gateway.types import Content, Piece, Reasoning

DESCRIPTION = """\
Reads JSON lines on standard input, each {"chunks": [...]} or {"text": "..."}, if need be with its own tools,
tool_parser, reasoning_parser and prompt_opens_reasoning. Writes one JSON line for each:
{"content", "reasoning", "tool_calls": [{"id", "name", "arguments"}], "events"}, or {"error"}."""
USAGE_ERROR = 2


class BadLine(Exception):
    """A line that is no answer; the message says why."""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 1 if there was a line that is no answer."""
    options = parser().parse_args(arguments)
    if options.list:
        sys.stdout.write(listing())
        return 0
    try:
        signs = read_signs(Path(options.model_path)) if options.model_path else None
        tools = read_tools(json.loads(Path(options.tools).read_text("utf-8"))) if options.tools else None
        lines = Lines(options.tool_parser, options.reasoning_parser, signs, tools, options.prompt_opens_reasoning)
    except (UnknownParser, TokenizerFileError, BadLine, OSError, ValueError) as error:
        sys.stderr.write(f"gateway parse: {error}\n")
        return USAGE_ERROR
    try:
        return lines.run(sys.stdin, sys.stdout)
    except BrokenPipeError:
        return 0  # whoever read the answers has seen enough


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python3.13t -m gateway parse",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = "auto looks at --model-path, none reads none"
    result.add_argument("--tool-parser", metavar="NAME", default=AUTO, help=f"how calls are written; {default}")
    result.add_argument("--reasoning-parser", metavar="NAME", default=AUTO, help="how reasoning is wrapped; the same")
    result.add_argument("--tools", metavar="FILE", help="the tools of the request, as JSON; without any, all are known")
    result.add_argument(
        "--prompt-opens-reasoning",
        action=argparse.BooleanOptionalAction,
        help="whether the prompt ends inside of the reasoning (as the family's usually do)",
    )
    result.add_argument("--model-path", metavar="DIR", help="a model folder to choose the parsers by")
    result.add_argument("--list", action="store_true", help="print every parser, its models and how it is detected")
    return result


class Lines:
    """Answers line after line; raises UnknownParser for the names that hold for all."""

    def __init__(
        self, calls: str, reasoning: str, signs: Signs | None, tools: Tools | None, opens_reasoning: bool | None
    ) -> None:
        self._names = (calls, reasoning)
        self._signs = signs
        self._tools = tools
        self._opens_reasoning = opens_reasoning
        self._formats: dict[tuple[str, str], Format] = {}
        self._format(calls, reasoning)

    def run(self, source: Iterable[str], target: TextIO) -> int:
        """The exit code."""
        code = 0
        for line in source:
            if not line.strip():
                continue
            try:
                result = self.answer(line)
            except (BadLine, UnknownParser) as error:
                result, code = {"error": str(error)}, 1
            # As ASCII: a captured stream may hold what no encoding has.
            target.write(json.dumps(result) + "\n")
            target.flush()  # whoever writes the lines may wait for the answers
        return code

    def answer(self, line: str) -> dict[str, Any]:
        """Raises BadLine or UnknownParser."""
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BadLine(f"not JSON: {error}") from error
        chunks = chunks_of(value)
        calls, reasoning = self._names
        form = self._format(value.get("tool_parser") or calls, value.get("reasoning_parser") or reasoning)
        tools = read_tools(value["tools"]) if value.get("tools") else self._tools
        opens = value.get("prompt_opens_reasoning")
        return read(form, chunks, tools, self._opens_reasoning if opens is None else bool(opens))

    def _format(self, calls: str, reasoning: str) -> Format:
        form = self._formats.get((calls, reasoning))
        if form is None:
            form = Format(choose_reasoning(reasoning, self._signs).family, choose_calls(calls, self._signs).family)
            self._formats[calls, reasoning] = form
        return form


def chunks_of(value: Any) -> list[str]:
    """Raises BadLine."""
    if not isinstance(value, dict):
        raise BadLine("no JSON object")
    chunks = value.get("chunks", [value.get("text")])
    if not isinstance(chunks, list) or not all(isinstance(chunk, str) for chunk in chunks):
        raise BadLine("needs chunks, a list of texts, or text")
    return chunks


def read_tools(value: Any) -> Tools:
    """Of OpenAI's tools, or of bare functions; raises BadLine."""
    schemas = {}
    for tool in value if isinstance(value, list) else [None]:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadLine("tools must be a list of functions with names")
        schemas[function["name"]] = function.get("parameters")
    return Tools(schemas)


def read(form: Format, chunks: Iterable[str], tools: Tools | None, opens_reasoning: bool | None) -> dict[str, Any]:
    """What a line becomes."""
    reader = form.parser(tools, opens_reasoning)
    message, events = Message(), []
    for pieces in (*(reader.feed(chunk) for chunk in chunks), reader.flush()):
        for piece in pieces:
            message.add(piece)
            events.append(event_of(piece))
    calls = [call_of(call) for call in message.calls]
    return {"content": message.content, "reasoning": message.reasoning, "tool_calls": calls, "events": events}


def call_of(call: Call) -> dict[str, Any]:
    """With the arguments as an object if they parse."""
    try:
        arguments = parsed(call.arguments)
    except ValueError:
        arguments = call.arguments
    return {"id": call.id, "name": call.name, "arguments": arguments}


def event_of(piece: Piece) -> dict[str, Any]:
    """A piece as JSON, without what it does not say."""
    if isinstance(piece, Content):
        return {"content": piece.text}
    if isinstance(piece, Reasoning):
        return {"reasoning": piece.text}
    said: Mapping[str, Any] = asdict(piece)
    return {"call": {key: value for key, value in said.items() if key == "number" or value}}


def listing() -> str:
    """Every parser, its models and how it is detected."""
    lines = ["Tool parsers"]
    lines += map(line_of, CALL_FAMILIES)
    lines += ["", "Reasoning parsers"]
    lines += map(line_of, REASONING_FAMILIES)
    return "\n".join(lines) + "\n"


def line_of(family: Family) -> str:
    ways = [f"model_type {' | '.join(family.model_types)}"] if family.model_types else []
    ways += [f"{' and '.join(family.signs)} in the template or vocabulary"] if family.signs else []
    aliases = f" (also {', '.join(family.aliases)})" if family.aliases else ""
    return f"  {family.name:<22}{family.models}{aliases}\n{'':24}by {'; '.join(ways) or 'its name only'}"
