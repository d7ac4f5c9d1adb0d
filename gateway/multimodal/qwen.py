"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any size whose sides are multiples of a merged patch, cut into patches."""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Image, Resampling

from gateway.multimodal.features import BadImage, Features, features, integers
from gateway.multimodal.levels import Levels
from gateway.multimodal.settings import CLIP_MEAN, CLIP_STD, HALF, ProcessorFiles, Settings, whole
from gateway.multimodal.tiles import resized

MAX_ASPECT_RATIO = 200
LOW_DETAIL_PIXELS = 512 * 512
DEFAULTS = {
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": Resampling.BICUBIC,
}
PUBLISHED = {"min_pixels": 56 * 56, "max_pixels": 12_845_056}
DEFAULTS_3 = DEFAULTS | {
    "patch_size": 16,
    "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
    "image_mean": HALF,
    "image_std": HALF,
}


@dataclass(frozen=True)
class Qwen:
    name: str
    levels: Levels
    resampling: Resampling
    patch: int
    merge: int
    frames: int
    """Of a temporal patch: a still image is repeated."""
    min_pixels: int
    max_pixels: int
    placeholder: str = "<|image_pad|>"

    @classmethod
    def of(cls, name: str, files: ProcessorFiles) -> "Qwen":
        settings = Settings(files, DEFAULTS_3) if name == "qwen3_vl" else Settings(files, DEFAULTS, PUBLISHED)
        size = settings.get("size") or {}
        return cls(
            name,
            settings.levels(),
            settings.resampling(),
            settings.integer("patch_size"),
            settings.integer("merge_size"),
            settings.integer("temporal_patch_size"),
            whole(settings.get("min_pixels") or size.get("shortest_edge"), "min_pixels"),
            whole(settings.get("max_pixels") or size.get("longest_edge"), "max_pixels"),
        )

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        if detail == "low" and self.max_pixels > LOW_DETAIL_PIXELS:
            return replace(self, max_pixels=LOW_DETAIL_PIXELS).preprocess(image)
        height, width = self.fit(image.height, image.width)
        planes = resized(image, height, width, self.resampling)
        rows, columns = height // self.patch, width // self.patch
        expansion = [(self.placeholder, rows * columns // self.merge**2)]
        grid = integers([1, rows, columns])
        return features(expansion, self.placeholder, pixel_values=self._patches(planes), image_grid_thw=grid)

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to resize to; raises BadImage."""
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise BadImage(
                f"image of {width} x {height} pixels: one side may be {MAX_ASPECT_RATIO} times the other at most",
                reason="shape",
            )
        unit = self.patch * self.merge
        new_height, new_width = round(height / unit) * unit, round(width / unit) * unit
        if new_height * new_width > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            new_height, new_width = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
        elif new_height * new_width < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            new_height, new_width = (math.ceil(side * grow / unit) * unit for side in (height, width))
        return new_height, new_width

    def _patches(self, planes: np.ndarray) -> np.ndarray:
        """float32 [patches, 3 * frames * patch * patch]; patches that are merged into one token are neighbours.

        Works on a row of tokens at a time. A line of a patch is moved as one element, which is the fastest way that
        numpy has."""
        _, height, width = planes.shape
        patch, merge, frames = self.patch, self.merge, self.frames
        rows, columns = height // patch // merge, width // patch // merge
        out = np.empty((rows * merge * columns * merge, 3 * frames * patch * patch), np.float32)
        line = np.dtype((np.void, patch * out.itemsize))
        target = out.view(line).reshape(rows, columns, merge, merge, 3, frames, patch)
        band = np.empty((3, merge * patch, width), np.float32)
        source = band.view(line).reshape(3, merge, patch, columns, merge).transpose(3, 1, 4, 0, 2)[:, :, :, :, None]
        for row, top in enumerate(range(0, height, merge * patch)):
            self.levels.normalize(planes[:, top : top + merge * patch], band)
            target[row] = source
        return out
