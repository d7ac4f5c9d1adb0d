"""From the 256 levels of a channel to the numbers a model reads, in one pass and in the published processors' bits.

Those compute `x = f32(f64(level) * rescale_factor)`, then `(x - f32(mean)) / f32(std)`: copies of the whole image in
float64 and float32. A channel has only 256 levels, so the result is a table of 256 numbers, and every way to it that
gives this table gives the same bits on any image. Dividing by 255 in float32 does, for the usual factor: three
vectorised operations, over pieces that stay in the processor's cache, are twice as fast as looking each level up
(np.take widens its indices to 8 bytes). What gives another table is looked up.
"""

from collections.abc import Sequence

import numpy as np

PIECE_BYTES = 256 * 1024
"""Of float32 at a time: fits a core's second-level cache with its source and its target."""
LARGEST = np.float32(255)


class Levels:
    """The numbers of 3 channels of 256 levels. Constant after it is made: threads share it."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        rescale_factor: float = 1 / 255,
        table: np.ndarray | None = None,
    ) -> None:
        """`table`, float32 [3, 256], is for models that compute the numbers in another way."""
        levels = np.arange(256, dtype=np.uint8)
        self._mean = np.array(mean, np.float32).reshape(3, 1, 1)
        self._std = np.array(std, np.float32).reshape(3, 1, 1)
        rescaled = (levels.astype(np.float64) * rescale_factor).astype(np.float32)
        self.table = ((rescaled - self._mean) / self._std)[:, 0] if table is None else table
        computed = np.empty((3, 1, 256), np.float32)
        self._compute(np.broadcast_to(levels, (3, 1, 256)), computed)
        self._is_computed = np.array_equal(computed[:, 0], self.table)

    def normalize(self, planes: np.ndarray, out: np.ndarray) -> None:
        """From uint8 [3, height, width] to float32 of the same shape; either may be a view with any strides."""
        convert = self._compute if self._is_computed else self._look_up
        step = max(1, PIECE_BYTES // (planes.shape[0] * planes.shape[2] * out.itemsize))
        for top in range(0, planes.shape[1], step):
            convert(planes[:, top : top + step], out[:, top : top + step])

    def _compute(self, planes: np.ndarray, out: np.ndarray) -> None:
        piece = np.divide(planes, LARGEST)
        np.subtract(piece, self._mean, out=piece)
        np.divide(piece, self._std, out=out)

    def _look_up(self, planes: np.ndarray, out: np.ndarray) -> None:
        for channel, levels in enumerate(planes):
            out[channel] = np.take(self.table[channel], levels, mode="clip")
