"""The independent TrtllmService of tests/adapters/trtllm_servicer.py, as a process that tests tell what to do."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.processes import PATIENCE, Process, eventually

SCRIPT = Path(__file__).parent / "adapters" / "trtllm_servicer.py"


class Servicer(Process):
    """Serves on `address`; the tests' story of it is a list of events, each read once."""

    def __init__(self, python: str | Path) -> None:
        super().__init__([python, SCRIPT])
        self._read = 0
        try:
            self.address: str = json.loads(self.line('"serving"', "stdout").string)["address"]
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    @property
    def url(self) -> str:
        return f"trtllm://{self.address}"

    def next_event(self, *kinds: str) -> dict[str, Any] | None:
        """The next thing of such a kind that has happened there, None while there is none."""
        lines = self._lines["stdout"]
        while self._read < len(lines):
            self._read += 1
            event: dict[str, Any] = json.loads(lines[self._read - 1])
            if event["event"] in kinds:
                return event
        return None

    def wait_for(self, *kinds: str) -> dict[str, Any]:
        found = eventually(lambda: self.next_event(*kinds), f"one of {kinds}")
        assert found is not None
        return found

    def obey(self, **plan: Any) -> None:
        """`plan`, waited for in the calling thread."""
        self.write(json.dumps(plan))
        self.wait_for("plan")

    async def event(self, *kinds: str) -> dict[str, Any]:
        """`next_event`, waited for."""
        async with asyncio.timeout(PATIENCE):
            while (event := self.next_event(*kinds)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        return event

    async def plan(self, **plan: Any) -> None:
        """Have the engine do this with what comes from now on; what it told before is forgotten."""
        self.write(json.dumps(plan))
        await self.event("plan")

    async def request(self) -> dict[str, Any]:
        """The next GenerateRequest, as protobuf's JSON."""
        found: dict[str, Any] = (await self.event("generate"))["request"]
        return found
