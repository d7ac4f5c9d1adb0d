"""InternVL 2.5 and 3: the grid of tiles whose shape is closest, and a thumbnail."""

from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Image, Resampling

from gateway.multimodal.features import Features, features
from gateway.multimodal.levels import Levels
from gateway.multimodal.settings import IMAGENET_MEAN, IMAGENET_STD, ProcessorFiles, Settings, whole
from gateway.multimodal.tiles import cut, resized

DEFAULTS = {
    "size": {"height": 448, "width": 448},
    "min_patches": 1,
    "max_patches": 12,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "resample": Resampling.BICUBIC,
}
PATCH = 14
DOWNSAMPLE_RATIO = 0.5


@dataclass(frozen=True)
class InternVL:
    name: str
    levels: Levels
    resampling: Resampling
    side: int
    grids: tuple[tuple[int, int], ...]
    """(columns, rows) of tiles, those of fewer tiles first."""
    tokens: int
    """Of a tile."""
    placeholder: str = "<IMG_CONTEXT>"

    @classmethod
    def of(cls, name: str, files: ProcessorFiles) -> "InternVL":
        settings = Settings(files, DEFAULTS)
        side = settings.side("size")
        # The published remote code keeps its number of tiles in config.json.
        most = files.model.get("max_dynamic_patch") or settings.get("max_patches")
        tiles = range(settings.integer("min_patches"), whole(most, "max_patches") + 1)
        return cls(name, settings.levels(), settings.resampling(), side, grids_of(tiles), tokens_of_tile(files, side))

    def preprocess(self, image: Image, detail: str = "auto") -> Features:
        if detail == "low" and len(self.grids) > 1:
            return replace(self, grids=((1, 1),)).preprocess(image)
        columns, rows = self.grid(image.height, image.width)
        cells = rows * columns
        tiles = cells + (cells > 1)
        pixels = np.empty((tiles, 3, self.side, self.side), np.float32)
        cut(resized(image, rows * self.side, columns * self.side, self.resampling), self.levels, pixels[:cells])
        if tiles > cells:
            cut(resized(image, self.side, self.side, self.resampling), self.levels, pixels[cells:])
        expansion = [("<img>", 1), (self.placeholder, self.tokens * tiles), ("</img>", 1)]
        return features(expansion, self.placeholder, pixel_values=pixels, num_patches=np.array([tiles], np.int64))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(columns, rows) of tiles. Between grids of one shape the larger one is taken for an image that fills more
        than half of it."""
        aspect, area = width / height, width * height
        best, best_difference = (1, 1), float("inf")
        for columns, rows in self.grids:
            difference = abs(aspect - columns / rows)
            fills = area > 0.5 * self.side * self.side * columns * rows
            if difference < best_difference or (difference == best_difference and fills):
                best, best_difference = (columns, rows), difference
        return best


def grids_of(tiles: range) -> tuple[tuple[int, int], ...]:
    sides = range(1, tiles.stop)
    return tuple(
        sorted(
            ((columns, rows) for columns in sides for rows in sides if columns * rows in tiles),
            key=lambda grid: grid[0] * grid[1],
        )
    )


def tokens_of_tile(files: ProcessorFiles, side: int) -> int:
    """As stated, or by the sizes of the vision tower."""
    stated = files.processor.get("image_seq_length") or files.model.get("image_seq_length")
    if stated:
        return whole(stated, "image_seq_length")
    patch = files.vision.get("patch_size") or PATCH
    ratio = float(files.model.get("downsample_ratio") or DOWNSAMPLE_RATIO)
    return int((side // (patch[0] if isinstance(patch, list) else patch)) ** 2 * ratio**2)
