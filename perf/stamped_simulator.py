"""`python -m perf.stamped_simulator STAMPS …`: the simulator with its options, noting when each step's tokens left."""

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from engine_adapters.base import KvEvent, Logprobs
from engine_adapters.simulator.__main__ import WIRES, make_engine, parse_arguments
from engine_adapters.simulator.engine import Harness
from engine_adapters.step.server import Output
from engine_adapters.step.session import Stream
from perf.idle import note_idle_time
from perf.stamps import StampFile


class Stamped:
    """A harness that notes what goes through it."""

    def __init__(self, harness: Harness, stamps: StampFile) -> None:
        self._harness = harness
        self._stamps = stamps
        self.idle = 0.0
        """Seconds that the engine waited for its host before the step under way."""

    def emit(self, step: int, outputs: Iterable[Output], logprobs: Mapping[Stream, Logprobs]) -> None:
        outputs = list(outputs)
        self._stamps.note(sum(len(token_ids) for _, token_ids, _ in outputs), self.idle)
        self._harness.emit(step, outputs, logprobs)

    def emit_kv_events(self, events: Iterable[KvEvent]) -> None:
        self._harness.emit_kv_events(events)

    async def frames_taken(self, timeout: float) -> None:  # noqa: ASYNC109
        await self._harness.frames_taken(timeout)


async def serve(stamps: Path, arguments: list[str]) -> None:
    options = parse_arguments(arguments)
    engine = make_engine(options)
    server = WIRES[options.wire](engine)
    port = await server.start("127.0.0.1", 0)
    stamped = Stamped(server, StampFile(stamps))
    note_idle_time(engine, stamped)
    sys.stdout.write(json.dumps({"address": f"127.0.0.1:{port}"}) + "\n")
    sys.stdout.flush()
    await engine.run(stamped)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2:]))
