"""One gateway's Attach as the executor keeps it: its live streams, and what it has not been sent yet.

Threads: none of its own; the server's event loop.
"""

import asyncio
from array import array
from itertools import chain

from engine_adapters.base import Finish, Load
from engine_adapters.step import messages


class Stream:
    """One request of one gateway: the key under which an engine knows it."""

    __slots__ = ("is_live", "request_id", "session", "stream_id")

    def __init__(self, session: "Session", stream_id: int, request_id: str) -> None:
        self.session = session
        self.stream_id = stream_id
        self.request_id = request_id
        self.is_live = True

    def __repr__(self) -> str:
        return f"<Stream {self.stream_id} {self.request_id!r}{'' if self.is_live else ' ended'}>"


class Session:
    """One gateway's Attach: its live streams and what it has not been sent yet."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.streams: dict[int, Stream] = {}
        self.token_ids: dict[int, list[int]] = {}
        self.finished: list[messages.Finished] = []
        self.wake = asyncio.Event()
        self.writer: asyncio.Task[None] | None = None
        self.writing_since: float | None = None
        self.is_quiet = True
        self.is_ending = False

    @property
    def has_news(self) -> bool:
        return bool(self.token_ids or self.finished)

    def end(self, stream: Stream, finish: Finish) -> None:
        stream.is_live = False
        del self.streams[stream.stream_id]
        self.finished.append(
            messages.Finished(
                stream_id=stream.stream_id,
                reason=finish.reason,
                matched_stop=finish.matched_stop,
                prompt_tokens=finish.prompt_tokens,
                cached_tokens=finish.cached_tokens,
                completion_tokens=finish.completion_tokens,
                error=finish.error,
                retryable=finish.retryable,
            )
        )

    def next_frame(self, step: int, load: Load) -> messages.StepFrame:
        """A frame with everything the gateway has not been sent yet."""
        gathered, self.token_ids = self.token_ids, {}
        finished, self.finished = self.finished, []
        self.is_quiet = False
        token_ids = [*chain.from_iterable(gathered.values())]
        has_one_each = len(token_ids) == len(gathered)
        return messages.StepFrame(
            step=step,
            stream_ids=array("I", [*gathered]).tobytes(),
            counts=b"" if has_one_each else array("I", [len(ids) for ids in gathered.values()]).tobytes(),
            token_ids=array("I", token_ids).tobytes(),
            finished=finished,
            load=messages.Load(
                running=load.running,
                waiting=load.waiting,
                kv_tokens_used=load.kv_tokens_used,
                kv_tokens_total=load.kv_tokens_total,
                tokens_per_second=load.tokens_per_second,
            ),
        )
