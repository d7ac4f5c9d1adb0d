"""A process of the measurement `images`: preprocesses one picture again and again, on so many threads.

    python -m perf.images_worker ours|slow|fast

Runs in any Python that has Pillow, numpy and, but for `ours`, transformers: so nothing of the gateway is imported here
but by `ours`. Reads lines of JSON, {"processor", "width", "height", "threads", "seconds", "decode"}, and answers each
with {"images", "seconds", "cpu"}.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

Step = Callable[[], object]
"""Preprocesses the picture once."""


def main() -> None:
    make = {"ours": ours, "slow": slow, "fast": fast}[sys.argv[1]]
    sys.stdout.write("\n")
    sys.stdout.flush()  # ready: what takes long to import is there
    for line in sys.stdin:
        order = json.loads(line)
        data = photo(order["width"], order["height"])
        step = make(order["processor"], data if order["decode"] else Image.open(BytesIO(data)).convert("RGB"))
        sys.stdout.write(json.dumps(run(step, order["threads"], order["seconds"])) + "\n")
        sys.stdout.flush()


def photo(width: int, height: int) -> bytes:
    """A JPEG with slopes and noise, as large in bytes as a photograph."""
    coarse = np.random.default_rng(1).integers(0, 256, (max(height // 16, 2), max(width // 16, 2), 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(2).integers(-8, 8, (height, width, 3), np.int16)
    pixels = np.clip(np.asarray(image).astype(np.int16) + noise, 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def run(step: Step, threads: int, seconds: float) -> dict[str, float]:
    """All threads start together, and finish the image they are at when the time is over."""
    step()
    counts = [0] * threads
    start = threading.Barrier(threads + 1)

    def work(number: int) -> None:
        start.wait()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            step()
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for each in workers:
        each.start()
    start.wait()
    started, cpu = time.perf_counter(), time.process_time()
    for each in workers:
        each.join()
    return {
        "images": sum(counts),
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
    }


def ours(name: str, source: Any) -> Step:
    from gateway.multimodal import load_image, processor_named

    processor = processor_named(name, {})
    if isinstance(source, bytes):
        return lambda: processor.preprocess(load_image(source))
    return lambda: processor.preprocess(source)


def slow(name: str, source: Any) -> Step:
    return published(name, "Pil", source, "np")


def fast(name: str, source: Any) -> Step:
    import torch

    torch.set_num_threads(1)  # the threads are ours
    return published(name, "", source, "pt")


def published(name: str, suffix: str, source: Any, tensors: str) -> Step:
    import transformers

    from tests.multimodal.configs import CONFIGS

    kind = {
        "qwen2_vl": "Qwen2VL",
        "qwen3_vl": "Qwen2VL",
        "llama4": "Llama4",
        "llava15": "Llava",
        "llava15_pad": "Llava",
        "llava_next": "LlavaNext",
        "pixtral": "Pixtral",
        "mistral3": "Pixtral",
        "internvl": "GotOcr2",
    }[name]
    more = {"mistral3": {"patch_size": {"height": 28, "width": 28}}, "internvl": {"crop_to_patches": True}}
    processor = getattr(transformers, f"{kind}ImageProcessor{suffix}")(**CONFIGS[name][1] | more.get(name, {}))
    if isinstance(source, bytes):
        return lambda: processor([Image.open(BytesIO(source)).convert("RGB")], return_tensors=tensors)
    return lambda: processor([source], return_tensors=tensors)


if __name__ == "__main__":
    main()
