"""What running streams feel of pictures: the time between their tokens while clients push large images, GIL and no GIL.

Streams run at a token every `--step-ms`. Meanwhile `--clients` send one picture after the other, each one new to the
gateway, so that it is decoded, resized and cut into patches. The same is done without pictures first. The time between
tokens is taken where they arrive, in this process, which does little else.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from perf import machine, processes
from perf.report import table
from perf.stamps import percentile

SECONDS = 6.0
TEXT = {"role": "user", "content": "Hello!"}


@dataclass
class Stalls:
    """Seconds between the tokens of all streams, pictures answered, CPU seconds of the gateway, and for how long."""

    gaps: list[float] = field(default_factory=list)
    pictures: int = 0
    cpu: float = 0.0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def milliseconds(self, share: float) -> float:
        return percentile([(gap, 1) for gap in self.gaps], share) * 1e3


async def measure(port: int, pid: int, streams: int, clients: int, picture: bytes, seconds: float = SECONDS) -> Stalls:
    """The stalls of `streams` while `clients`, in another process, push `picture`, made different each time."""
    result = Stalls()
    end = time.monotonic() + seconds
    cpu, started = machine.cpu_ns(pid), time.monotonic()
    pushing = await pushers(port, clients, picture, seconds) if clients else None
    await asyncio.gather(*[watch(port, end, result) for _ in range(streams)])
    if pushing is not None:
        output, _ = await pushing.communicate()
        told = json.loads(output)
        result.pictures, result.errors = told["pictures"], told["errors"]
    result.cpu, result.seconds = (machine.cpu_ns(pid) - cpu) / 1e9, time.monotonic() - started
    return result


async def watch(port: int, end: float, result: Stalls) -> None:
    """One stream: when something of it comes. The first second is not counted."""
    body = {"model": "demo", "messages": [TEXT], "stream": True, "max_tokens": 30_000, "ignore_eos": True}
    counts_from = time.monotonic() + 1.0
    async with asked(port, json.dumps(body).encode()) as (reader, _):
        await reader.readuntil(b"data: ")
        last = 0.0
        while (now := time.monotonic()) < end:
            if last and now > counts_from:
                result.gaps.append(now - last)
            last = now
            await reader.read(1 << 16)


async def pushers(port: int, clients: int, picture: bytes, seconds: float) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "perf.pictures", str(port), str(clients), str(seconds)]
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, **pipes)
    assert process.stdin is not None
    process.stdin.write(picture)
    await process.stdin.drain()
    process.stdin.close()
    return process


async def push_all(port: int, clients: int, picture: bytes, seconds: float) -> Stalls:
    result, numbers = Stalls(), itertools.count(os.getpid() << 32)
    end = time.monotonic() + seconds
    content: list[Any] = [{"type": "image_url", "image_url": {"url": "*"}}, {"type": "text", "text": "What is this?"}]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    before, after = json.dumps(body).encode().split(b"*")
    # What stands behind the end of the file no decoder looks at; in groups of three bytes base64 can be continued.
    before += b"data:image/jpeg;base64," + base64.b64encode(picture + bytes(-len(picture) % 3))
    await asyncio.gather(*[push(port, end, before, after, numbers, result) for _ in range(clients)])
    return result


async def push(port: int, end: float, before: bytes, after: bytes, numbers: "Iterator[int]", result: Stalls) -> None:
    """One client: a picture, its answer of one token, the next."""
    while time.monotonic() < end:
        body = before + base64.b64encode(next(numbers).to_bytes(9, "little")) + after
        async with asked(port, body) as (reader, _):
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                result.errors.append((head + await reader.read(500)).decode(errors="replace"))
                return
            result.pictures += 1


@contextlib.asynccontextmanager
async def asked(port: int, body: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        await writer.drain()
        yield reader, writer
    finally:
        writer.close()


def photo(megapixels: float) -> bytes:
    """A JPEG with as much detail as photographs have."""
    import numpy as np
    from PIL import Image

    side = int((megapixels * 1e6) ** 0.5)
    rows, columns = np.ogrid[:side, :side]
    waves = np.stack([np.sin(rows / (7 + each)) * np.cos(columns / (11 + each)) for each in range(3)], axis=2)
    noise = np.random.default_rng(1).normal(0, 6, (side, side, 1))
    file = io.BytesIO()
    Image.fromarray((waves * 100 + 128 + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


@contextlib.contextmanager
def served(has_gil: bool, model: Path, options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """(port, process id) of a gateway before an executor in another process."""
    python, gil = [sys.executable, "-X", "gil=1"] if has_gil else [sys.executable], ["--allow-gil"] if has_gil else []
    if has_gil and options.gil_python:
        python = [options.gil_python]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    costs = ("--prefill-tps", "1e9", "--decode-per-request-ms", "0", "--decode-base-ms", str(options.step_ms))
    engine = [sys.executable, "-m", "engine_adapters.simulator", "--model-path", model, "--ignore-eos", *costs]
    with processes.started([*engine, "--output", "random"]) as worker:
        address = f"step://127.0.0.1:{processes.port_of_json(worker)}"
        command = [*python, "-m", "gateway", *gil, "--port", "0", "--log-level", "warning", "--worker", address]
        with processes.started([*command, "--model-path", f"demo={model}"], env=environment) as gateway:
            yield processes.port_of(processes.first_line(gateway)), gateway.pid


def run(has_gil: bool, model: Path, picture: bytes, options: argparse.Namespace) -> tuple[Stalls, Stalls]:
    """(without pictures, with them)"""
    with served(has_gil, model, options) as (port, pid):

        async def both() -> tuple[Stalls, Stalls]:
            await measure(port, pid, 2, 1, picture, 1.5)  # not counted
            calm = await measure(port, pid, options.streams, 0, picture, options.seconds)
            return calm, await measure(port, pid, options.streams, options.clients, picture, options.seconds)

        return asyncio.run(both())


HEADER = ("", "p50 ms", "p99 ms", "p99.9 ms", "largest ms", "pictures/s", "gateway CPU s/picture", "p99 calm")


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    from tests.vision_model import (
        make_vision_model,  # not above: it loads tokenizers, which warns before the GIL is off
    )

    picture = photo(options.megapixels)
    with tempfile.TemporaryDirectory(prefix="gateway-perf-") as folder:
        model = make_vision_model(Path(folder) / "model", max_pixels=1 << 24)
        kinds = {"no GIL": False, "GIL": True}
        runs: dict[str, list[tuple[Stalls, Stalls]]] = {name: [] for name in kinds}
        for _ in range(options.repeat):
            for name, has_gil in kinds.items():
                runs[name].append(run(has_gil, model, picture, options))
    size = f"{len(picture) / 1e6:.1f} MB, {options.megapixels:g} megapixels"
    sys.stdout.write(f"{options.clients} clients push pictures of {size} beside {options.streams} streams\n\n")
    sys.stdout.write(table(HEADER, [row(name, each) for name, each in runs.items()]))
    for error in [error for each in runs.values() for pair in each for error in pair[1].errors][:3]:
        sys.stdout.write(f"{error}\n")


def row(name: str, runs: Sequence[tuple[Stalls, Stalls]]) -> list[str]:
    busy = [with_pictures for _, with_pictures in runs]

    def middle(values: "Iterator[float]") -> float:
        return median([*values])

    return [
        name,
        *(f"{middle(each.milliseconds(share) for each in busy):.1f}" for share in (0.5, 0.99, 0.999, 1.0)),
        f"{middle(each.pictures / each.seconds for each in busy):.1f}",
        f"{middle(each.cpu / max(1, each.pictures) for each in busy):.3f}",
        f"{middle(calm.milliseconds(0.99) for calm, _ in runs):.1f}",
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3.13t -m perf pictures", description=__doc__)
    add: Any = parser.add_argument
    add("--streams", type=int, default=16, metavar="N")
    add("--clients", type=int, default=8, metavar="N")
    add("--megapixels", type=float, default=4.0, metavar="N")
    add("--step-ms", type=float, default=20.0, metavar="MS", help="an engine step (default: 20)")
    add("--seconds", type=float, default=SECONDS, metavar="S", help="of each run")
    add("--repeat", type=int, default=3, metavar="N", help="runs of each, the median counts")
    add("--gil-python", default="", metavar="PATH", help="an interpreter with a GIL (default: ours, its GIL on)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    # The process of those who push.
    pushed = asyncio.run(push_all(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer.read(), float(sys.argv[3])))
    sys.stdout.write(json.dumps({"pictures": pushed.pictures, "errors": pushed.errors}))
