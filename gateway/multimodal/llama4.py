"""Llama 4: tiles of the canvas that fits best, and the whole image as a last one.

The published processor resizes with torchvision, ours with Pillow: most values agree to the bit, none is further off
than two levels. It computes in bfloat16, and so do the numbers here: float32 that bfloat16 can hold."""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Image, Resampling

from gateway.multimodal.features import Features, features, integers
from gateway.multimodal.levels import Levels
from gateway.multimodal.settings import HALF, ProcessorConfigError, ProcessorFiles, Settings
from gateway.multimodal.tiles import cut, padded, resized

DEFAULTS = {
    "size": {"height": 336, "width": 336},
    "max_patches": 16,
    "image_mean": HALF,
    "image_std": HALF,
    "resample": Resampling.BILINEAR,
}
PATCH = 14
PIXEL_SHUFFLE_RATIO = 0.5


@dataclass(frozen=True)
class Llama4:
    name: str
    levels: Levels
    resampling: Resampling
    side: int
    canvases: np.ndarray
    """int64 [canvases, 2]: (rows, columns)."""
    tokens: int
    """Of a tile."""
    patch: str = "<|patch|>"
    placeholder: str = "<|image|>"

    @classmethod
    def of(cls, name: str, files: ProcessorFiles) -> "Llama4":
        settings = Settings(files, DEFAULTS)
        if settings.get("resize_to_max_canvas"):
            raise ProcessorConfigError("preprocessor_config.json: resize_to_max_canvas is not supported")
        side = settings.side("size")
        patch = files.processor.get("patch_size") or files.vision.get("patch_size") or PATCH
        shuffle = files.processor.get("pixel_shuffle_ratio") or files.vision.get("pixel_shuffle_ratio")
        merged = round(1 / (shuffle or PIXEL_SHUFFLE_RATIO) ** 2)
        return cls(
            name,
            Levels(*settings.statistics(), table=bfloat16_table(*settings.statistics())),
            settings.resampling(),
            side,
            canvases_of(settings.integer("max_patches")),
            (side // int(patch)) ** 2 // merged,
        )

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        if detail == "low" and len(self.canvases) > 1:
            return replace(self, canvases=canvases_of(1)).preprocess(image)
        rows, columns = best_canvas(image.height, image.width, self.side, self.canvases)
        cells = rows * columns
        pixels = np.empty((cells + (cells > 1), 3, self.side, self.side), np.float32)
        cut(self._fitted(image, rows * self.side, columns * self.side), self.levels, pixels[:cells])
        if cells > 1:
            cut(resized(image, self.side, self.side, self.resampling), self.levels, pixels[cells:])
        ratios = integers([rows, columns])
        return features(self._expansion(rows, columns), self.patch, pixel_values=pixels, aspect_ratios=ratios)

    def _fitted(self, image: Image, height: int, width: int) -> np.ndarray:
        """In the top left corner of the canvas, and enlarged to a tile's side at most."""
        most_height, most_width = min(max(image.height, self.side), height), min(max(image.width, self.side), width)
        scale_width, scale_height = most_width / image.width, most_height / image.height
        if scale_width < scale_height:
            new_height, new_width = min(math.floor(image.height * scale_width), most_height), most_width
        else:
            new_height, new_width = most_height, min(math.floor(image.width * scale_height), most_width)
        return padded(resized(image, max(new_height, 1), max(new_width, 1), self.resampling), height, width, 0, 0)

    def _expansion(self, rows: int, columns: int) -> list[tuple[str, int]]:
        tile = (self.patch, self.tokens)
        row = [tile, *[("<|tile_x_separator|>", 1), tile] * (columns - 1), ("<|tile_y_separator|>", 1)]
        tiles = row * rows if rows * columns > 1 else []
        return [("<|image_start|>", 1), *tiles, (self.placeholder, 1), tile, ("<|image_end|>", 1)]


def canvases_of(max_tiles: int) -> np.ndarray:
    """All of so many tiles at most, those of few tiles first."""
    sides = range(1, max_tiles + 1)
    grids = [(rows, columns) for rows in sides for columns in sides if rows * columns <= max_tiles]
    return np.array(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def best_canvas(height: int, width: int, side: int, canvases: np.ndarray) -> tuple[int, int]:
    """(rows, columns): what enlarges the image least, else what shrinks it least, and wastes least of those. Scales are
    compared in float32, as the published processor does."""
    image = np.array([height, width], np.float32)
    scales = ((canvases * side).astype(np.float32) / image).min(axis=1)
    larger = scales[scales >= 1]
    scale = larger.min() if larger.size else scales.max()
    rows, columns = canvases[np.argmax(scales == scale)]
    return int(rows), int(columns)


def bfloat16_table(mean: tuple[float, ...], std: tuple[float, ...], factor: float) -> np.ndarray:
    """float32 [3, 256]: each step of rescaling and normalizing is rounded to bfloat16."""
    rescaled = bfloat16(np.arange(256, dtype=np.float32) * np.float32(factor))
    means, stds = (bfloat16(np.array(each, np.float32))[:, None] for each in (mean, std))
    return bfloat16(bfloat16(rescaled - means) / stds)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to what bfloat16 holds, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
