"""Micro measurements of what runs for each token: `python3.13t -m pytest perf/test_micro.py`, not part of `make test`.

Times are those of a whole call; where a call serves many streams, a token's share is that divided by STREAMS.
"""

from array import array
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from engine_adapters import codec
from engine_adapters.simulator.outputs import TEXTS
from engine_adapters.step import messages
from engine_adapters.step.client import columns
from gateway.api.reply import quoted
from gateway.model import DEMO_FOLDER
from gateway.parsers.stop import StopScanner, StopStrings
from gateway.tokenizer import ChatTemplate, Tokenizer
from gateway.types import ChatInput

SHAPES = Path(__file__).parent.parent / "tests/tokenizer/templates/shapes"
STREAMS = 256
FRAME = messages.StepFrame(
    step=12345,
    stream_ids=array("I", range(1000, 1000 + STREAMS)).tobytes(),
    token_ids=array("I", range(STREAMS)).tobytes(),
    load=messages.Load(running=STREAMS, kv_tokens_used=100_000, kv_tokens_total=500_000, tokens_per_second=12_800.0),
)
TEXT = (TEXTS / sorted(path.name for path in TEXTS.glob("*.txt"))[0]).read_text("utf-8")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(DEMO_FOLDER)


def test_a_frame_of_256_streams_is_encoded(benchmark: BenchmarkFixture) -> None:
    data = benchmark(codec.encode, FRAME)
    assert codec.decode(messages.StepFrame, data) == FRAME


def test_a_frame_of_256_streams_is_decoded(benchmark: BenchmarkFixture) -> None:
    frame = benchmark(codec.decode, messages.StepFrame, codec.encode(FRAME))
    assert frame == FRAME


def test_a_frame_of_256_streams_is_divided(benchmark: BenchmarkFixture) -> None:
    divided = benchmark(columns, FRAME)
    assert divided[-1] == (1000 + STREAMS - 1, (STREAMS - 1,))


def test_one_token_is_detokenized(benchmark: BenchmarkFixture, tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.table.new()
    token_ids = array("I", tokenizer.encode(" the"))
    assert benchmark(detokenizer.feed, token_ids.tolist()) == " the"


def test_a_text_is_encoded(benchmark: BenchmarkFixture, tokenizer: Tokenizer) -> None:
    encoded = benchmark(tokenizer.encode, TEXT)
    assert tokenizer.decode(array("I", encoded).tolist(), skip_special_tokens=True) == TEXT


@pytest.mark.parametrize("stops", [(), ("\n\nUser:", "</answer>")], ids=["none", "two"])
def test_one_token_passes_the_stop_scanner(benchmark: BenchmarkFixture, stops: tuple[str, ...]) -> None:
    scanner = StopScanner(StopStrings(stops))
    assert benchmark(scanner.feed, " the") == " the"


def test_one_token_becomes_an_event(benchmark: BenchmarkFixture) -> None:
    before, after = 'data: {"choices":[{"index":0,"delta":{"content":', '},"finish_reason":null}]}\n\n'
    assert b'" the"' in benchmark(lambda: (before + quoted(" the") + after).encode())


@pytest.mark.parametrize("name", ["qwen_3", "llama_3_1", "gpt_oss"])
def test_a_conversation_of_199_messages_is_rendered(benchmark: BenchmarkFixture, name: str) -> None:
    template = ChatTemplate((SHAPES / f"{name}.jinja").read_text("utf-8"))
    turn = [{"role": "user", "content": "question " * 90}, {"role": "assistant", "content": "answer " * 110}]
    source = ChatInput((turn * 100)[:-1])
    prompt = benchmark(template.render, source)
    assert template.open_reasoning(prompt, source) is None
