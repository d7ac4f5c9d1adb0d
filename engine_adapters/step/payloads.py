"""Where an executor gets the payloads of images from: the Submit itself, what was uploaded before it, shared memory.

Threads: none of its own; the server's event loop.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine_adapters.image import Image, MemoryFile, Payload, Tensor
from engine_adapters.step import memory, messages

UPLOAD_BUDGET = 4 << 30
HOLD_SECONDS = 30.0
"""A payload stays so long after it was last asked for."""


class PayloadMissing(Exception):
    """A payload is not here (any more); it may be sent again."""


class NoRoom(Exception):
    """All that has been uploaded is waited for just now."""


@dataclass
class Upload:
    """The first `received` bytes of `data` have come."""

    data: bytearray
    received: int
    used_at: float


class Uploads:
    """Payloads by name, `budget` bytes at most; of those that nobody has asked for lately the oldest goes first."""

    def __init__(self, budget: int = UPLOAD_BUDGET, now: "Callable[[], float]" = time.monotonic) -> None:
        self._budget = budget
        self._now = now
        self._uploads: dict[bytes, Upload] = {}
        self.bytes = 0

    def receive(self, request: messages.UploadRequest) -> int:
        """Take a piece; returns how much is here. Raises ValueError for what makes no sense, and NoRoom."""
        if not request.name or not 0 < request.size <= self._budget:
            raise ValueError(f"an upload needs a name, and a size up to {self._budget}, not {request.size}")
        upload = self._uploads.pop(request.name, None) or self._begin(request.size)
        self._uploads[request.name] = upload
        upload.used_at = self._now()
        end = request.offset + len(request.data)
        if end > len(upload.data) or request.size != len(upload.data):
            raise ValueError(f"a piece from {request.offset} to {end}, of an upload of {len(upload.data)} bytes")
        if request.offset == upload.received:
            upload.data[request.offset : end] = request.data
            upload.received = end
        return upload.received

    def take(self, name: bytes) -> memoryview:
        """A whole payload; raises PayloadMissing."""
        upload = self._uploads.get(name)
        if upload is None or upload.received < len(upload.data):
            raise PayloadMissing("an image that was uploaded is not here any more")
        self._uploads[name] = self._uploads.pop(name)
        upload.used_at = self._now()
        return memoryview(upload.data).toreadonly()

    def _begin(self, size: int) -> Upload:
        limit = self._now() - HOLD_SECONDS
        for name, upload in [*self._uploads.items()]:
            if self.bytes + size <= self._budget or upload.used_at > limit:
                break
            self.bytes -= len(upload.data)
            del self._uploads[name]
        if self.bytes + size > self._budget:
            raise NoRoom(f"{self.bytes} of {self._budget} bytes of uploads are in use")
        self.bytes += size
        return Upload(bytearray(size), 0, self._now())


def as_images(submitted: "Sequence[messages.Image]", uploads: Uploads) -> "tuple[Image, ...]":
    """With their payloads. Raises PayloadMissing, and OSError where shared memory cannot be read."""
    images = []
    for message in submitted:
        tensors = tuple(Tensor(each.name, each.dtype, tuple(each.shape)) for each in message.tensors)
        payload = _payload(message, uploads)
        image = Image(message.hash, message.offset, message.length, message.placeholder, tensors)
        images.append(_with(image, payload))
    return tuple(images)


def _with(image: Image, payload: Payload) -> Image:
    what = (image.hash, image.offset, image.length, image.placeholder, image.tensors)
    return Image(*what, payload=payload) if image.tensors else Image(*what, encoded=bytes(payload))


def _payload(message: messages.Image, uploads: Uploads) -> Payload:
    if message.memory is not None:
        file = message.memory
        return memory.read(MemoryFile(file.pid, file.fd, file.inode, file.size))
    return uploads.take(message.uploaded) if message.uploaded else message.payload
