"""`python -m perf.stamped_simulator STAMPS …`: the simulator with its options, noting when each step's tokens left."""

import asyncio
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine_adapters.simulator.__main__ import make_engine, parse_arguments
from engine_adapters.simulator.engine import SimulatedEngine
from engine_adapters.step.server import Output, StepServer
from perf.stamps import StampFile


class StampedServer(StepServer):
    def __init__(self, engine: SimulatedEngine, stamps: StampFile) -> None:
        super().__init__(engine)
        self._stamps = stamps

    def emit(self, step: int, outputs: Iterable[Output], *rest: Any, **named: Any) -> None:
        outputs = list(outputs)
        self._stamps.note(sum(len(token_ids) for _, token_ids, _ in outputs))
        super().emit(step, outputs, *rest, **named)


async def serve(stamps: Path, arguments: list[str]) -> None:
    engine = make_engine(parse_arguments(arguments))
    server = StampedServer(engine, StampFile(stamps))
    port = await server.start("127.0.0.1", 0)
    sys.stdout.write(json.dumps({"address": f"127.0.0.1:{port}"}) + "\n")
    sys.stdout.flush()
    await engine.run(server)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2:]))
