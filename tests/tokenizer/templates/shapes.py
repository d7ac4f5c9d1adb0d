"""The templates, and how each is to be fed; said here and not detected, so that the detection is tested, too."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "shapes"
EXPECTED = Path(__file__).parent / "expected"
DATE = (2026, 2, 3)
"""Today, for all that render the date."""


@dataclass(frozen=True)
class Shape:
    """`parts`: the roles whose content it takes as a list. `opens`: what it leaves open, by conversation."""

    bos: str = "<s>"
    eos: str = "</s>"
    arguments: str = "object"
    parts: tuple[str, ...] = ()
    wraps: bool = False
    """Texts show only as parts."""
    developer: bool = False
    effort: bool = False
    keeps_null: bool = False
    """It asks whether the content `is none`. transformers drops nulls before it renders, and so loses the calls."""
    opens: str | None = None
    """The marker at the end of a simple prompt."""


ALL = ("system", "user", "assistant", "tool")
SHAPES: dict[str, Shape] = {
    "command_a_reasoning": Shape(
        "<BOS_TOKEN>", parts=("system", "developer", "user", "assistant"), developer=True, opens="<|START_THINKING|>"
    ),
    "command_r": Shape("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "command_r_rag": Shape("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "command_r_tool_use": Shape("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek_r1": Shape("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", arguments="text", opens="<think>"),
    "deepseek_v3": Shape("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", arguments="text", keeps_null=True),
    "deepseek_v3_1": Shape("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", arguments="text", keeps_null=True),
    "gemma_2": Shape("<bos>", "<eos>"),
    "gemma_3": Shape("<bos>", "<eos>", parts=("user", "assistant")),
    "glm_4_5": Shape("[gMASK]", "<|endoftext|>", parts=("system", "user", "assistant")),
    "gpt_oss": Shape("<|startoftext|>", "<|return|>", developer=True, effort=True),
    "granite_3": Shape("<|end_of_text|>", "<|end_of_text|>"),
    "hermes": Shape("<|begin_of_text|>", "<|im_end|>"),
    "internlm_2": Shape(),
    "internvl_parts_only": Shape(parts=ALL, wraps=True),
    "jamba": Shape("<|startoftext|>", "<|endoftext|>"),
    "kimi_k2": Shape("[BOS]", "[EOS]", parts=ALL),
    "kimi_k2_thinking": Shape("[BOS]", "[EOS]", opens="<think>"),
    "llama_3": Shape("<|begin_of_text|>", "<|eot_id|>"),
    "llama_3_1": Shape("<|begin_of_text|>", "<|eot_id|>"),
    "llama_3_2_vision": Shape("<|begin_of_text|>", "<|eot_id|>", parts=("user", "assistant")),
    "llama_4": Shape("<|begin_of_text|>", "<|eot|>", parts=("user", "assistant", "tool")),
    "magistral": Shape(parts=ALL),
    "minimax_m2": Shape("]!p~[", "[e~[", parts=ALL, opens="<think>"),
    "mistral_v3": Shape(),
    "mistral_v7_tekken": Shape(parts=("user", "assistant")),
    "nemotron": Shape("<s>", "<SPECIAL_12>", opens="<think>"),
    "olmo_2": Shape("<|endoftext|>", "<|endoftext|>"),
    "phi_3": Shape("<s>", "<|endoftext|>"),
    "phi_4_mini": Shape("<|endoftext|>", "<|endoftext|>"),
    "qwen_2_5": Shape("", "<|im_end|>"),
    "qwen_3": Shape("", "<|im_end|>"),
    "qwen_3_coder": Shape("", "<|im_end|>"),
    "qwen_3_thinking": Shape("", "<|im_end|>", opens="<think>"),
    "seed_oss": Shape("<seed:bos>", "<seed:eos>"),
    "smollm_3": Shape("<|im_start|>", "<|im_end|>"),
}
