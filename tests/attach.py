"""A gateway of a few lines: the far end of a step stream for tests of executors."""

from array import array
from itertools import islice

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.step import PROTOCOL_VERSION, messages
from engine_adapters.step.messages import ClientFrame, Finished, StepFrame


class Gateway:
    """One Attach to the executor at an address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(
            address,
            options=[("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
        )
        self.call = self.channel.stream_stream(messages.EXECUTOR_ATTACH)()

    async def greet(self) -> StepFrame:
        await self.send(ClientFrame(protocol_version=PROTOCOL_VERSION))
        return await self.read()

    async def leave(self) -> None:
        self.call.cancel()
        await self.channel.close()

    async def send(self, frame: ClientFrame | bytes) -> None:
        await self.call.write(frame if isinstance(frame, bytes) else codec.encode(frame))

    async def read(self) -> StepFrame:
        return codec.decode(StepFrame, await self.call.read())

    async def read_news(self) -> StepFrame:
        """The next frame with tokens, ends or KV events in it."""
        while True:
            frame = await self.read()
            if frame.stream_ids or frame.finished or frame.kv_events:
                return frame

    async def read_end(self) -> Finished:
        (finished,) = (await self.read_news()).finished
        return finished


def u32(*values: int) -> bytes:
    return array("I", values).tobytes()


def u64(*values: int) -> bytes:
    return array("Q", values).tobytes()


def f32(*values: float) -> bytes:
    return array("f", values).tobytes()


def columns(frame: StepFrame) -> dict[int, list[int]]:
    """The tokens of each stream in a frame."""
    stream_ids = array("I", frame.stream_ids)
    counts = array("I", frame.counts) if frame.counts else [1] * len(stream_ids)
    token_ids = iter(array("I", frame.token_ids))
    return {stream_id: [*islice(token_ids, count)] for stream_id, count in zip(stream_ids, counts, strict=True)}
