"""What a model gets of one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from gateway.errors import BadRequest


class BadImage(BadRequest):
    """The image cannot be loaded, or not be preprocessed for this model. `reason` is one word for the metrics:
    `format`, `broken`, `too_large` or `shape`."""

    default_code = "invalid_image"

    def __init__(self, message: str, *, reason: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Features:
    """One image, ready for a model. Its tensors are never written to again, so all threads may share them.

    `tensors` are by the field names of the published processor (`pixel_values`, `image_grid_thw`, `image_sizes`,
    `aspect_ratios`), read-only and C-contiguous, as that processor returns them for a list of this one image.
    `num_tokens` are the tokens that stand for its pixels in the prompt, each to become one embedding. `expansion`
    replaces the one placeholder in the rendered prompt: runs of (text of a special token, how many), in order, with the
    markers between rows and tiles.
    """

    tensors: Mapping[str, np.ndarray]
    num_tokens: int
    expansion: tuple[tuple[str, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def features(expansion: Sequence[tuple[str, int]], token: str, **tensors: np.ndarray) -> Features:
    """Seals the tensors; `token` is the one whose places become embeddings."""
    for tensor in tensors.values():
        tensor.flags.writeable = False
    count = sum(count for text, count in expansion if text == token)
    return Features(MappingProxyType(tensors), count, tuple(expansion))


def integers(*values: Sequence[int]) -> np.ndarray:
    """An int64 tensor, as the published processors make of lists."""
    return np.array(values, np.int64)
