"""Images for TensorRT-LLM: as files, which it preprocesses itself, or as tensors that the gateway has made.

Files are what the LLM API documents. It runs the model's processor inside of `generate_async`, so that all streams wait
for it. Tensors go where its own processor puts its results, which is no documented interface and differs from model to
model (Qwen's also says where its rotary embeddings are, which we do not): hence `--image-tensors`.

Threads: none of its own; the executor's event loop.
"""

import importlib
import io
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from engine_adapters.base import Submission
from engine_adapters.image import Image

OURS = "gateway_submission"
"""The key of inputs under which a submission with tensors reaches our input processor."""


def takes_images(llm: Any) -> bool:
    """Whether the model has an input processor of its own."""
    processor = getattr(llm, "input_processor", None)
    return processor is not None and type(processor).__name__ != "DefaultInputProcessor"


def inputs_of(submission: Submission) -> "dict[str, Any]":
    """What `generate_async` is given; raises ValueError for a file that is no image."""
    if not submission.images:
        return {"prompt_token_ids": array("I", submission.token_ids).tolist()}
    if submission.images[0].tensors:
        return {"prompt": "", OURS: submission}
    pictures = [_picture(image) for image in submission.images]
    return {"prompt_token_ids": array("I", submission.token_ids).tolist(), "multi_modal_data": {"image": pictures}}


def _picture(image: Image) -> Any:
    pillow = importlib.import_module("PIL.Image")  # comes with tensorrt_llm
    try:
        return pillow.open(io.BytesIO(image.encoded)).convert("RGB")
    except Exception as error:  # whatever a broken file makes Pillow raise
        raise ValueError(f"an image cannot be read: {error}") from error


class TensorProcessor:
    """In the place of an LLM's input processor: passes on what the gateway has preprocessed, and asks the real one for
    all else."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)

    def __call__(self, inputs: "Mapping[str, Any]", sampling_params: Any) -> "tuple[list[int], dict[str, Any] | None]":
        submission = inputs.get(OURS)
        if submission is None:
            found: tuple[list[int], dict[str, Any] | None] = self._original(inputs, sampling_params)
            return found
        data: dict[str, Any] = {"image": tensors_of(submission.images)}
        return array("I", submission.token_ids).tolist(), {"multimodal_data": data}


def tensors_of(images: "Sequence[Image]") -> "dict[str, Any]":
    """By name, the images' one behind the other, as the published processors have several."""
    torch = importlib.import_module("torch")
    parts: dict[str, list[Any]] = {}
    for image in images:
        for name, (tensor, view) in image.views().items():
            flat = torch.frombuffer(bytearray(view), dtype=getattr(torch, tensor.dtype))
            parts.setdefault(name, []).append(flat.reshape(tensor.shape))
    return {name: each[0] if len(each) == 1 else torch.cat(each) for name, each in parts.items()}
