"""Each family's output written from what it means, as the chat templates do it: what the parsers are tested with."""

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

type Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """How a family writes calls. `words` are what its texts cannot hold, since nothing escapes them; a family
    `is_text_only` if, without a schema, all of its values are read as texts."""

    write: Callable[[Sequence[Call]], str]
    words: tuple[str, ...] = ()
    is_text_only: bool = False


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def each(before: str, after: str, between: str = "\n", arguments: str = "arguments", is_pretty: bool = False) -> Form:
    """One object between markers for each call."""

    def write(calls: Sequence[Call]) -> str:
        indent = 2 if is_pretty else None
        objects = [json.dumps({"name": name, arguments: values}, indent=indent) for name, values in calls]
        return between.join(before + each + after for each in objects)

    return Form(write)


def row(before: str, after: str, name_key: str = "name", arguments: str = "arguments") -> Form:
    """All objects in one list."""

    def write(calls: Sequence[Call]) -> str:
        return before + dumps([{name_key: name, arguments: values} for name, values in calls]) + after

    return Form(write)


def named(head: str, tail: str, before: str = "", after: str = "", between: str = "", is_pretty: bool = False) -> Form:
    """A name with an object behind it."""

    def write(calls: Sequence[Call]) -> str:
        indent = 4 if is_pretty else None
        parts = [
            head.replace("NAME", name).replace("INDEX", str(index)) + json.dumps(values, indent=indent) + tail
            for index, (name, values) in enumerate(calls)
        ]
        return before + between.join(parts) + after

    return Form(write)


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def tagged(call: str, parameter: str, end: str, before: str = "", after: str = "", words: Sequence[str] = ()) -> Form:
    """Tags; `parameter` has KEY, VALUE and perhaps IS_STRING or TYPE in it, `before` and `after` surround each call."""

    def write(calls: Sequence[Call]) -> str:
        parts = []
        for name, values in calls:
            written = [write_parameter(parameter, key, value) for key, value in values.items()]
            parts.append(before + call.replace("NAME", name) + "".join(written) + end + after)
        return "\n".join(parts)

    return Form(write, tuple(words), is_text_only="TYPE" not in parameter and "IS_STRING" not in parameter)


def write_parameter(pattern: str, key: str, value: Any) -> str:
    is_string = isinstance(value, str)
    pattern = pattern.replace("TYPE", "string" if is_string else "json")
    head, _, tail = pattern.replace("IS_STRING", dumps(is_string)).partition("VALUE")
    return head.replace("KEY", html.escape(key) if "<|sep|>" in head else key) + text_of(value) + tail


def python(before: str, after: str, between: str = ", ") -> Form:
    def write(calls: Sequence[Call]) -> str:
        written = [
            f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})" for name, values in calls
        ]
        return before + between.join(written) + after

    return Form(write)


def gemma(before: str, after: str, quote: str) -> Form:
    def value_of(value: Any) -> str:
        if isinstance(value, str):
            return quote + value + quote
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{value_of(each)}" for key, each in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(value_of, value)) + "]"
        return dumps(value)

    def write(calls: Sequence[Call]) -> str:
        return "".join(f"{before}call:{name}{value_of(values)}{after}" for name, values in calls)

    return Form(write, words=(quote,))


def harmony(calls: Sequence[Call]) -> str:
    head = "<|start|>assistant<|channel|>commentary to=functions.%s <|constrain|>json<|message|>%s<|call|>"
    return "".join(head % (name, dumps(values)) for name, values in calls)


XML = ("<function=NAME>\n", "<parameter=KEY>\nVALUE\n</parameter>\n", "</function>\n")
INLINE_XML = ("<function=NAME>\n", "<parameter=KEY>VALUE</parameter>\n", "</function>\n")
XML_WORDS = ("</parameter>", "\n<parameter=", "\n</function>")
ARG = "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n"
DSML = (
    '<｜DSML｜invoke name="NAME">\n',
    '<｜DSML｜parameter name="KEY" string="IS_STRING">VALUE</｜DSML｜parameter>\n',
)
DSML_END, DSML_WORDS = "</｜DSML｜invoke>\n", ("</｜DSML｜parameter>",)
STEP = (
    "<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜>",
    "<｜tool_call_end｜>\n<｜tool_calls_end｜>",
)
KIMI_K3 = (
    '<|open|>call tool="NAME" index="1"<|sep|>',
    '<|open|>argument key="KEY" type="TYPE"<|sep|>VALUE<|close|>argument<|sep|>',
    "<|close|>call<|sep|>",
)

FORMS: dict[tuple[str, str], Form] = {
    ("hermes", "with newlines"): each("<tool_call>\n", "\n</tool_call>"),
    ("hermes", "without newlines"): each("<tool_call>", "</tool_call>", between=""),
    ("hermes", "pretty"): each("<tool_call>\n", "\n</tool_call>", is_pretty=True),
    ("qwen3_coder", ""): tagged(*XML, "<tool_call>\n", "</tool_call>", XML_WORDS),
    ("qwen3_coder", "without sections"): tagged(*XML, words=XML_WORDS),
    ("mimo", ""): tagged(*INLINE_XML, "<tool_call>\n", "</tool_call>", XML_WORDS),
    ("seed_oss", ""): tagged(*INLINE_XML, "<seed:tool_call>\n", "</seed:tool_call>", XML_WORDS),
    ("deepseek_v3", ""): named(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "\n",
        is_pretty=True,
    ),
    ("deepseek_v31", ""): named(
        "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    ),
    ("deepseek_v32", ""): tagged(
        *DSML, DSML_END, "\n\n<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>", DSML_WORDS
    ),
    ("deepseek_v32", "V4"): tagged(*DSML, DSML_END, "\n\n<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>", DSML_WORDS),
    ("deepseek_v32", "V4.1"): tagged(
        '<｜DSML｜ invoke name="NAME">\n',
        '<｜DSML｜ parameter name="KEY" string="IS_STRING">VALUE</｜DSML｜ parameter>\n',
        "</｜DSML｜ invoke>\n",
        "<｜DSML｜ calls>\n",
        "</｜DSML｜ calls>",
        ("</｜DSML｜ parameter>",),
    ),
    ("kimi_k2", ""): named(
        "<|tool_call_begin|>functions.NAME:INDEX<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
    ),
    ("kimi_k2", "without prefix and end"): named(
        "<|tool_call_begin|> NAME:INDEX \n<|tool_call_argument_begin|> ",
        " <|tool_call_end|>",
        "<|tool_calls_section_begin|>",
    ),
    ("kimi_k3", ""): tagged(
        *KIMI_K3, "<|open|>tools<|sep|>", "<|close|>tools<|sep|><|close|>message<|sep|>", ("<|close|>argument<|sep|>",)
    ),
    ("llama3", "alone"): each("", "", "; ", "parameters"),
    ("llama3", "Llama 4"): each("<|python_start|>", "<|python_end|>", "\n", "parameters"),
    ("llama3", "marked"): each("<|python_tag|>", "", "; ", "parameters"),
    ("llama4_pythonic", "alone"): python("[", "]"),
    ("llama4_pythonic", "marked"): python("<|python_start|>[", "]<|python_end|>"),
    ("pythonic", ""): python("[", "]"),
    ("olmo3", ""): python("<function_calls>\n", "\n</function_calls>", "\n"),
    ("lfm2", "python"): python("<|tool_call_start|>[", "]<|tool_call_end|>"),
    ("lfm2", "json"): row("<|tool_call_start|>", "<|tool_call_end|>"),
    ("mistral", "v3"): row("[TOOL_CALLS] ", ""),
    ("mistral", "v11"): named("[TOOL_CALLS]NAME[ARGS]", ""),
    ("mistral", "v11 with ids"): named("[TOOL_CALLS]NAME[CALL_ID]abcdefghi[ARGS]", ""),
    ("glm45", ""): tagged("<tool_call>NAME\n", ARG, "</tool_call>", words=("</arg_value>",)),
    ("glm45", "compact"): tagged("<tool_call>NAME", ARG.replace("\n", ""), "</tool_call>", words=("</arg_value>",)),
    ("minimax_m2", ""): tagged(
        '<invoke name="NAME">\n',
        '<parameter name="KEY">VALUE</parameter>\n',
        "</invoke>\n",
        "<minimax:tool_call>\n",
        "</minimax:tool_call>",
        ("</parameter>",),
    ),
    ("step3", ""): tagged(
        '<steptml:invoke name="NAME">\n',
        '<steptml:parameter name="KEY">VALUE</steptml:parameter>\n',
        "</steptml:invoke>",
        *STEP,
        ("</steptml:parameter>",),
    ),
    ("granite", "3.0"): row("<|tool_call|>", ""),
    ("granite", "3.1"): row("<tool_call>", ""),
    ("granite_20b", ""): each("<function_call> ", ""),
    ("cohere", ""): row("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters"),
    ("phi4_mini", "functools"): row("functools", ""),
    ("phi4_mini", "markers"): row("<|tool_call|>", "<|/tool_call|>"),
    ("internlm", "2"): each("<|action_start|><|plugin|>\n", "<|action_end|>", "\n", "parameters"),
    ("internlm", "S1"): each("<|action_start|> <|plugin|>\n", "<|action_end|>", "\n", "parameters"),
    ("jamba", ""): row("<tool_calls>", "</tool_calls>"),
    ("harmony", ""): Form(harmony),
    ("gemma4", ""): gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    ("functiongemma", ""): gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    ("hunyuan", "V3"): tagged(
        "<tool_call>NAME<tool_sep>\n", ARG, "</tool_call>\n", "<tool_calls>\n", "</tool_calls>", ("</arg_value>",)
    ),
    ("hunyuan", "A13B"): row("<tool_calls>", "</tool_calls>"),
    ("llama_nemotron", ""): row("<TOOLCALL>", "</TOOLCALL>"),
    ("xlam", "alone"): row("", ""),
    ("xlam", "fenced"): row("```json\n", "\n```"),
    ("array", ""): row("", "", arguments="parameters"),
}
