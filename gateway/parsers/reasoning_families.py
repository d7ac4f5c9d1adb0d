"""How each family wraps its reasoning, as data: a line here, and it can be named, detected and listed."""

from gateway.parsers.call_families import COHERE_WRAPPERS, KIMI_K3_WRAPPERS
from gateway.parsers.family import ReasoningFamily
from gateway.parsers.formats import Wrapping
from gateway.parsers.harmony import Harmony

THINK = (("<think>",), ("</think>",))
REASONING_FAMILIES = (
    ReasoningFamily(
        "harmony",
        "gpt-oss",
        signs=("<|channel|>", "<|message|>"),
        model_types=("gpt_oss",),
        aliases=("gpt_oss", "gptoss", "openai_gptoss"),
        wrapping=Harmony(),
    ),
    ReasoningFamily(
        "kimi_k3",
        "Kimi-K3",
        signs=("<|open|>", "<|close|>", "<|sep|>"),
        model_types=("kimi_k3",),
        wrapping=Wrapping(
            ("<|open|>think<|sep|>",), ("<|close|>think<|sep|>",), lead="", after="", drops=KIMI_K3_WRAPPERS
        ),
    ),
    ReasoningFamily(
        "kimi_vl",
        "Kimi-VL",
        signs=("◁think▷",),
        model_types=("kimi_vl",),
        aliases=("kimi",),
        wrapping=Wrapping(("◁think▷",), ("◁/think▷",)),
    ),
    ReasoningFamily(
        "magistral",
        "Magistral",
        signs=("[THINK]",),
        model_types=("mistral3",),
        aliases=("mistral",),
        wrapping=Wrapping(("[THINK]", "<think>"), ("[/THINK]", "</think>")),
    ),
    ReasoningFamily(
        "seed_oss",
        "Seed-OSS",
        signs=("<seed:think>",),
        model_types=("seed_oss",),
        wrapping=Wrapping(("<seed:think>",), ("</seed:think>",), opens=True),
    ),
    ReasoningFamily(
        "cohere",
        "Command-R7B, Command A Reasoning",
        signs=("<|START_THINKING|>",),
        model_types=("cohere2",),
        aliases=("cohere_command3", "cohere_command4", "cohere_cmd"),
        wrapping=Wrapping(("<|START_THINKING|>",), ("<|END_THINKING|>",), lead="", after="", drops=COHERE_WRAPPERS),
    ),
    ReasoningFamily(
        "gemma4",
        "Gemma 4",
        signs=("<|channel>",),
        model_types=("gemma4", "gemma4_text"),
        wrapping=Wrapping(("<|channel>thought",), ("<channel|>",)),
    ),
    ReasoningFamily(
        "granite",
        "Granite 3.2",
        signs=("Here is my thought process",),
        model_types=("granite",),
        wrapping=Wrapping(
            ("Here is my thought process:", "Here's my thought process:"),
            ("Here is my response:", "Here's my response:"),
            ends_at_call=False,
            lead=" \n",
            after=" \n\n",
        ),
    ),
    ReasoningFamily(
        "hunyuan_a13b",
        "Hunyuan-A13B",
        signs=("<think>", "<answer>"),
        model_types=("hunyuan_v1_moe",),
        aliases=("hunyuan",),
        wrapping=Wrapping(*THINK, drops=("<answer>\n", "\n</answer>")),
    ),
    ReasoningFamily(
        "deepseek_v31",
        "DeepSeek V3.1, V3.2, V4",
        signs=("<think>", "thinking"),
        needs_type=True,
        model_types=("deepseek_v3", "deepseek_v32", "deepseek_v4"),
        aliases=("deepseek_v3", "deepseek_v32", "deepseek_v4"),
        wrapping=Wrapping(*THINK),
    ),
    ReasoningFamily(
        "qwen3",
        "Qwen3 and others that write <think> themselves",
        signs=("<think>",),
        model_types=("qwen3", "qwen3_moe", "qwen2"),
        aliases=("think", "olmo3", "interns1", "hunyuan_v3", "mimo", "granite_4"),
        wrapping=Wrapping(*THINK),
    ),
    ReasoningFamily(
        "deepseek_r1",
        "DeepSeek R1",
        signs=("<think>",),
        model_types=("deepseek_v3",),
        wrapping=Wrapping(*THINK, opens=True, ends_at_call=False),
    ),
    ReasoningFamily(
        "glm45",
        "GLM-4.5, 4.6, 4.7, 5",
        signs=("<think>",),
        model_types=("glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe"),
        aliases=("glm", "glm47", "glm5"),
        wrapping=Wrapping(*THINK),
    ),
    ReasoningFamily(
        "kimi_k2",
        "Kimi-K2-Thinking, K2.5",
        signs=("<think>",),
        model_types=("kimi_k2", "kimi_k25"),
        aliases=("kimi_thinking", "kimi_k25"),
        wrapping=Wrapping(*THINK),
    ),
    ReasoningFamily(
        "minimax_m2",
        "MiniMax-M2",
        signs=("<think>",),
        model_types=("minimax_m2",),
        aliases=("minimax",),
        wrapping=Wrapping(*THINK, opens=True),
    ),
    ReasoningFamily(
        "minimax_append_think",
        "MiniMax-M2, its reasoning left in the content for clients that send it back",
        aliases=("minimax_m2_append_think",),
        wrapping=Wrapping((), (), in_content="<think>"),
    ),
    ReasoningFamily(
        "step3",
        "Step3, Step-3.5",
        signs=("<think>",),
        model_types=("step3", "step3_text", "step3_vl", "step3p5"),
        aliases=("step3p5",),
        wrapping=Wrapping(*THINK, opens=True),
    ),
    ReasoningFamily(
        "nemotron",
        "Nemotron-3",
        signs=("<think>",),
        model_types=("nemotron_h", "nemotron-nas"),
        aliases=("nano_v3", "nemotron_v3", "nemotron_3"),
        wrapping=Wrapping(*THINK, opens=True),
    ),
    ReasoningFamily(
        "qwen3_thinking",
        "Qwen3-Thinking-2507, Qwen3.5, QwQ",
        model_types=("qwen3_5", "qwen3_5_moe"),
        signs=("<think>",),
        aliases=("qwen35", "qwq"),
        wrapping=Wrapping(*THINK, opens=True),
    ),
)
