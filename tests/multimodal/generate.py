"""Has the published processors preprocess every picture, and writes what they make of it to expected/.

    python -m venv /tmp/hf && /tmp/hf/bin/pip install transformers==5.20.2 pillow==12.2.0 torch torchvision
    /tmp/hf/bin/python tests/multimodal/generate.py            # write
    /tmp/hf/bin/python tests/multimodal/generate.py --print    # JSON to standard output

`GATEWAY_TRANSFORMERS_PYTHON=/tmp/hf/bin/python make test TESTS=tests/multimodal` compares anew. Nothing of the gateway
is used here. transformers' Pillow processors are asked where there are some; Llama 4 has only one on torchvision.
Phi-3's is not part of transformers: `Phi3` below writes out its published algorithm in torch.
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor
from transformers.models.llama4.processing_llama4 import Llama4Processor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.pixtral.processing_pixtral import PixtralProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

sys.path.insert(0, str(Path(__file__).parent))

from configs import APPROXIMATE, CONFIGS
from pictures import BATCH, SIZES, on_white, picture

EXPECTED = Path(__file__).parent / "expected"
SAMPLES = 150
TOWER = {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
SIDE = 336


class Phi3:
    """Microsoft's image_processing_phi3_v.py, as published with the model."""

    def __init__(self, num_crops: int) -> None:
        self.num_crops = num_crops

    def __call__(self, images: list[Image.Image], **_: Any) -> dict[str, Any]:
        (image,) = images
        hd = self.transform(image)
        mean, std = (torch.tensor(CONFIGS["qwen2_vl"][1][key])[:, None, None] for key in ("image_mean", "image_std"))
        pixels = torch.from_numpy(np.array(hd)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        pixels = pixels.sub(mean).div(std)
        small = torch.nn.functional.interpolate(pixels[None], size=(SIDE, SIDE), mode="bicubic")
        _, height, width = pixels.shape
        rows, columns = height // SIDE, width // SIDE
        tiles = pixels.reshape(1, 3, rows, SIDE, columns, SIDE).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, SIDE, SIDE)
        whole = torch.cat([small, tiles])
        whole = torch.cat([whole, torch.zeros(self.num_crops + 1 - len(whole), 3, SIDE, SIDE)])
        tokens = (rows * columns + 1) * 144 + 1 + (rows + 1) * 12
        return {"pixel_values": whole[None], "image_sizes": [[height, width]], "num_img_tokens": [tokens]}

    def transform(self, image: Image.Image) -> Image.Image:
        is_tall = image.width < image.height
        if is_tall:
            image = image.transpose(Image.Transpose.TRANSPOSE)
        ratio, scale = image.width / image.height, 1
        while scale * np.ceil(scale / ratio) <= self.num_crops:
            scale += 1
        scale -= 1
        new_width = int(scale * SIDE)
        image = image.resize((new_width, int(new_width / ratio)), Image.Resampling.BILINEAR)
        target = int(np.ceil(image.height / SIDE) * SIDE)
        canvas = Image.new("RGB", (image.width, target), (255, 255, 255))
        canvas.paste(image, (0, int((target - image.height) / 2)))
        return canvas.transpose(Image.Transpose.TRANSPOSE) if is_tall else canvas


def main() -> None:
    results = {key: results_of(key) for key in CONFIGS}
    if "--print" in sys.argv:
        json.dump(results, sys.stdout)
        return
    EXPECTED.mkdir(exist_ok=True)
    for key, each in results.items():
        lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in each.items())
        (EXPECTED / f"{key}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    sys.stderr.write(f"transformers {transformers.__version__}: {len(results)} processors\n")


def results_of(key: str) -> dict[str, Any]:
    name, config = CONFIGS[key]
    processor = image_processor(name, dict(config))
    results = {each: result_of(name, processor, [on_white(picture(each))]) for each in SIZES}
    if name != "phi3v":
        results["batch"] = result_of(name, processor, [on_white(picture(each)) for each in BATCH])
    return results


def image_processor(name: str, config: dict[str, Any]) -> Any:
    if name in ("qwen2_vl", "qwen3_vl"):
        return Qwen2VLImageProcessorPil(**config)
    if name == "llama4":
        return Llama4ImageProcessor(**config)
    if name in ("llava15", "llava15_pad"):
        return LlavaImageProcessorPil(**config)
    if name == "llava_next":
        return LlavaNextImageProcessorPil(**config)
    if name == "pixtral":
        return PixtralImageProcessorPil(**config)
    if name == "mistral3":  # PixtralProcessor multiplies by spatial_merge_size
        return PixtralImageProcessorPil(**config | {"patch_size": {"height": 28, "width": 28}})
    if name == "internvl":  # InternVLProcessor asks for it, whatever the file says
        return GotOcr2ImageProcessorPil(**config | {"crop_to_patches": True})
    return Phi3(config["num_crops"])


def result_of(name: str, processor: Any, images: list[Image.Image]) -> dict[str, Any] | None:
    """Of a list of images, with the expansion of the first; None where the published processor fails."""
    try:
        inputs = processor(images, return_tensors="pt" if name in APPROXIMATE else "np")
    except Exception:
        return None
    pixels = np.ascontiguousarray(torch.as_tensor(inputs["pixel_values"]).to(torch.float32).numpy())
    result = {"shape": list(pixels.shape)}
    if name in APPROXIMATE:
        places = np.linspace(0, pixels.size - 1, SAMPLES).astype(int)
        result["samples"] = [round(float(each), 5) for each in pixels.reshape(-1)[places]]
    else:
        result["sha256"] = hashlib.sha256(pixels.tobytes()).hexdigest()[:24]
    result["fields"] = {
        field: torch.as_tensor(value).tolist() for field, value in inputs.items() if field != "pixel_values"
    }
    text = expansion(name, processor, inputs)
    result["expansion"] = hashlib.sha256(text.encode()).hexdigest()[:24]
    return result


def expansion(name: str, processor: Any, inputs: Any) -> str:
    """What the published processor writes in place of the placeholder."""
    if name in ("qwen2_vl", "qwen3_vl"):
        own = SimpleNamespace(image_processor=processor, image_token="<|image_pad|>")
        return str(Qwen2VLProcessor.replace_image_token(own, inputs, 0))
    if name == "llama4":
        own = SimpleNamespace(patch_size=14, downsample_ratio=4)
        own._prompt_split_image = lambda *given: Llama4Processor._prompt_split_image(own, *given)
        return str(Llama4Processor.replace_image_token(own, inputs, 0))
    if name in ("llava15", "llava15_pad"):
        return str(LlavaProcessor.replace_image_token(SimpleNamespace(image_token="<image>", **TOWER), inputs, 0))
    if name == "llava_next":
        own = SimpleNamespace(image_token="<image>", image_processor=processor, **TOWER)
        for method in ("_get_number_of_features", "_get_unpadded_features"):
            setattr(own, method, getattr(LlavaNextProcessor, method).__get__(own))
        return str(LlavaNextProcessor.replace_image_token(own, inputs, 0))
    if name in ("pixtral", "mistral3"):
        tokens = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
        patch, merge = (16, 1) if name == "pixtral" else (14, 2)
        own = SimpleNamespace(patch_size=patch, spatial_merge_size=merge, **tokens)
        return str(PixtralProcessor.replace_image_token(own, inputs, 0))
    if name == "internvl":
        tokens = {"image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
        side = inputs["pixel_values"][0].shape[-1]
        own = SimpleNamespace(image_seq_length=(side // 14) ** 2 // 4, **tokens)
        return str(InternVLProcessor.replace_image_token(own, inputs, 0))
    return "<|image|>" * math.prod(inputs["num_img_tokens"])


if __name__ == "__main__":
    main()
