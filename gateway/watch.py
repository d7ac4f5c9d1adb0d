"""The control loop: names streams that stand still and takes silent workers out of the rotation.

Threads: runs on its own; reads sessions, and has the engine thread change their state.
"""

import logging
import threading
import time
from functools import partial

from gateway import log
from gateway.engines import stalled
from gateway.gateway import Gateway
from gateway.metrics import LOOP_LAG, STALLED
from gateway.worker_file import WorkerFile

TICK_SECONDS = 0.25


class Watch:
    def __init__(self, gateway: Gateway, worker_file: WorkerFile | None = None) -> None:
        self._gateway = gateway
        self._worker_file = worker_file
        self._stopped = threading.Event()
        self._stalled = 0
        self._lags: dict[str, float] = {}
        gateway.registry.gauge(STALLED, lambda: [((), self._stalled)])
        gateway.registry.gauge(LOOP_LAG, lambda: [((name,), lag) for name, lag in self._lags.copy().items()])
        self.thread = gateway.supervisor.spawn("watch", self._run)

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            self._name_stalled_streams()
            for pool in self._gateway.pools:
                pool.adapt()
            self._measure_lag()
            for worker in self._gateway.router.snapshot():
                worker.session.check()
            self._gateway.router.tick()
            self._remove_drained()
            if self._worker_file is not None:
                self._worker_file.follow()

    def _remove_drained(self) -> None:
        for worker in self._gateway.router.leaving:
            if not self._gateway.router.in_flight(worker):
                self._gateway.engine.disconnect(worker)

    def _measure_lag(self) -> None:
        for loop in self._gateway.loops:
            loop.post(partial(self._note_lag, loop.name, time.monotonic()))
        self._gateway.engine.post(partial(self._note_lag, "engine", time.monotonic()))

    def _note_lag(self, name: str, asked: float) -> None:
        """On the loop that was asked."""
        self._lags[name] = time.monotonic() - asked

    def _name_stalled_streams(self) -> None:
        found = stalled(self._gateway.router.snapshot(), self._gateway.config.stall_seconds)
        self._stalled = len(found)
        for worker, stream in found:
            if not stream.stalled:
                stream.stalled = True
                fields = {"id": stream.request_id, "worker": worker.name}
                fields["seconds"] = f"{time.monotonic() - stream.progressed_at:.0f}"
                log.event(logging.WARNING, "a stream makes no progress", **fields)
