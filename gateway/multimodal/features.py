"""What a model gets of one image."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gateway.errors import BadImage

__all__ = ["BadImage", "Features"]


@dataclass(frozen=True, slots=True)
class Features:
    """One image, ready for a model. Its tensors are never written to again, so all threads may share them.

    `tensors` are by the field names of the published processor (`pixel_values`, `image_grid_thw`, `image_sizes`,
    `aspect_ratios`), read-only and C-contiguous, as that processor returns them for a list of this one image.
    `num_tokens` are the image's tokens in the prompt, markers between them included. `expansion` replaces the one
    placeholder in the rendered prompt: runs of (text of a special token, how many), in order.
    """

    tensors: Mapping[str, np.ndarray]
    num_tokens: int
    expansion: tuple[tuple[str, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())
