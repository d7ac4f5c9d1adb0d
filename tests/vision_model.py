"""A small model that takes images, made for tests: the demo model's tokenizer with Qwen2-VL's special tokens, template
and processor, whose sizes are small."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import tokenizers
from PIL import Image

from tests.demo_model import FOLDER

SPECIALS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}{% endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 1 << 20,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


def make_vision_model(folder: Path, template: str = TEMPLATE, **preprocessor: Any) -> Path:
    """The folder, filled."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.add_special_tokens([*SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((FOLDER / "config.json").read_text())
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    write(folder / "config.json", config | {"model_type": "qwen2_vl", "vocab_size": size})
    settings = json.loads((FOLDER / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", settings | {"chat_template": template})
    write(folder / "preprocessor_config.json", PREPROCESSOR | preprocessor)
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def picture(
    width: int = 56, height: int = 56, colour: tuple[int, int, int] = (200, 30, 60), kind: str = "PNG"
) -> bytes:
    """An image file."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste(colour, (0, 0, width // 2, height // 2))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
