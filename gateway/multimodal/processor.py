"""What every image processor offers, and which one a model has.

Threads: processors are frozen, and made once; what they compute on is a call's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from gateway.multimodal.features import Features
from gateway.multimodal.internvl import InternVL
from gateway.multimodal.llama4 import Llama4
from gateway.multimodal.llava import Llava
from gateway.multimodal.llava_next import LlavaNext
from gateway.multimodal.phi3 import Phi3
from gateway.multimodal.pixtral import Pixtral
from gateway.multimodal.qwen import Qwen
from gateway.multimodal.settings import ProcessorConfigError, ProcessorFiles


class Processor(Protocol):
    """Makes a model's input of an image. Holds no state but its sizes: any number of threads may call it."""

    @property
    def name(self) -> str:
        """The family's."""

    @property
    def placeholder(self) -> str:
        """The special token that stands for one image in the rendered prompt, e.g. `<|image_pad|>`."""

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        """Of an RGB image, as `load_image` gives it. `detail` is OpenAI's: `low` asks for few tokens where the
        family has a way to give few. Raises BadImage."""


@dataclass(frozen=True)
class Family:
    """Recognised by config.json's `model_type` and the image processor's type, without its `Fast` or `Pil`."""

    name: str
    models: str
    """In words."""
    make: Callable[[str, ProcessorFiles], Processor]
    model_types: tuple[str, ...]
    image_processors: tuple[str, ...]


PADDED = Family("llava15_pad", "LLaVA-1.5, padded to a square", Llava.of, (), ())
FAMILIES = (
    Family(
        "qwen2_vl",
        "Qwen2-VL, Qwen2.5-VL",
        Qwen.of,
        ("qwen2_vl", "qwen2_5_vl"),
        ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor"),
    ),
    Family(
        "qwen3_vl",
        "Qwen3-VL, Qwen3.5",
        Qwen.of,
        ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        ("Qwen2VLImageProcessor", "Qwen3VLImageProcessor"),
    ),
    Family("llama4", "Llama 4", Llama4.of, ("llama4",), ("Llama4ImageProcessor",)),
    Family("llava15", "LLaVA-1.5", Llava.of, ("llava",), ("CLIPImageProcessor", "LlavaImageProcessor")),
    PADDED,
    Family("llava_next", "LLaVA-NeXT (1.6)", LlavaNext.of, ("llava_next",), ("LlavaNextImageProcessor",)),
    Family("pixtral", "Pixtral", Pixtral.of, ("llava", "pixtral"), ("PixtralImageProcessor",)),
    Family("mistral3", "Mistral Small 3.1 and later", Pixtral.of, ("mistral3",), ("PixtralImageProcessor",)),
    Family(
        "internvl",
        "InternVL 2.5 and 3",
        InternVL.of,
        ("internvl", "internvl_chat"),
        ("GotOcr2ImageProcessor", "CLIPImageProcessor", "CLIPFeatureExtractor"),
    ),
    Family("phi3v", "Phi-3-vision, Phi-3.5-vision", Phi3.of, ("phi3_v",), ("Phi3VImageProcessor",)),
)


def processor_of(folder: Path) -> Processor | None:
    """The processor of the model in that folder; None if it takes no images, or of a kind that none here makes. Raises
    ProcessorConfigError."""
    files = ProcessorFiles.read(folder)
    family = family_of(files)
    return family.make(family.name, files) if family else None


def processor_named(name: str, config: Mapping[str, Any]) -> Processor:
    """A family's processor with the fields of a preprocessor_config.json; an empty one stands for a well-known model's.
    Raises ProcessorConfigError."""
    for family in FAMILIES:
        if family.name == name:
            return family.make(name, ProcessorFiles.of_config(config))
    names = ", ".join(family.name for family in FAMILIES)
    raise ProcessorConfigError(f"there is no image processor {name!r}; there are {names}")


def family_of(files: ProcessorFiles) -> Family | None:
    """By what the files say of the model's type and the image processor's, of which one may be missing."""
    kind = str(files.image.get("image_processor_type") or files.image.get("feature_extractor_type") or "")
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    model_type = str(files.model.get("model_type") or "")
    if not files.image or not (kind or model_type):
        return None
    pads = bool(files.image.get("do_pad")) or files.model.get("image_aspect_ratio") == "pad"
    for family in FAMILIES:
        if model_type in ("", *family.model_types) and kind in ("", *family.image_processors):
            return PADDED if family.name == "llava15" and pads else family
    return None
