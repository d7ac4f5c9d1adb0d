"""Pixtral and Mistral Small 3: any size up to a longest side, in whole patches."""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Image, Resampling

from gateway.multimodal.features import Features, features, integers
from gateway.multimodal.levels import Levels
from gateway.multimodal.settings import CLIP_MEAN, CLIP_STD, ProcessorFiles, Settings, whole
from gateway.multimodal.tiles import cut, resized

LOW_DETAIL_SIDE = 512
DEFAULTS = {
    "size": {"longest_edge": 1024},
    "patch_size": {"height": 16, "width": 16},
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": Resampling.BICUBIC,
}
DEFAULTS_MISTRAL = DEFAULTS | {"size": {"longest_edge": 1540}, "patch_size": {"height": 14, "width": 14}}
MERGED_PATCH = 28
"""Of Mistral Small 3: a configuration that states it as the patch size has merged already."""


@dataclass(frozen=True)
class Pixtral:
    name: str
    levels: Levels
    resampling: Resampling
    longest: int
    unit: int
    """Pixels a side of what becomes one token."""
    placeholder: str = "[IMG]"
    row_end: str = "[IMG_BREAK]"
    image_end: str = "[IMG_END]"

    @classmethod
    def of(cls, name: str, files: ProcessorFiles) -> "Pixtral":
        settings = Settings(files, DEFAULTS_MISTRAL if name == "mistral3" else DEFAULTS)
        patch = settings.side("patch_size")
        merge = files.processor.get("spatial_merge_size") or files.model.get("spatial_merge_size")
        if merge is None:
            merge = 2 if name == "mistral3" and patch < MERGED_PATCH else 1
        unit = patch * whole(merge, "spatial_merge_size")
        return cls(name, settings.levels(), settings.resampling(), settings.side("size"), unit)

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        if detail == "low" and self.longest > LOW_DETAIL_SIDE:
            return replace(self, longest=LOW_DETAIL_SIDE).preprocess(image)
        rows, columns = self.grid(image.height, image.width)
        height, width = rows * self.unit, columns * self.unit
        fitted = resized(image, height, width, self.resampling)
        pixels = np.empty((1, 3, height, width), np.float32)
        cut(fitted, self.levels, pixels)
        row = (self.placeholder, columns)
        expansion = [row, (self.row_end, 1)] * (rows - 1) + [row, (self.image_end, 1)]
        return features(expansion, self.placeholder, pixel_values=pixels, image_sizes=integers([height, width]))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of tokens; 0 of those when a side is lost altogether."""
        ratio = max(height / self.longest, width / self.longest)
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        return -(-height // self.unit), -(-width // self.unit)
