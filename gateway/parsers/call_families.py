"""How each family writes its calls, as data: a line here, and it can be named, detected and listed."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from gateway.parsers.formats import CallGrammar
from gateway.parsers.harmony import Harmony
from gateway.parsers.literals import GEMMA_QUOTES, gemma_object
from gateway.parsers.reader import Reader, call_id, short_id
from gateway.parsers.sequences import JSON, PYTHON, Either, Named, Sequence
from gateway.parsers.tagged import Tagged, invoke, xml


@dataclass(frozen=True)
class Family:
    """How a format is named and recognised: by all of `signs` in the chat template or the vocabulary, and by
    config.json's `model_type`."""

    name: str
    models: str
    """In words."""
    signs: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class CallFamily(Family):
    """`drops` is markup in the answer that means nothing; `new_id` makes ids as the family's clients expect them."""

    grammar: CallGrammar | Harmony = Sequence()
    drops: tuple[str, ...] = ()
    new_id: Callable[[Reader], str] = call_id


DSML = "｜DSML｜"
DSML_TAGS = (DSML, DSML + " ")
DSML_SECTIONS = ("function_calls", "tool_calls", "toolcalls", "calls", "tool")
DSML_OPENERS = tuple(f"<{tag}{section}>" for tag in DSML_TAGS for section in DSML_SECTIONS)
DEEPSEEK = Named(
    openers=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    call_open="<｜tool▁call▁begin｜>",
    head_ends=("```", "{", "<｜tool▁call▁end｜>"),
    inner_tags=("<｜tool▁sep｜>",),
    head=re.compile(r"\s*(?:\w+\s*<｜tool▁sep｜>\s*(?=\S))?(?P<name>[^\s<]+)\s*(?:<｜tool▁sep｜>)?\s*"),
    call_ends=("<｜tool▁call▁end｜>",),
    section_ends=("<｜tool▁calls▁end｜>",),
)
LLAMA = Sequence(openers=("<|python_tag|>",), bare=("{", "["))
COHERE_WRAPPERS = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
KIMI_K3_WRAPPERS = ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>")

CALL_FAMILIES = (
    CallFamily(
        "harmony",
        "gpt-oss",
        signs=("<|channel|>", "<|message|>"),
        model_types=("gpt_oss",),
        aliases=("gpt_oss", "openai"),
        grammar=Harmony(),
    ),
    CallFamily(
        "kimi_k3",
        "Kimi-K3",
        signs=("<|open|>", "<|close|>", "<|sep|>"),
        model_types=("kimi_k3",),
        grammar=Tagged(
            openers=("<|open|>tools<|sep|>", "<|open|>call tool="),
            call_opens=("<|open|>call tool=",),
            head_ends=("<|sep|>",),
            keys=("<|open|>argument key=",),
            key_end="<|sep|>",
            value_ends=("<|close|>argument<|sep|>",),
            call_ends=("<|close|>call<|sep|>",),
            section_ends=("<|close|>tools<|sep|>",),
            has_attributes=True,
            says_type=True,
            object_open="<|open|>json",
            object_end="<|close|>json<|sep|>",
        ),
        drops=KIMI_K3_WRAPPERS,
    ),
    CallFamily(
        "kimi_k2",
        "Kimi-K2, K2-Thinking, K2.5",
        signs=("<|tool_calls_section_begin|>",),
        model_types=("kimi_k2", "kimi_k25"),
        aliases=("kimik2",),
        grammar=Named(
            openers=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
            call_open="<|tool_call_begin|>",
            head_ends=("<|tool_call_argument_begin|>",),
            head=re.compile(r"\s*(?:functions\.)?(?P<name>\S+?)(?::(?P<number>\d+))?\s*"),
            call_ends=("<|tool_call_end|>",),
            section_ends=("<|tool_calls_section_end|>",),
            counts_calls=True,
        ),
    ),
    CallFamily(
        "deepseek_v32",
        "DeepSeek V3.2, V4 (DSML)",
        signs=(DSML,),
        model_types=("deepseek_v32", "deepseek_v4"),
        aliases=("deepseek_v4", "deepseekv32", "deepseekv4", "deepseek32", "dsml"),
        grammar=Tagged(
            openers=(
                *("\n\n" + opener for opener in DSML_OPENERS),
                *DSML_OPENERS,
                *(f"<{tag}invoke name=" for tag in DSML_TAGS),
            ),
            call_opens=tuple(f"<{tag}{name} name=" for tag in DSML_TAGS for name in ("invoke", "tool")),
            keys=tuple(f"<{tag}parameter name=" for tag in DSML_TAGS),
            value_ends=tuple(f"</{tag}parameter>" for tag in DSML_TAGS),
            call_ends=tuple(f"</{tag}{name}>" for tag in DSML_TAGS for name in ("invoke", "tool")),
            section_ends=tuple(f"</{tag}{section}>" for tag in DSML_TAGS for section in DSML_SECTIONS),
            has_attributes=True,
            says_type=True,
        ),
        drops=("<｜end▁of▁sentence｜>",),
    ),
    CallFamily(
        "deepseek_v3",
        "DeepSeek V3, R1, R1-0528",
        signs=("<｜tool▁calls▁begin｜>", "```json"),
        model_types=("deepseek_v3",),
        aliases=("deepseekv3", "deepseek", "deepseek_r1"),
        grammar=DEEPSEEK,
        drops=("<｜end▁of▁sentence｜>",),
    ),
    CallFamily(
        "deepseek_v31",
        "DeepSeek V3.1",
        signs=("<｜tool▁calls▁begin｜>",),
        aliases=("deepseekv31", "deepseek31"),
        grammar=DEEPSEEK,
        drops=("<｜end▁of▁sentence｜>",),
    ),
    CallFamily(
        "step3",
        "Step3",
        signs=("<steptml:invoke",),
        model_types=("step3", "step3_text", "step3_vl"),
        grammar=invoke(
            ("<｜tool_calls_begin｜>", "<｜tool_call_begin｜>", "<steptml:invoke name="),
            ("<｜tool_calls_end｜>",),
            "steptml:",
            fillers=("<｜tool_call_begin｜>", "function", "<｜tool_sep｜>", "<｜tool_call_end｜>"),
        ),
    ),
    CallFamily(
        "minimax_m2",
        "MiniMax-M2",
        signs=("<minimax:tool_call>",),
        model_types=("minimax_m2",),
        aliases=("minimax",),
        grammar=invoke(("<minimax:tool_call>",), ("</minimax:tool_call>",)),
    ),
    CallFamily(
        "seed_oss",
        "Seed-OSS",
        signs=("<seed:tool_call>",),
        model_types=("seed_oss",),
        grammar=xml("<seed:tool_call>", "</seed:tool_call>"),
    ),
    CallFamily(
        "hunyuan",
        "Hunyuan-A13B, HY V3",
        signs=("<tool_sep>",),
        model_types=("hunyuan_v1_moe", "hunyuan_v3_moe", "hy_v3"),
        aliases=("hunyuan_a13b", "hunyuan_v3", "hy_v3"),
        grammar=Either(
            Sequence(openers=("<tool_calls>",), closers=("</tool_calls>",)),
            Tagged(
                openers=("<tool_calls>", "<tool_call>"),
                call_opens=("<tool_call>",),
                head_ends=("<tool_sep>",),
                keys=("<arg_key>",),
                key_end="</arg_key>",
                value_open="<arg_value>",
                value_ends=("</arg_value>",),
                call_ends=("</tool_call>",),
                section_ends=("</tool_calls>",),
            ),
        ),
    ),
    CallFamily(
        "glm45",
        "GLM-4.5, 4.6, 4.7, 5",
        signs=("<arg_key>",),
        model_types=("glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe"),
        aliases=("glm", "glm47", "glm45_moe", "glm47_moe", "glm5"),
        grammar=Tagged(
            openers=("<tool_call>",),
            call_opens=("<tool_call>",),
            head_ends=("<arg_key>", "</tool_call>"),
            keys=("<arg_key>",),
            key_end="</arg_key>",
            value_open="<arg_value>",
            value_ends=("</arg_value>",),
            call_ends=("</tool_call>",),
        ),
    ),
    CallFamily(
        "mimo",
        "MiMo",
        signs=("<function=",),
        model_types=("mimo", "mimo_v2", "mimo_v2_flash"),
        grammar=xml("<tool_call>", "</tool_call>"),
    ),
    CallFamily(
        "qwen3_coder",
        "Qwen3-Coder, Qwen3.5, Nemotron-3, Step-3.5, Nanbeige, Granite 4.2",
        signs=("<function=",),
        model_types=("qwen3_next", "qwen3_5", "qwen3_5_moe", "step3p5"),
        aliases=("qwen3_xml", "qwen_xml", "qwen_coder", "nemotron", "step3p5", "qwen35"),
        grammar=xml("<tool_call>", "</tool_call>", trims_newline=True),
    ),
    CallFamily(
        "gemma4",
        "Gemma 4",
        signs=("<|tool_call>",),
        model_types=("gemma4", "gemma4_text"),
        grammar=Named(
            openers=("<|tool_call>",),
            call_open="<|tool_call>",
            head_ends=("{",),
            head=re.compile(r"\s*(?:call:)?\s*(?P<name>[^\s{]+)\s*"),
            call_ends=("<tool_call|>",),
            inner_tags=GEMMA_QUOTES,
            value=gemma_object,
        ),
    ),
    CallFamily(
        "functiongemma",
        "FunctionGemma",
        signs=("<start_function_call>",),
        aliases=("function_gemma",),
        grammar=Named(
            openers=("<start_function_call>",),
            call_open="<start_function_call>",
            head_ends=("{",),
            head=re.compile(r"\s*(?:call:)?\s*(?P<name>[^\s{]+)\s*"),
            call_ends=("<end_function_call>",),
            inner_tags=GEMMA_QUOTES,
            value=gemma_object,
        ),
    ),
    CallFamily(
        "granite",
        "Granite 3.0 to 3.3",
        signs=("<|tool_call|>",),
        model_types=("granite", "granitemoe", "granitemoeshared"),
        grammar=Sequence(openers=("<|tool_call|>", "<tool_call>"), closers=("<|/tool_call|>", "</tool_call>")),
    ),
    CallFamily(
        "phi4_mini",
        "Phi-4-mini",
        signs=("<|tool_call|>", "<|/tool_call|>"),
        model_types=("phi3", "phi4mm"),
        aliases=("phi4_mini_json", "phi4"),
        grammar=Sequence(openers=("functools", "<|tool_call|>"), closers=("<|/tool_call|>",)),
    ),
    CallFamily(
        "granite_20b",
        "Granite-20b-functioncalling",
        signs=("<function_call>",),
        model_types=("gpt_bigcode",),
        aliases=("granite_20b_fc",),
        grammar=Sequence(openers=("<function_call>",), closers=("</function_call>",)),
    ),
    CallFamily(
        "internlm",
        "InternLM2, Intern-S1",
        signs=("<|action_start|>",),
        model_types=("internlm2", "interns1"),
        aliases=("interns1", "internlm2"),
        grammar=Sequence(
            openers=("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), closers=("<|action_end|>",)
        ),
    ),
    CallFamily(
        "cohere",
        "Command-R7B, Command A",
        signs=("<|START_ACTION|>",),
        model_types=("cohere", "cohere2"),
        aliases=("cohere_command3", "cohere_command4", "cohere_cmd"),
        grammar=Sequence(openers=("<|START_ACTION|>",), closers=("<|END_ACTION|>",)),
        drops=COHERE_WRAPPERS,
    ),
    CallFamily(
        "lfm2",
        "LFM2",
        signs=("<|tool_call_start|>",),
        model_types=("lfm2", "lfm2_moe"),
        grammar=Sequence(openers=("<|tool_call_start|>",), closers=("<|tool_call_end|>",), items=(PYTHON, JSON)),
    ),
    CallFamily(
        "llama_nemotron",
        "Llama-Nemotron, Nemotron-H",
        signs=("<TOOLCALL>",),
        model_types=("nemotron_h", "nemotron-nas"),
        aliases=("nemotron_nas", "nemotron_json"),
        grammar=Sequence(openers=("<TOOLCALL>",), closers=("</TOOLCALL>",)),
    ),
    CallFamily(
        "olmo3",
        "Olmo 3",
        signs=("<function_calls>",),
        model_types=("olmo3",),
        grammar=Sequence(
            openers=("<function_calls>",),
            closers=("</function_calls>",),
            bare=("[",),
            bare_behind=("",),
            items=(PYTHON,),
        ),
    ),
    CallFamily(
        "jamba",
        "Jamba",
        signs=("<tool_calls>",),
        model_types=("jamba",),
        grammar=Sequence(openers=("<tool_calls>",), closers=("</tool_calls>",)),
    ),
    CallFamily(
        "hermes",
        "Qwen2.5, Qwen3, Hermes, Granite 4",
        signs=("<tool_call>",),
        model_types=("qwen2", "qwen3", "qwen3_moe", "granitemoehybrid"),
        aliases=("qwen", "qwen25", "qwen3", "granite4"),
        grammar=Sequence(openers=("<tool_call>",), closers=("</tool_call>",)),
    ),
    CallFamily(
        "mistral",
        "Mistral v3 and newer, Magistral, Devstral",
        signs=("[TOOL_CALLS]",),
        model_types=("mistral", "mixtral", "mistral3"),
        aliases=("mistral_v3", "mistral_v11"),
        grammar=Either(
            Sequence(openers=("[TOOL_CALLS]",)),
            Named(
                openers=("[TOOL_CALLS]",),
                call_open="[TOOL_CALLS]",
                head_ends=("[ARGS]", "{"),
                inner_tags=("[CALL_ID]",),
                head=re.compile(r"\s*(?P<name>[^\s\[{]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w*)\s*)?"),
            ),
        ),
        new_id=short_id,
    ),
    CallFamily(
        "llama4_pythonic",
        "Llama 4",
        signs=("<|python_start|>",),
        model_types=("llama4", "llama4_text"),
        aliases=("llama4",),
        grammar=Sequence(
            openers=("<|python_start|>", "<|python_tag|>"),
            closers=("<|python_end|>",),
            bare=("[",),
            bare_behind=("",),
            items=(PYTHON,),
        ),
    ),
    CallFamily(
        "llama3",
        "Llama 3.1, 3.2, 3.3 and Llama 4, JSON",
        signs=("<|python_tag|>",),
        model_types=("llama", "mllama"),
        aliases=("llama", "llama3_json", "llama4_json", "json"),
        grammar=LLAMA,
    ),
    CallFamily(
        "pythonic",
        "Llama 3.2 1B and 3B, ToolACE",
        grammar=Sequence(
            openers=("<|python_tag|>", "<|python_start|>"),
            closers=("<|python_end|>",),
            bare=("[",),
            bare_behind=("",),
            items=(PYTHON,),
        ),
    ),
    CallFamily(
        "xlam",
        "xLAM",
        grammar=Sequence(
            openers=("[TOOL_CALLS]", "<tool_call>", "```json"),
            closers=("</tool_call>", "```"),
            bare=("[", "{"),
        ),
    ),
    CallFamily(
        "array",
        "what tool_choice required makes any model write",
        grammar=Sequence(bare=("[", "{")),
    ),
)
