"""Following an engine's prefix cache by its own events.

Threads: none of its own. Everything here runs on the event loop of the gateway's engine thread.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

from engine_adapters import codec
from engine_adapters.base import KvEvent
from engine_adapters.http2 import CallFailed, Connection
from engine_adapters.trtllm.openengine import messages, translation
from engine_adapters.trtllm.openengine.messages import KvEventBatch, SubscribeKvEventsRequest, SubscribeKvEventsResponse

AGAIN_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Between the end of a subscription and the next one: longer each time that the one before brought nothing."""
log = logging.getLogger(__name__)
OnKvEvents: TypeAlias = "Callable[[Sequence[KvEvent], bool], None]"


class KvSubscription:
    """Tells `on_kv_events(events, is_first)` how the prefix cache changes. It begins when it is made.

    `is_first` means that what was known is void: the subscription is new, and begins with what is cached already. A
    batch that was missed ("kv_gap") or cannot be read ("malformed_frame") is counted, and ends the subscription.
    """

    def __init__(self, connection: Connection, count_fault: Callable[[str], None], on_kv_events: OnKvEvents) -> None:
        self._connection = connection
        self._count_fault = count_fault
        self._on_kv_events = on_kv_events
        self._numbers: dict[int, int] = {}
        self._newest = 0
        self._failures = 0
        self._is_over = asyncio.Event()
        self.is_refused = False
        """The engine does not tell."""
        self._subscribe()

    async def run(self) -> None:
        """Subscribe again whenever it ends; returns only when the engine does not tell."""
        while True:
            await self._is_over.wait()
            if self.is_refused:
                return
            await asyncio.sleep(AGAIN_SECONDS[min(self._failures, len(AGAIN_SECONDS) - 1)])
            self._failures += 1
            self._subscribe()

    def received(self, message: bytes) -> None:
        try:
            response = codec.decode(SubscribeKvEventsResponse, message)
            if response.error is not None:
                self._stop(f"the engine stopped telling of its prefix cache: {response.error.message}")
            else:
                self._take(response.batch or KvEventBatch())
        except ValueError as error:
            self._count_fault("malformed_frame")
            self._stop(f"the engine told what makes no sense of its prefix cache: {error}")

    def ended(self, failure: "CallFailed | None") -> None:
        self.is_refused = failure is not None and failure.code == "UNIMPLEMENTED"
        self._is_over.set()
        log.info("no events of the prefix cache: %s", failure or "the engine ended them")

    def _subscribe(self) -> None:
        self._numbers.clear()
        self._is_over.clear()
        request = codec.encode(SubscribeKvEventsRequest(include_snapshot=True))
        self._connection.call(messages.CONTROL_SUBSCRIBE_KV_EVENTS, request, self)

    def _take(self, batch: KvEventBatch) -> None:
        rank, number = batch.data_parallel_rank, batch.sequence_number
        before = self._numbers.get(rank)
        # Some engines number the batches of each rank, and some all of them.
        if before is not None and number not in (before + 1, self._newest + 1):
            self._count_fault("kv_gap")
            self._stop(f"events of the prefix cache are missing before number {number}")
            return
        events = [translation.as_kv_event(event, rank) for event in batch.events]
        is_first = not self._numbers
        self._numbers[rank] = self._newest = number
        self._failures = 0
        self._on_kv_events([event for event in events if event is not None], is_first)

    def _stop(self, reason: str) -> None:
        log.warning("%s", reason)
        self._connection.cancel(self)
        self._is_over.set()
