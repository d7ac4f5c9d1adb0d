"""How long the simulated GPU has nothing to do because the process that drives it is busy with something else.

A step begins when the host asks for it and takes its simulated time; what passes from its end until the host asks for
the next one is idle. The simulator by itself makes up for such lags, which a GPU cannot.
"""

import time
from typing import Protocol

from engine_adapters.simulator.engine import EngineClock, SimulatedEngine


class KnowsIdleTime(Protocol):
    idle: float


class HostClock(EngineClock):
    """Steps begin when the host says so. `told` learns the idle time before each one."""

    def __init__(self, speed: float, told: KnowsIdleTime) -> None:
        super().__init__(speed)
        self._told = told

    def start_of_step(self) -> float:
        asked = time.monotonic() * self.speed
        self._told.idle = max(0.0, asked - self.now) / self.speed
        self.now = asked
        return self.now


def note_idle_time(engine: SimulatedEngine, told: KnowsIdleTime) -> None:
    """Have `told.idle` set before every step of an engine that takes its time."""
    if engine._clock.speed:
        engine._clock = HostClock(engine._clock.speed, told)
