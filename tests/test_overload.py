"""Three times as many requests as there are places for, for --duration seconds.

What is admitted keeps its pace, what is refused hears it at once, who asks for less than a share is never refused,
memory stays flat, and all is given back.
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import psutil
import pytest

from gateway.limits.keys import digest_of
from tests import chat
from tests.processes import Gateway, Simulator, wait_until_idle

PATH = "/v1/chat/completions"
PLACES, TOKENS, STEP_SECONDS = 8, 15, 0.02
BODY = json.dumps(chat.body(max_tokens=TOKENS, ignore_eos=True)).encode()
CAPACITY = PLACES / (TOKENS * STEP_SECONDS)
"""Requests a second."""
ADMISSION = re.compile(r"admission;dur=([\d.]+)")
KEYS = "".join(
    f'[[key]]\nname = "{name}"\nsha256 = "{digest_of(name.encode())}"\n' for name in ("small", "flood", "other")
)


@dataclass
class Seen:
    """By key: what the answers were, and how long they took. `served` is without the wait for a place."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    served: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def note(self, key: str, status: int, headers: dict[str, str], seconds: float) -> None:
        self.statuses.setdefault(key, Counter())[status] += 1
        if status == 200:
            admission = ADMISSION.search(headers["server-timing"])
            self.waited.append(float(admission[1]) / 1000 if admission else 0.0)
            self.served.append(seconds - self.waited[-1])
        else:
            assert int(headers["retry-after"]) >= 1, status
            self.refused.append(seconds)


class Clients:
    """Open loop: requests come at their rates, whatever becomes of those before. On bare connections: a client library
    takes ten times the gateway's time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.seen = Seen()

    async def ask(self, key: str) -> None:
        started = time.monotonic()
        if not self._idle:
            self._idle.append(await asyncio.open_connection("127.0.0.1", self._port))
        reader, writer = self._idle.pop()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(BODY)}\r\n\r\n"
        writer.write(head.encode() + BODY)
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = dict(each.split(": ", 1) for each in lines)
        await reader.readexactly(int(headers["content-length"]))
        self.seen.note(key, int(line.split()[1]), headers, time.monotonic() - started)
        assert "connection" not in headers, "refused or not, the next request needs no new connection"
        self._idle.append((reader, writer))

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()

    async def come(self, key: str, rate: float, seconds: float) -> None:
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
                tasks.create_task(self.ask(key))


async def load(gateway: Gateway, seconds: float, **rates: float) -> Seen:
    clients = Clients(gateway.port)
    await asyncio.gather(*(clients.come(key, rate, seconds) for key, rate in rates.items()))
    await clients.close()
    return clients.seen


def told(name: str, values: list[float]) -> str:
    cuts = quantiles(values, n=100)
    shown = ", ".join(f"p{number} {cuts[number - 1] * 1000:.1f} ms" for number in (50, 95, 99))
    return f"{name}: {len(values)}, {shown}"


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_overload_harms_nobody_who_was_admitted(tmp_path: Path, duration: float) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    step = ("--decode-base-ms", str(STEP_SECONDS * 1000), "--decode-per-request-ms", "0")
    limits = ("--max-concurrency", str(PLACES), "--queue-size", str(2 * PLACES), "--queue-seconds", "5")
    memory: Callable[[], int] = lambda: psutil.Process(gateway.child.pid).memory_info().rss  # noqa: E731
    with (
        Simulator("--output", "random", *step) as simulator,
        Gateway(
            *("--http-threads", "2", "--api-keys", str(path), *limits),
            workers=[simulator.url],
        ) as gateway,
    ):
        gateway.wait_until_ready()
        calm = asyncio.run(load(gateway, duration / 3, small=CAPACITY / 4, other=CAPACITY / 4))
        asyncio.run(load(gateway, duration / 10, flood=3 * CAPACITY))  # so that every buffer has its size
        before = memory()
        seen = asyncio.run(load(gateway, duration, small=CAPACITY / 8, other=CAPACITY / 8, flood=3 * CAPACITY))
        after = memory()

        lines = [told("calm", calm.served), told("served", seen.served), told("waited for a place", seen.waited)]
        lines += [
            told("refused", seen.refused),
            f"statuses: {seen.statuses}",
            f"memory: {(after - before) >> 10} KiB more",
        ]
        sys.stderr.write("\n".join(["", *lines, ""]))
        assert calm.statuses.keys() == {"small", "other"} and not calm.refused
        assert seen.statuses["small"].keys() == seen.statuses["other"].keys() == {200}, "they ask for less than a share"
        assert seen.statuses["flood"][429] > seen.statuses["flood"][200] > 0
        assert median(seen.served) < 2 * median(calm.served)
        assert median(seen.refused) < median(calm.served)
        assert after - before < 24 << 20
        wait_until_idle(gateway)
        assert gateway.metric("gateway_admitted_requests", "gateway_waiting_requests", "gateway_body_bytes") == 0
        assert gateway.terminate() == 0
        assert not [entry for entry in gateway.log() if entry["level"] in ("WARNING", "ERROR")]
