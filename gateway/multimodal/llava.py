"""LLaVA-1.5, and its variant that pads to a square before all else: one square of the vision tower's size."""

from dataclasses import dataclass

import numpy as np
from PIL import Image as images
from PIL.Image import Image, Resampling

from gateway.multimodal.features import Features, features
from gateway.multimodal.levels import Levels
from gateway.multimodal.settings import CLIP_MEAN, CLIP_STD, ProcessorConfigError, ProcessorFiles, Settings, whole
from gateway.multimodal.tiles import MAX_PIXELS, cut, padded, resized, too_elongated

DEFAULTS = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": Resampling.BICUBIC,
}
PUBLISHED = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
PATCH = 14


@dataclass(frozen=True)
class Tower:
    """How many tokens a CLIP or SigLIP tower makes of a square."""

    patch: int
    extra: int
    """Beside the patches': the class token, where it is kept."""

    @classmethod
    def of(cls, files: ProcessorFiles) -> "Tower":
        processor, model = files.processor, files.model
        patch = processor.get("patch_size") or files.vision.get("patch_size") or PATCH
        if isinstance(patch, dict):
            patch = patch.get("height")
        has_class = "siglip" not in str(files.vision.get("model_type"))
        extra = processor.get("num_additional_image_tokens")
        selects = processor.get("vision_feature_select_strategy") or model.get("vision_feature_select_strategy")
        extra = int(has_class) if extra is None else int(extra)
        return cls(whole(patch, "patch_size"), extra - (selects in (None, "default")))

    def tokens(self, side: int) -> int:
        return (side // self.patch) ** 2 + self.extra


@dataclass(frozen=True)
class Llava:
    name: str
    levels: Levels
    resampling: Resampling
    shortest: int
    side: int
    background: tuple[int, ...] | None
    """Of what pads it to a square; None: it is not padded, and its longer side is cropped."""
    tokens: int
    placeholder: str = "<image>"

    @classmethod
    def of(cls, name: str, files: ProcessorFiles) -> "Llava":
        settings = Settings(files, DEFAULTS, PUBLISHED)
        if settings.get("do_center_crop") is False:
            raise ProcessorConfigError("preprocessor_config.json: do_center_crop must be true")
        side, mean = settings.side("crop_size"), settings.statistics()[0]
        return cls(
            name,
            settings.levels(),
            settings.resampling(),
            settings.side("size"),
            side,
            tuple(int(each * 255) for each in mean) if name == "llava15_pad" else None,
            Tower.of(files).tokens(side),
        )

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        if self.background:
            image = squared(image, self.background)
        short, long = sorted(image.size)
        longest = int(self.shortest * long / short)
        height, width = (longest, self.shortest) if image.width <= image.height else (self.shortest, longest)
        pixels = np.empty((1, 3, self.side, self.side), np.float32)
        cut(centered(resized(image, height, width, self.resampling), self.side), self.levels, pixels)
        return features([(self.placeholder, self.tokens)], self.placeholder, pixel_values=pixels)


def squared(image: Image, color: tuple[int, ...]) -> Image:
    """Padded evenly on both sides, with the spare line at the end."""
    side = max(image.size)
    if image.width == image.height:
        return image
    if side * side > MAX_PIXELS:
        raise too_elongated(image)
    canvas = images.new("RGB", (side, side), color)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def centered(planes: np.ndarray, side: int) -> np.ndarray:
    """The square in its middle; of what is smaller, on black. Spare lines are at the end of what is cropped, and at the
    beginning of what is padded."""
    _, rows, columns = planes.shape
    height, width = max(rows, side), max(columns, side)
    planes = padded(planes, height, width, (height - rows + 1) // 2, (width - columns + 1) // 2)
    top, left = (height - side) // 2, (width - side) // 2
    return planes[:, top : top + side, left : left + side]
