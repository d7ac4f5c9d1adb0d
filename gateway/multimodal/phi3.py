"""Phi-3-vision and Phi-3.5-vision: tiles of the image at the largest scale that fits, and a small copy of all.

Their processor is remote code of the model; this follows its published algorithm."""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Image, Resampling, Transpose

from gateway.multimodal.features import Features, features, integers
from gateway.multimodal.levels import Levels
from gateway.multimodal.settings import CLIP_MEAN, CLIP_STD, ProcessorFiles, Settings
from gateway.multimodal.tiles import cut, padded, resized

SIDE = 336
WHITE = (255, 255, 255)
DEFAULTS = {"num_crops": 1, "num_img_tokens": 144, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
PUBLISHED = {"num_crops": 16}
HALFWAY = np.array([-3 / 32, 19 / 32, 19 / 32, -3 / 32], np.float32)
"""The weights of four neighbours, halfway between the middle two, in a cubic convolution with a = -0.75."""


@dataclass(frozen=True)
class Phi3:
    name: str
    levels: Levels
    room: int
    """Tiles in the tensor; what an image does not need is zero."""
    max_tiles: int
    tokens: int
    """Of a tile."""
    placeholder: str = "<|image|>"

    @classmethod
    def of(cls, name: str, files: ProcessorFiles) -> "Phi3":
        settings = Settings(files, DEFAULTS, PUBLISHED)
        tiles = settings.integer("num_crops")
        return cls(name, settings.levels(), tiles, tiles, settings.integer("num_img_tokens"))

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        if detail == "low" and self.max_tiles > 1:
            return replace(self, max_tiles=1).preprocess(image)
        fitted = self._fitted(image)
        rows, columns = fitted.shape[1] // SIDE, fitted.shape[2] // SIDE
        pixels = np.zeros((1, self.room + 1, 3, SIDE, SIDE), np.float32)
        cut(fitted, self.levels, pixels[0, 1 : 1 + rows * columns])
        self._shrink(fitted, pixels[0, 0])
        # One token ends each line of a tile's and of the small copy's tokens, one stands between the two.
        lines = math.isqrt(self.tokens)
        count = (rows * columns + 1) * self.tokens + 1 + (rows + 1) * lines
        sizes, counts = integers(fitted.shape[1:]), np.array([count], np.int64)
        expansion = [(self.placeholder, count)]
        return features(expansion, self.placeholder, pixel_values=pixels, image_sizes=sizes, num_img_tokens=counts)

    def _fitted(self, image: Image) -> np.ndarray:
        """In whole tiles, white above and below (of an upright image: left and right)."""
        if image.width < image.height:
            return self._fitted(image.transpose(Transpose.TRANSPOSE)).swapaxes(1, 2)
        ratio = image.width / image.height
        columns = max(
            scale for scale in range(1, self.max_tiles + 1) if scale * math.ceil(scale / ratio) <= self.max_tiles
        )
        width = columns * SIDE
        fitted = resized(image, int(width / ratio), width, Resampling.BILINEAR)
        height = -(-fitted.shape[1] // SIDE) * SIDE
        return padded(fitted, height, width, (height - fitted.shape[1]) // 2, 0, WHITE)

    def _shrink(self, planes: np.ndarray, out: np.ndarray) -> None:
        """A bicubic copy of normalized pixels, without antialiasing. The sides are whole multiples of the copy's, so
        each point falls on a pixel (odd multiples) or halfway between two."""
        (row_taps, row_weights), (column_taps, column_weights) = map(sampling, planes.shape[1:])
        near = np.take(np.take(planes, row_taps.ravel(), axis=1), column_taps.ravel(), axis=2)
        values = np.empty(near.shape, np.float32)
        self.levels.normalize(near, values)
        values = values.reshape(3, SIDE * len(row_weights), SIDE, len(column_weights)) @ column_weights
        out[:] = np.tensordot(values.reshape(3, SIDE, len(row_weights), SIDE), row_weights, (2, 0))


def sampling(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of a side make each of SIDE points, [SIDE, taps], and their weights, [taps]."""
    multiple = length // SIDE
    first = np.arange(SIDE) * multiple + (multiple - 1) // 2
    if multiple % 2:
        return first[:, None], np.ones(1, np.float32)
    return np.clip(first[:, None] + np.arange(-1, 3), 0, length - 1), HALFWAY
