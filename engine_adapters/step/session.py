"""One gateway's Attach as the executor keeps it: its live streams, and what it has not been sent yet.

Threads: none of its own; the server's event loop.
"""

import asyncio
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, islice

from engine_adapters.base import Finish, KvEvent, Load, Logprobs
from engine_adapters.step import messages, translation

KV_EVENTS_PER_FRAME = 64
"""About a millisecond for who reads them: tokens must not wait for a large snapshot."""


class Stream:
    """One answer to a request of one gateway: the key under which an engine knows it."""

    __slots__ = ("deadline", "is_live", "request_id", "session", "stream_id")

    def __init__(self, session: "Session", stream_id: int, request_id: str) -> None:
        self.session = session
        self.stream_id = stream_id
        self.request_id = request_id
        self.is_live = True
        self.deadline: asyncio.TimerHandle | None = None

    def kill(self) -> None:
        """Nothing is sent for it any more."""
        self.is_live = False
        if self.deadline is not None:
            self.deadline.cancel()

    def __repr__(self) -> str:
        return f"<Stream {self.stream_id} {self.request_id!r}{'' if self.is_live else ' ended'}>"


class Session:
    """One gateway's Attach: its live streams and what it has not been sent yet.

    `kv_snapshot` are the KV events that it is to be told first. `objection` is what makes the session end: something
    the gateway sent that cannot be read.
    """

    def __init__(self, peer: str, kv_snapshot: Iterable[KvEvent] = (), reads_memory: bool = False) -> None:
        self.peer = peer
        self.reads_memory = reads_memory
        self.streams: dict[int, Stream] = {}
        self.token_ids: dict[int, Sequence[int]] = {}
        self.finished: list[messages.Finished] = []
        self.logprobs: dict[int, Logprobs] = {}
        self.kv_events: list[KvEvent] = []
        self._kv_snapshot = iter(kv_snapshot)
        self._kv_events_sent = 0
        self.objection = ""
        self.wake = asyncio.Event()
        self.writer: asyncio.Task[None] | None = None
        self.writing_since: float | None = None
        self.is_quiet = True
        self.is_ending = False

    @property
    def has_news(self) -> bool:
        return bool(self.token_ids or self.finished or self.kv_events)

    def end(self, stream: Stream, finish: Finish) -> None:
        stream.kill()
        del self.streams[stream.stream_id]
        self.finished.append(translation.finished_message(stream.stream_id, finish))

    def add_logprobs(self, stream_id: int, logprobs: Logprobs) -> None:
        """Of the tokens that were just added to the stream's."""
        gathered = self.logprobs.get(stream_id)
        if gathered is not None:
            logprobs = Logprobs(
                [*gathered.logprobs, *logprobs.logprobs], [*gathered.alternatives, *logprobs.alternatives]
            )
        self.logprobs[stream_id] = logprobs

    def next_frame(self, step: int, load: Load) -> messages.StepFrame:
        """A frame with everything the gateway has not been sent yet."""
        gathered, self.token_ids = self.token_ids, {}
        finished, self.finished = self.finished, []
        logprobs, self.logprobs = self.logprobs, {}
        kv_events = self._next_kv_events()
        self.is_quiet = False
        token_ids = [*chain.from_iterable(gathered.values())]
        has_one_each = len(token_ids) == len(gathered)
        return messages.StepFrame(
            step=step,
            stream_ids=array("I", [*gathered]).tobytes(),
            counts=b"" if has_one_each else array("I", [len(ids) for ids in gathered.values()]).tobytes(),
            token_ids=array("I", token_ids).tobytes(),
            finished=finished,
            load=translation.load_message(load),
            logprobs=[translation.logprobs_message(*each) for each in logprobs.items()],
            kv_events=[translation.kv_event_message(event) for event in kv_events],
            kv_event_number=self._kv_events_sent if kv_events else 0,
        )

    def _next_kv_events(self) -> list[KvEvent]:
        """Those of the snapshot come first; what is too much for one frame is left for the next."""
        events = [*islice(self._kv_snapshot, KV_EVENTS_PER_FRAME)]
        if self.kv_events and len(events) < KV_EVENTS_PER_FRAME:
            count = KV_EVENTS_PER_FRAME - len(events)
            events += self.kv_events[:count]
            del self.kv_events[:count]
        if len(events) == KV_EVENTS_PER_FRAME:
            self.wake.set()
        self._kv_events_sent += len(events)
        return events
