"""Which formats a model is taken to write."""

import re

import pytest

from gateway.parsers.call_families import CALL_FAMILIES
from gateway.parsers.detect import (
    Choice,
    Signs,
    UnknownParser,
    choose_calls,
    choose_reasoning,
    named_calls,
    named_reasoning,
)
from gateway.parsers.formats import Wrapping
from gateway.parsers.output import Formats
from gateway.parsers.reader import Malformed, Reader, Step
from gateway.parsers.reasoning_families import REASONING_FAMILIES
from gateway.types import Reading
from tests.parsers.answers import Answer, format_of, read

# (model_type, what the template or the vocabulary shows, call family, reasoning family)
MODELS = [
    ("qwen2", "<tool_call>", "hermes", "none"),
    ("qwen3", "<tool_call> <think>", "hermes", "qwen3"),
    ("qwen3_moe", "<tool_call> <function=", "qwen3_coder", "none"),
    ("qwen3_5", "<tool_call> <function= <think>", "qwen3_coder", "qwen3_thinking"),
    ("mimo_v2_flash", "<tool_call> <function= <think>", "mimo", "qwen3"),
    ("seed_oss", "<seed:tool_call> <function= <seed:think>", "seed_oss", "seed_oss"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜> ```json", "deepseek_v3", "none"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜> ```json <think>", "deepseek_v3", "deepseek_r1"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜> thinking <think>", "deepseek_v31", "deepseek_v31"),
    ("glm4_moe", "<arg_key> enable_thinking thinking <think>", "glm45", "glm45"),
    ("deepseek_v32", "｜DSML｜ <think> thinking", "deepseek_v32", "deepseek_v31"),
    ("kimi_k2", "<|tool_calls_section_begin|> <think>", "kimi_k2", "kimi_k2"),
    ("kimi_k3", "<|open|> <|close|> <|sep|>", "kimi_k3", "kimi_k3"),
    ("llama", "<|python_tag|>", "llama3", "none"),
    ("llama", "", "llama3", "none"),
    ("llama4", "<|python_start|>", "llama4_pythonic", "none"),
    ("llama", "<TOOLCALL>", "llama_nemotron", "none"),
    ("mistral3", "[TOOL_CALLS] [THINK]", "mistral", "magistral"),
    ("glm4_moe", "<tool_call> <arg_key> <think>", "glm45", "glm45"),
    ("minimax_m2", "<minimax:tool_call> <think>", "minimax_m2", "minimax_m2"),
    ("step3_vl", "<steptml:invoke <think>", "step3", "step3"),
    ("granite", "<|tool_call|>", "granite", "none"),
    ("granitemoehybrid", "<tool_call>", "hermes", "none"),
    ("phi3", "<|tool_call|> <|/tool_call|>", "phi4_mini", "none"),
    ("cohere2", "<|START_ACTION|> <|START_THINKING|>", "cohere", "cohere"),
    ("gpt_oss", "<|channel|> <|message|>", "harmony", "harmony"),
    ("gemma4", "<|tool_call> <|channel>", "gemma4", "gemma4"),
    ("gemma3", "<start_function_call>", "functiongemma", "none"),
    ("olmo3", "<function_calls> <think>", "olmo3", "qwen3"),
    ("nemotron_h", "<tool_call> <function= <think>", "qwen3_coder", "nemotron"),
    ("bert", "", "none", "none"),
]


@pytest.mark.parametrize(("model_type", "shown", "calls", "reasoning"), MODELS)
def test_a_model_is_known_by_what_it_shows(model_type: str, shown: str, calls: str, reasoning: str) -> None:
    for signs in (Signs(model_type, shown, ()), Signs(model_type, "", set(shown.split()))):
        assert choose_calls("auto", signs).name == calls
        assert choose_reasoning("auto", signs).name == reasoning


def test_names_and_aliases_are_one_familys_alone() -> None:
    for families in (CALL_FAMILIES, REASONING_FAMILIES):
        names = [name for family in families for name in (family.name, *family.aliases)]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize("name", ["Hermes", "qwen25", "kimi-k2", "llama4_json", "gpt-oss", "granite-20b-fc"])
def test_the_names_of_others_are_known(name: str) -> None:
    assert named_calls(name) is not None


@pytest.mark.parametrize("name", ["nope", "no.such.module:Class", "json:nothing", "json:dumps", "collections:deque"])
def test_what_is_no_parser_is_refused(name: str) -> None:
    for find in (named_calls, named_reasoning):
        with pytest.raises(UnknownParser):
            find(name)
    with pytest.raises(UnknownParser, match=r"hermes, .*array, auto, none"):
        named_calls("nope")


class Shouting:
    """CALL name! is a call."""

    markers = tags = ("CALL ",)

    def read(self, reader: Reader, opener: str) -> Step[None]:
        name = yield from reader.peek()
        if name not in ("f", "g"):
            raise Malformed("no name")
        reader.at += 1
        yield from reader.expect("!")
        reader.begin(name)
        reader.argue("{}")
        reader.complete()


class Whispering(Wrapping):
    def __init__(self) -> None:
        super().__init__(("((",), ("))",))


def test_a_parser_of_ones_own_is_named_by_its_place() -> None:
    form = format_of("tests.parsers.test_detect:Shouting", "tests.parsers.test_detect:Whispering")

    for pieces in (["((Hm.))Now CALL f! CALL me"], "((Hm.))Now CALL f! CALL me"):
        assert read(form, pieces) == Answer("Now  CALL me", "Hm.", [("f", {})])


def test_any_reasoning_goes_with_any_calls() -> None:
    for calls in CALL_FAMILIES:
        for reasoning in REASONING_FAMILIES:
            formats = Formats(Choice(reasoning, ""), Choice(calls, ""))
            assert formats.parser(Reading(tools={}), opens_reasoning=True) is not None
