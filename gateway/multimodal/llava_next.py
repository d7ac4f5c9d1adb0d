"""LLaVA-NeXT (1.6): the whole image as one tile, then tiles of it at the best of some resolutions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image, Resampling

from gateway.multimodal.features import Features, features, integers
from gateway.multimodal.levels import Levels
from gateway.multimodal.llava import DEFAULTS as LLAVA_DEFAULTS
from gateway.multimodal.llava import PUBLISHED, Tower
from gateway.multimodal.settings import ProcessorConfigError, ProcessorFiles, Settings
from gateway.multimodal.tiles import cut, padded, resized, too_elongated

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
DEFAULTS = LLAVA_DEFAULTS | {"image_grid_pinpoints": PINPOINTS}


@dataclass(frozen=True)
class LlavaNext:
    name: str
    levels: Levels
    resampling: Resampling
    side: int
    pinpoints: tuple[tuple[int, int], ...]
    """(height, width) in pixels."""
    tower: Tower
    placeholder: str = "<image>"

    @classmethod
    def of(cls, name: str, files: ProcessorFiles) -> "LlavaNext":
        settings = Settings(files, DEFAULTS, PUBLISHED)
        side = settings.side("size")
        if settings.get("do_center_crop") is not False and settings.side("crop_size") != side:
            raise ProcessorConfigError("preprocessor_config.json: crop_size must be as size")
        pinpoints = settings.get("image_grid_pinpoints")
        return cls(
            name, settings.levels(), settings.resampling(), side, read_pinpoints(pinpoints, side), Tower.of(files)
        )

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        height, width = self._best(image)
        pixels = np.empty((1, 1 + height * width // self.side**2, 3, self.side, self.side), np.float32)
        cut(resized(image, self.side, self.side, self.resampling), self.levels, pixels[0, :1])
        cut(self._fitted(image, height, width), self.levels, pixels[0, 1:])
        sizes = integers([image.height, image.width])
        expansion = [(self.placeholder, self.tokens(image.height, image.width, (height, width)))]
        return features(expansion, self.placeholder, pixel_values=pixels, image_sizes=sizes)

    def _best(self, image: Image) -> tuple[int, int]:
        best = best_resolution(image.height, image.width, self.pinpoints)
        if best is None:
            raise too_elongated(image)
        return best

    def _fitted(self, image: Image, height: int, width: int) -> np.ndarray:
        """As large as fits the canvas, in its middle."""
        scale_width, scale_height = width / image.width, height / image.height
        if scale_width < scale_height:
            new_height, new_width = min(math.ceil(image.height * scale_width), height), width
        else:
            new_height, new_width = height, min(math.ceil(image.width * scale_height), width)
        fitted = resized(image, new_height, new_width, self.resampling)
        return padded(fitted, height, width, (height - new_height) // 2, (width - new_width) // 2)

    def tokens(self, height: int, width: int, resolution: tuple[int, int]) -> int:
        """Of the whole, of the tiles without their padding, and one at the end of each line of those."""
        per_side = self.side // self.tower.patch
        rows, columns = (per_side * (each // self.side) for each in resolution)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return rows * columns + rows + self.tower.tokens(self.side)


def best_resolution(height: int, width: int, resolutions: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """That which keeps most of the image's pixels, and wastes least; None if there would be nothing left of it."""
    best, most, least_waste = None, 0, math.inf
    for candidate in resolutions:
        scale = min(candidate[1] / width, candidate[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = candidate[0] * candidate[1] - kept
        if kept > most or (kept == most and waste < least_waste):
            best, most, least_waste = candidate, kept, waste
    return best


def read_pinpoints(value: object, side: int) -> tuple[tuple[int, int], ...]:
    """Raises ProcessorConfigError for what is not cut into tiles evenly."""
    pairs = (
        [tuple(pair) if isinstance(pair, list | tuple) else () for pair in value]
        if isinstance(value, list | tuple)
        else []
    )
    good = [
        pair
        for pair in pairs
        if len(pair) == 2 and all(isinstance(each, int) and each % side == 0 < each for each in pair)
    ]
    if not good or len(good) != len(pairs):
        raise ProcessorConfigError(
            f"preprocessor_config.json: image_grid_pinpoints must be pairs of multiples of {side}"
        )
    return tuple((height, width) for height, width in good)
