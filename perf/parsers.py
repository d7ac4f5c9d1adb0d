"""What reading answers costs: `python3.13t -m perf parsers`. Figures are the best of several runs, in CPU time.

The chain is the gateway's own, `AnswerDecoder.event`: detokenizer, stop strings, reasoning and calls, one token at a
time.
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from gateway.api.body import Fields
from gateway.api.conversation import read_conversation
from gateway.api.tools import ToolUse, forced_calls, read_tool_use
from gateway.decoder import AnswerDecoder, AnswerReader
from gateway.immortal import make_immortal
from gateway.model import Model, load_models
from gateway.parsers.detect import Choice, named_calls, named_reasoning
from gateway.parsers.output import Format, Formats
from gateway.parsers.stop import StopStrings
from gateway.schemas import Validators
from gateway.types import OutputOptions, Reading

RUNS = 7
TOKENS = 3000
READING = Reading(tools={"f": None})
STOPS = ("\n\nUser:", "</answer>")
SIZES = (250_000, 500_000, 1_000_000, 2_000_000)
PROSE = "The gateway turns text into numbers, and numbers back into text: a < b, as quickly as it can.\n"
CASES = [
    ("content", "hermes", "", PROSE, False),
    ("reasoning", "hermes", "", PROSE, True),
    (
        "JSON call, a text",
        "hermes",
        '<tool_call>\n{"name": "f", "arguments": {"k": "',
        PROSE.replace("\n", "\\n"),
        False,
    ),
    (
        "JSON call, small values",
        "hermes",
        '<tool_call>\n{"name": "f", "arguments": {"k": [',
        '{"a": 1, "b": null}, ',
        False,
    ),
    ("XML call", "qwen3_coder", "<tool_call>\n<function=f>\n<parameter=k>\n", PROSE, False),
    ("Python call", "pythonic", '[f(k="', PROSE.replace("\n", "\\n"), False),
    (
        "DSML call",
        "deepseek_v32",
        '<｜DSML｜tool_calls><｜DSML｜invoke name="f"><｜DSML｜parameter name="k" string="true">',
        PROSE,
        False,
    ),
]


@dataclass(frozen=True)
class Case:
    """An answer: `opening`, then `text` again and again. `family` None: nothing reads it."""

    family: str | None
    opening: str
    text: str
    opens: bool


def main(_: Sequence[str] = ()) -> None:
    model = load_models(())["demo"]
    make_immortal()
    say(f"{'µs a token':<26}{'no reader':>12}{'reader':>9}{'reader, 2 stop strings':>25}")
    for name, family, opening, text, opens in CASES:
        bare = microseconds_per_token(model, Case(None, opening, text, opens), ())
        both = [microseconds_per_token(model, Case(family, opening, text, opens), stops) for stops in ((), STOPS)]
        say(f"{name:<26}{bare:>12.2f}{both[0]:>9.2f}{both[1]:>25.2f}")
    say("\nAn argument of one text, in chunks of 4 characters and whole")
    for size in SIZES:
        say(f"{size:>10,} characters  {seconds_for(size, 4):6.2f} s  {seconds_for(size, size):6.2f} s")
    for case in (CASES[0], CASES[2]):
        say(f"\nTwo threads read {scaling(model, Case(*case[1:])):.2f} times what one does: {case[0]}")
    say(f"\n8 tools, their strict schemas warm: {tool_microseconds(model):.0f} µs more to lower a request")


def decoder_for(model: Model, family: str | None, opens: bool, stops: tuple[str, ...]) -> AnswerDecoder:
    reader = None
    if family is not None:
        parser = formats_of(family).parser(READING, opens)
        assert parser is not None
        reader = AnswerReader(parser, frozenset())
    return AnswerDecoder(0, model.tokenizer.table, OutputOptions(stop=stops), StopStrings(stops), reader)


def formats_of(family: str | None) -> Formats:
    return Formats(Choice(named_reasoning("qwen3"), ""), Choice(named_calls(family or "none"), ""))


def ids(model: Model, text: str) -> list[int]:
    return list(memoryview(model.tokenizer.encode(text)).cast("I"))


def microseconds_per_token(model: Model, case: Case, stops: tuple[str, ...]) -> float:
    deltas = [[token_id] for token_id in ids(model, case.text * (TOKENS // 10))[:TOKENS]]
    times = []
    for _ in range(RUNS):
        decoder = decoder_for(model, case.family, case.opens, stops)
        decoder.event(ids(model, case.opening or "Well, "), None, None)
        started = time.thread_time()
        read(decoder, deltas)
        times.append((time.thread_time() - started) / len(deltas))
    return min(times) * 1e6


def read(decoder: AnswerDecoder, deltas: Sequence[list[int]]) -> None:
    event = decoder.event
    for delta in deltas:
        event(delta, None, None)


def seconds_for(size: int, chunk: int) -> float:
    text = '<tool_call>\n{"name": "f", "arguments": {"k": "' + "word \\n é" * (size // 9) + '"}}\n</tool_call>'
    parser = Format(None, named_calls("hermes")).parser()
    started = time.thread_time()
    for start in range(0, len(text), chunk):
        parser.feed(text[start : start + chunk])
    parser.flush()
    assert parser.calls == 1
    return time.thread_time() - started


def scaling(model: Model, case: Case) -> float:
    """How many times the answers of one thread two threads read, by the CPU time of the slower one.

    They share the table, as HTTP loops do.
    """
    ratios = []
    for _ in range(RUNS):
        alone = max(thread_seconds([Share(model, case)]))
        together = max(thread_seconds([Share(model, case), Share(model, case)]))
        ratios.append(2 * alone / together)
    return median(ratios)


class Share:
    """A thread's share."""

    def __init__(self, model: Model, case: Case) -> None:
        self._case = case
        self._table = model.tokenizer.table
        self._formats = formats_of(case.family)
        self._opening = ids(model, case.opening or "Well, ")
        self._deltas = [[token_id] for token_id in ids(model, case.text * (TOKENS // 10))[:TOKENS]]

    def run(self) -> float:
        """CPU seconds."""
        started = time.thread_time()
        for _ in range(20):
            parser = self._formats.parser(READING, self._case.opens)
            assert parser is not None
            decoder = AnswerDecoder(0, self._table, OutputOptions(), StopStrings(()), AnswerReader(parser, frozenset()))
            decoder.event(self._opening, None, None)
            read(decoder, self._deltas)
        return time.thread_time() - started


def thread_seconds(shares: Sequence[Share]) -> list[float]:
    with ThreadPoolExecutor(len(shares)) as threads:
        return [job.result() for job in [threads.submit(share.run) for share in shares]]


def tool_microseconds(model: Model) -> float:
    """What tools add to lowering: reading them, their constraint, their compiled schemas."""
    parameters = {
        "type": "object",
        "properties": {f"p{number}": {"type": "string", "description": "What it is for."} for number in range(6)},
        "required": ["p0", "p1"],
    }
    tools = [
        {"type": "function", "function": {"name": f"tool_{number}", "parameters": parameters, "strict": True}}
        for number in range(8)
    ]
    messages = [{"role": "user", "content": "Hi"}]
    validators = Validators()

    def lower(body: dict[str, object]) -> ToolUse:
        fields = Fields(body, "")
        use, _ = read_tool_use(fields, read_conversation(fields))
        forced_calls(use, model)
        for name in use.strict:
            validators.get(use.schemas[name])
        return use

    def cost(body: dict[str, object]) -> float:
        times = []
        for _ in range(20):
            started = time.thread_time()
            for _ in range(50):
                lower(body)
            times.append((time.thread_time() - started) / 50)
        return min(times)

    with_tools: dict[str, object] = {"messages": messages, "tools": tools, "tool_choice": "required"}
    return (cost(with_tools) - cost({"messages": messages})) * 1e6


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
