"""How a gateway sends the payloads of images: small ones in the Submit, large ones by shared memory or ahead of it.

Threads: none of its own; the event loop of the gateway's engine thread.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

from engine_adapters.image import Image, Payload
from engine_adapters.step import messages

INLINE_BYTES = 64 << 10
"""A payload up to this size goes into the Submit."""
PIECE_BYTES = 1 << 20

Ask: TypeAlias = "Callable[[messages.UploadRequest], Awaitable[messages.UploadReply]]"


class UploadFailed(Exception):
    """The executor did not take a payload; the message says why."""


class Uploader:
    """Sends payloads; who asks for one that is under way waits for that."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._under_way: dict[bytes, asyncio.Task[None]] = {}

    async def send(self, payloads: "Sequence[tuple[bytes, Payload]]") -> None:
        """(name, payload) of each. Raises UploadFailed, and what `ask` raises."""
        for name, payload in payloads:
            task = self._under_way.get(name)
            if task is None:
                task = self._under_way[name] = asyncio.ensure_future(self._send(name, memoryview(payload)))
                task.add_done_callback(partial(self._note_end, name))
            # One who is aborted does not take the upload from the others.
            await asyncio.shield(task)

    def _note_end(self, name: bytes, _: "asyncio.Task[None]") -> None:
        del self._under_way[name]

    async def _send(self, name: bytes, payload: memoryview) -> None:
        size, received = len(payload), 0
        reply = await self._ask(messages.UploadRequest(name, size))
        while (received := reply.received) < size:
            piece = bytes(payload[received : received + PIECE_BYTES])
            reply = await self._ask(messages.UploadRequest(name, size, received, piece))
            if reply.received <= received:
                raise UploadFailed(f"of {size} bytes the executor keeps taking only {reply.received}")


def image_messages(
    images: "Sequence[Image]", reads_memory: bool
) -> "tuple[list[messages.Image], list[tuple[bytes, Payload]]]":
    """The images as a Submit has them, and the (name, payload)s to upload before."""
    result, uploads = [], []
    for image in images:
        payload = image.payload if image.tensors else image.encoded
        message = messages.Image(
            hash=image.hash,
            offset=image.offset,
            length=image.length,
            placeholder=image.placeholder,
            tensors=[messages.Tensor(each.name, each.dtype, [*each.shape]) for each in image.tensors],
        )
        result.append(message)
        if image.memory is not None and image.tensors and reads_memory:
            file = image.memory
            message.memory = messages.MemoryFile(file.pid, file.fd, file.inode, file.size)
        elif len(payload) <= INLINE_BYTES:
            message.payload = bytes(payload)
        else:
            message.uploaded = upload_name(image)
            uploads.append((message.uploaded, payload))
    return result, uploads


def upload_name(image: Image) -> bytes:
    """Another one for the file and for tensors of another type."""
    return hashlib.blake2b(image.hash + repr(image.tensors).encode(), digest_size=32).digest()
