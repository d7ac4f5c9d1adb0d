"""A model's input of one image as the bytes that go to engines: the tensors one behind the other, in shared memory.

What is large is written where executors on this host can map it, so that it is copied once, here, and sent nowhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine_adapters.image import MemoryFile, Payload, Tensor, aligned
from engine_adapters.step.memory import share
from engine_adapters.step.outgoing import INLINE_BYTES
from gateway.multimodal.features import Features

BLOCK = 1 << 16
"""Values that are converted at a time: they stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Read-only. `token_ids` (little-endian u32) stand for the image in a prompt."""

    tensors: tuple[Tensor, ...]
    payload: Payload
    memory: MemoryFile | None
    token_ids: bytes

    @property
    def nbytes(self) -> int:
        return len(self.payload) + len(self.token_ids) + 500

    @property
    def keeps_file(self) -> bool:
        return self.memory is not None


def pack(features: Features, token_ids: bytes, dtype: str = "") -> Packed:
    """`dtype` ("float16", "bfloat16") is for tensors that are float32."""
    arrays = [*features.tensors.values()]
    tensors = tuple(
        Tensor(name, dtype if dtype and array.dtype == np.float32 else array.dtype.name, array.shape)
        for name, array in features.tensors.items()
    )
    starts, size = [], 0
    for tensor in tensors:
        starts.append(aligned(size))
        size = starts[-1] + tensor.nbytes
    view, memory = allocate(size)
    for tensor, start, array in zip(tensors, starts, arrays, strict=True):
        write(array, tensor.dtype, view[start : start + tensor.nbytes])
    return Packed(tensors, view.toreadonly(), memory, token_ids)


def allocate(size: int) -> tuple[memoryview, MemoryFile | None]:
    if size > INLINE_BYTES:
        try:
            return share(size)
        except (OSError, AttributeError):
            pass  # too many files are open, or this system has no memfds: then it is sent
    return memoryview(bytearray(size)), None


def write(array: NDArray[np.generic], dtype: str, target: memoryview) -> None:
    """The values as little-endian `dtype`, C order."""
    if dtype != "bfloat16":
        np.copyto(np.frombuffer(target, dtype).reshape(array.shape), array, casting="same_kind")
        return
    flat = array.reshape(-1)
    out = np.frombuffer(target, np.uint16)
    for part in blocks(flat.size):
        out[part] = as_bfloat16(flat[part])


def blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def as_bfloat16(values: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Of finite float32 values the upper halves, rounded to the nearest, ties to even, as torch does."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
