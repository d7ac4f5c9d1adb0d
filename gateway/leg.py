"""A leg: one submission, or one phase of it, on one worker.

Threads: made and used on the HTTP loop of its request.
"""

from dataclasses import replace

from engine_adapters.base import Submission
from gateway.http_loop import HttpLoop
from gateway.routing import Lease
from gateway.streams import Stream, Take


class Leg:
    """A lease and the stream that runs under it. `leave` it, once, however it ends."""

    def __init__(self, lease: Lease, loop: HttpLoop) -> None:
        self.lease = lease
        self._loop = loop
        self.phase = ""
        self._stream: Stream | None = None

    def start(self, submission: Submission) -> None:
        self.phase = submission.phase
        self._stream = Stream(self._loop.streams, submission.request_id, submission.n)
        if submission.dp_rank != self.lease.dp_rank:
            submission = replace(submission, dp_rank=self.lease.dp_rank)
        self.lease.worker.session.start(self._stream, submission, self.lease, self._loop.outbox)

    async def pump(self, take: Take) -> bool:
        """`Stream.pump`."""
        assert self._stream is not None, "a leg is started before it is pumped"
        return await self._stream.pump(take)

    def drop(self, index: int) -> None:
        """Stop one of the answers."""
        if self._stream is not None:
            self.lease.worker.session.stop([self._stream.choices[index]], self._loop.outbox)
            self._stream.forget(index)

    def leave(self) -> None:
        """Abort what still runs and give the lease back."""
        if self._stream is not None and (unfinished := self._stream.close()):
            self.lease.worker.session.stop(unfinished, self._loop.outbox)
        self.lease.release()
