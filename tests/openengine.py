"""The OpenEngine server of the tests as a process: what it is told, and what it says."""

import json
import time
from pathlib import Path
from typing import Any

from tests.processes import PATIENCE, ROOT, Process, environment

STOP, LENGTH, CANCELLED = 1, 2, 3
"""FinishReason."""
STARTING, READY, DEGRADED, NOT_READY = 1, 2, 3, 4
"""HealthState."""


class OpenEngineServer(Process):
    """tests/adapters/openengine_server.py on a port, with settings of its own."""

    def __init__(self, python: str | Path, port: int = 0, **settings: Any) -> None:
        # The other tests of wires ask for protobuf's parser in Python, and children would get that too.
        env = environment(PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=None)
        super().__init__([python, ROOT / "tests/adapters/openengine_server.py", str(port)], env)
        self._read = 0
        self._kept: list[dict[str, Any]] = []
        try:
            self.address: str = self.event("listening")["address"]
            if settings:
                self.set(**settings)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    @property
    def url(self) -> str:
        return f"openengine://{self.address}"

    def set(self, **settings: Any) -> None:
        self._tell(set=settings)

    def fail_next(self, code: str, details: str) -> None:
        """Let the next Generate end with this status."""
        self._tell(next={"status": [code, details]})

    def plan_next(self, *events: dict[str, Any], hold: bool = False) -> None:
        """What the next Generate says, GenerateResponse by GenerateResponse; `hold`: and then waits for an abort."""
        self._tell(next={"events": events, "hold": hold})

    def tell_of_kv(self, *responses: dict[str, Any]) -> None:
        self._tell(kv=responses)

    def end_kv(self) -> None:
        self._tell(kv_end=True)

    def event(self, kind: str) -> dict[str, Any]:
        """The next thing of a kind that happens, waited for; others are kept."""
        for index, event in enumerate(self._kept):
            if event["event"] == kind:
                return self._kept.pop(index)
        while True:
            event = self._next_event(kind)
            if event["event"] == kind:
                return event
            self._kept.append(event)

    def request(self) -> dict[str, Any]:
        """The next GenerateRequest as JSON."""
        request: dict[str, Any] = self.event("request")["request"]
        return request

    def forget(self) -> None:
        """All that has happened, and what was planned."""
        self._tell(next={})
        self._kept.clear()

    def _tell(self, **command: Any) -> None:
        self.write(json.dumps(command))
        self.event("obeyed")

    def _next_event(self, kind: str) -> dict[str, Any]:
        lines = self._lines["stdout"]
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while len(lines) == self._read:
                waiting = deadline - time.monotonic()
                assert waiting > 0 and self.is_running, f"no {kind!r} from the OpenEngine server:\n{self.output}"
                self._changed.wait(min(waiting, 0.1))
            line = lines[self._read]
            self._read += 1
        event: dict[str, Any] = json.loads(line)
        return event


def token(*token_ids: int) -> dict[str, Any]:
    """A GenerateResponse with tokens."""
    return {"token": {"output_index": 0, "tokens": [{"token_id": token_id} for token_id in token_ids]}}


def finished(reason: int = LENGTH, match: dict[str, Any] | None = None, message: str = "") -> dict[str, Any]:
    """A GenerateResponse with the end of an answer."""
    end: dict[str, Any] = {"output_index": 0, "reason": reason, "message": message}
    return {"finished": end if match is None else end | {"stop_match": match}, "usage": {"prompt_tokens": 3}}


def error(code: int, message: str) -> dict[str, Any]:
    """A GenerateResponse with a terminal error."""
    return {"error": {"code": code, "message": message}}


def kv_batch(number: int, *events: dict[str, Any], rank: int = 0) -> dict[str, Any]:
    """A SubscribeKvEventsResponse."""
    return {"batch": {"sequence_number": number, "data_parallel_rank": rank, "events": events}}
