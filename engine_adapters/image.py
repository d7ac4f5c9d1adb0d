"""An image of a prompt, as tensors or as the file."""

import math
import mmap
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a model's published processor calls it, and how its bytes are to be read: little-endian, C order.

    `dtype` is numpy's name, or "bfloat16".
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1}
TENSOR_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A memfd that is open in the process `pid`; what is found under its number counts only with its `inode`. In that
    process `owner` keeps it open."""

    pid: int
    fd: int
    inode: int
    size: int
    owner: object = field(default=None, repr=False, compare=False)


Payload: TypeAlias = "bytes | memoryview | mmap.mmap"


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a prompt. `hash` is 32 bytes, and the same for the same picture.

    Its tokens stand in `token_ids` from `offset` on, `length` of them; with `placeholder`, one token, in their place
    the prompt is as the chat template wrote it. `payload` holds the bytes of `tensors`, each from a multiple of
    TENSOR_ALIGNMENT on; `memory` is where it is, if others can read it there. `encoded` is the file. An engine is given
    one of the two: tensors only if it has the feature "images.tensors", else the file ("images.encoded").
    """

    hash: bytes
    offset: int
    length: int
    placeholder: int
    tensors: tuple[Tensor, ...] = ()
    payload: Payload = b""
    memory: MemoryFile | None = None
    encoded: bytes = b""

    def views(self) -> "dict[str, tuple[Tensor, memoryview]]":
        """The tensors by name, with their bytes in the payload; raises ValueError when that has not their size."""
        found: dict[str, tuple[Tensor, memoryview]] = {}
        view, start = memoryview(self.payload), 0
        for tensor in self.tensors:
            found[tensor.name] = tensor, view[start : start + tensor.nbytes]
            end = start + tensor.nbytes
            start = aligned(end)
            if end > len(view):
                raise ValueError(f"the payload has {len(view)} bytes, too few for {tensor}")
        return found


def aligned(offset: int) -> int:
    """Where the next tensor of a payload may begin."""
    return -(-offset // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
