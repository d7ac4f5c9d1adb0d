"""Drives the scheduler by the clock and serves what it brings over the wire of a harness.

Threads: none of its own. Everything here runs on one event loop, the one that `run` is awaited on.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from engine_adapters.base import EngineInfo, KvEvent, Load, Logprobs, Submission
from engine_adapters.image import Image
from engine_adapters.simulator.logprobs import LogprobSource
from engine_adapters.simulator.scheduler import Scheduler
from engine_adapters.step.meter import TokenMeter
from engine_adapters.step.server import Output
from engine_adapters.step.session import Stream

log = logging.getLogger("simulator")
LARGEST_LAG = 0.05
"""An engine that fell behind makes up for no more than this: it slows down instead of bursting."""
FRAME_WAIT = 0.05
"""At speed 0, how long a step waits for its frame to leave."""


@dataclass
class EngineClock:
    """Engine time: `speed` seconds of it pass in a second; at speed 0 it stands still unless it is moved on."""

    speed: float
    now: float = 0.0

    def start_of_step(self) -> float:
        """When the next step begins: where the last one ended, unless that is long ago."""
        self.now = max(self.now, time.monotonic() * self.speed - LARGEST_LAG * self.speed)
        return self.now

    def catch_up(self) -> None:
        """The engine was idle, so nothing is late."""
        self.now = max(self.now, time.monotonic() * self.speed)

    def seconds_until(self, moment: float) -> float:
        return moment / self.speed - time.monotonic() if self.speed else 0.0


class Harness(Protocol):
    """What serves an engine: a `StepServer`, or a `TrtllmServer`."""

    def emit(self, step: int, outputs: Iterable[Output], logprobs: "Mapping[Stream, Logprobs]", /) -> None:
        """Send what an engine step brought."""

    def emit_kv_events(self, events: Iterable[KvEvent], /) -> None:
        """Tell how the prefix cache changed."""

    async def frames_taken(self, timeout: float) -> None:
        """Wait until all that was emitted is on its way, but no longer than `timeout` seconds."""


def described(image: Image) -> "dict[str, Any]":
    """An image as the log tells of it; `sha256` is that of each tensor's bytes, or the file's."""
    tensors = [
        {"name": name, "dtype": tensor.dtype, "shape": tensor.shape, "sha256": hashlib.sha256(view).hexdigest()}
        for name, (tensor, view) in image.views().items()
    ]
    encoded = hashlib.sha256(image.encoded).hexdigest() if image.encoded else ""
    place = {"offset": image.offset, "length": image.length, "placeholder": image.placeholder}
    return {"hash": image.hash.hex(), **place, "tensors": tensors, "encoded": encoded}


class SimulatedEngine:
    """A `StepEngine`. With `ignore_eos` no stream ends on the model's end of sequence, whatever its request says."""

    def __init__(
        self,
        info: EngineInfo,
        scheduler: Scheduler[Stream],
        logprobs: LogprobSource,
        *,
        speed: float,
        ignore_eos: bool,
    ) -> None:
        self._info = info
        self._scheduler = scheduler
        self._logprobs = logprobs
        self._clock = EngineClock(speed)
        self._ignore_eos = ignore_eos
        self.logs_images = False
        self._meter = TokenMeter()
        self._something_changed = asyncio.Event()
        self._server: Harness | None = None

    def info(self) -> EngineInfo:
        return self._info

    def health(self) -> str:
        return ""

    def load(self) -> Load:
        ranks = [rank.load for rank in self._scheduler.ranks]
        return Load(
            running=sum(rank.running for rank in ranks),
            waiting=sum(rank.waiting for rank in ranks),
            kv_tokens_used=sum(rank.kv_tokens_used for rank in ranks),
            kv_tokens_total=sum(rank.kv_tokens_total for rank in ranks),
            tokens_per_second=self._meter.rate(),
            ranks=tuple(ranks) if len(ranks) > 1 else (),
        )

    def submit(self, streams: Sequence[Stream], submission: Submission) -> None:
        if self._ignore_eos and not submission.ignore_eos:
            submission = replace(submission, ignore_eos=True)
        if self.logs_images:
            for image in submission.images:
                log.info("image %s", json.dumps(described(image)))
        refusal = self._scheduler.submit(streams, submission)
        if refusal is None:
            self._logprobs.note(streams, submission)
        else:
            self._emit([(stream, (), refusal) for stream in streams])
        self._something_changed.set()

    def abort(self, stream: Stream) -> None:
        finish = self._scheduler.abort(stream)
        if finish is not None:
            self._emit([(stream, (), finish)])
        self._something_changed.set()

    def clear_cache(self) -> None:
        """Forget what no stream uses of the prefix cache."""
        self._scheduler.clear_cache()
        self._emit([])

    async def run(self, server: Harness) -> None:
        """Step for ever."""
        self._server = server
        while True:
            self._something_changed.clear()
            end = self._scheduler.begin_step(self._clock.start_of_step())
            if end is None:
                await self._rest(self._scheduler.next_ready_at())
                continue
            await self._work_until(end)
            outputs = self._scheduler.end_step()
            self._meter.note(self._scheduler.tokens_generated)
            self._emit(outputs)
            if not self._clock.speed:
                await server.frames_taken(FRAME_WAIT)

    def _emit(self, outputs: Sequence[Output]) -> None:
        if self._server is None:
            return
        if events := self._scheduler.take_kv_events():
            self._server.emit_kv_events(events)
        self._server.emit(self._scheduler.step, *self._logprobs.judge(outputs))

    async def _rest(self, until: "float | None") -> None:
        """Wait for news, or until a delayed stream goes on."""
        if until is not None and not self._clock.speed:
            self._clock.now = until
            return
        if await self._has_change_within(None if until is None else self._clock.seconds_until(until)):
            self._clock.catch_up()
        elif until is not None:
            self._clock.now = until

    async def _work_until(self, end: float) -> None:
        """Wait for a step's end, but not when everybody in it has been aborted."""
        if self._clock.seconds_until(end) <= 0:
            await asyncio.sleep(0)  # late or at speed 0, but others must have their turn
        while (seconds := self._clock.seconds_until(end)) > 0 and not self._scheduler.is_step_deserted:
            await self._has_change_within(seconds)
            self._something_changed.clear()
        if seconds <= 0:
            self._clock.now = end
        else:
            self._clock.catch_up()

    async def _has_change_within(self, seconds: "float | None") -> bool:
        try:
            return await asyncio.wait_for(self._something_changed.wait(), seconds)
        except asyncio.TimeoutError:  # on 3.10 not yet the built-in one
            return False
