"""Following an engine's prefix cache by its own events.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import grpc
import grpc.aio

from engine_adapters import codec
from engine_adapters.base import KvEvent
from engine_adapters.trtllm.calls import describe
from engine_adapters.trtllm.openengine import messages, translation
from engine_adapters.trtllm.openengine.messages import KvEventBatch, SubscribeKvEventsRequest, SubscribeKvEventsResponse

AGAIN_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Between the end of a subscription and the next one: longer each time that the one before brought nothing."""
log = logging.getLogger(__name__)
OnKvEvents: TypeAlias = "Callable[[Sequence[KvEvent], bool], None]"


class KvSubscription:
    """Tells `on_kv_events(events, is_first)` how the prefix cache changes.

    `is_first` means that what was known is void: the subscription is new, and begins with what is cached already. A
    batch that was missed ("kv_gap") or cannot be read ("malformed_frame") is counted, and ends the subscription.
    """

    def __init__(self, channel: grpc.aio.Channel, count_fault: Callable[[str], None], on_kv_events: OnKvEvents) -> None:
        self._subscribe: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            messages.CONTROL_SUBSCRIBE_KV_EVENTS
        )
        self._count_fault = count_fault
        self._on_kv_events = on_kv_events
        self._failures = 0
        self._call = self._open()

    @property
    def is_refused(self) -> bool:
        """Whether the engine has already said that it does not tell."""
        return self._call.done()

    async def run(self) -> None:
        """Follow the events; returns only when the engine does not tell of them."""
        try:
            while await self._follow():
                await asyncio.sleep(AGAIN_SECONDS[min(self._failures, len(AGAIN_SECONDS) - 1)])
                self._failures += 1
                self._call = self._open()
        finally:
            self.close()

    def close(self) -> None:
        self._call.cancel()

    def _open(self) -> "grpc.aio.UnaryStreamCall[bytes, bytes]":
        return self._subscribe(codec.encode(SubscribeKvEventsRequest(include_snapshot=True)))

    async def _follow(self) -> bool:
        """Read one subscription to its end; False when there is no sense in another."""
        numbers: dict[int, int] = {}
        newest = 0
        call = self._call
        try:
            while isinstance(data := await call.read(), bytes):
                response = codec.decode(SubscribeKvEventsResponse, data)
                if response.error is not None:
                    log.warning("the engine stopped telling of its prefix cache: %s", response.error.message)
                    return True
                batch = response.batch or KvEventBatch()
                before = numbers.get(batch.data_parallel_rank)
                # Some engines number the batches of each rank, and some all of them.
                if before is not None and batch.sequence_number not in (before + 1, newest + 1):
                    self._count_fault("kv_gap")
                    return True
                self._tell(batch, is_first=not numbers)
                numbers[batch.data_parallel_rank] = newest = batch.sequence_number
        except grpc.aio.AioRpcError as error:
            log.info("no events of the prefix cache: %s", describe(error))
            return error.code() is not grpc.StatusCode.UNIMPLEMENTED
        except ValueError:
            self._count_fault("malformed_frame")
        finally:
            call.cancel()
        return True

    def _tell(self, batch: KvEventBatch, is_first: bool) -> None:
        self._failures = 0
        events = [translation.as_kv_event(event, batch.data_parallel_rank) for event in batch.events]
        self._on_kv_events([event for event in events if event is not None], is_first)
