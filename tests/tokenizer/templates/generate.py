"""Has transformers render every conversation in every template, and writes the results to expected/.

    python -m venv /tmp/hf && /tmp/hf/bin/pip install transformers jinja2
    /tmp/hf/bin/python tests/tokenizer/templates/generate.py            # write
    /tmp/hf/bin/python tests/tokenizer/templates/generate.py --print    # JSON with every text, to standard output

`GATEWAY_TRANSFORMERS_PYTHON=/tmp/hf/bin/python make test TESTS=tests/tokenizer` compares text by text. Nothing of the
gateway is used here.
"""

import datetime
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers.utils import chat_template_utils

sys.path.insert(0, str(Path(__file__).parent))

from conversations import CONVERSATIONS, WRITTEN_OUT
from shapes import DATE, EXPECTED, FOLDER, SHAPES, Shape

TOGGLES = ("enable_thinking", "thinking", "reasoning")
"""All names under which the templates take whether to think."""


class Today(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "Today":
        return cls(*DATE)


def main() -> None:
    chat_template_utils.datetime = Today
    texts = {
        name: {key: text_of(name, shape, each) for key, each in CONVERSATIONS.items()} for name, shape in SHAPES.items()
    }
    if "--print" in sys.argv:
        json.dump(texts, sys.stdout)
        return
    EXPECTED.mkdir(exist_ok=True)
    for name, each in texts.items():
        kept = {key: text if key in WRITTEN_OUT or text is None else digest(text) for key, text in each.items()}
        (EXPECTED / f"{name}.json").write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", "utf-8")
    sys.stderr.write(f"transformers {transformers.__version__}: {len(texts)} templates\n")


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def text_of(name: str, shape: Shape, conversation: dict[str, Any]) -> str | None:
    """What transformers makes of it; None when it or the template refuses."""
    source = (FOLDER / f"{name}.jinja").read_text("utf-8")
    specials = {"bos_token": shape.bos, "eos_token": shape.eos}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, chat_template=source, **specials)
    arguments: dict[str, Any] = {"add_generation_prompt": not conversation.get("continue_final_message")}
    arguments |= conversation.get("template_arguments", {})
    if effort := conversation.get("reasoning_effort"):
        arguments |= {"reasoning_effort": effort} | ({} if shape.effort else dict.fromkeys(TOGGLES, True))
    if "thinking" in conversation:
        arguments |= dict.fromkeys(TOGGLES, conversation["thinking"])
    arguments |= {
        key: conversation[key] for key in ("tools", "documents", "continue_final_message") if key in conversation
    }
    messages = [fed(message, shape) for message in conversation["messages"]]
    try:
        if shape.keeps_null:
            whole = tokenizer.special_tokens_map | arguments
            return str(chat_template_utils.render_jinja_template([messages], chat_template=source, **whole)[0][0])
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
    except Exception:
        return None


def fed(message: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """A message in the form that the template's model card asks for."""
    message = dict(message)
    if message["role"] == "developer" and not shape.developer:
        message["role"] = "system"
    content = message["content"]
    if isinstance(content, list) and message["role"] not in shape.parts:
        message["content"] = "\n".join(part["text"] for part in content)
    elif isinstance(content, str) and shape.wraps:
        message["content"] = [{"type": "text", "text": content}]
    if "tool_calls" in message and shape.arguments == "object":
        calls = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
        message["tool_calls"] = calls
    return message


if __name__ == "__main__":
    main()
