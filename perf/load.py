"""The load: clients on raw sockets in a process of their own, which count and do nothing else.

`python -m perf.load JOB` reads a Job as JSON and writes a Result as JSON. One epoll loop serves all connections; a
piece of an answer costs it a `recv` and two counts, so that it needs far less CPU than what it measures.
"""

import dataclasses
import json
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from perf.processes import ROOT, cpu_ns, resident_mb
from perf.stamps import Arrivals

RECEIVE_BYTES = 1 << 18
SILENCE_SECONDS = 20.0
WARM_TOKENS = 5
WARM_SHARE = 0.1
END_OF_EVENT = b"\n\n"
END_OF_CHUNKS = b"0\r\n\r\n"


@dataclass(frozen=True)
class Job:
    """Streams: each of `connections` sends `request` once and receives `tokens` times the text `marker`. Requests
    (`requests` above 0): as many answers in all, one after the other on each connection."""

    port: int
    pid: int
    """The server's process, whose CPU time and memory are read."""
    request: str
    connections: int
    marker: str = ""
    tokens: int = 0
    requests: int = 0
    numbered: str = ""
    """A text in the request that each one has a number of its own for, of as many digits."""
    profile_switch: str = ""
    """A pipe that is told "1" when the window opens and "0" when it closes."""


@dataclass
class Reading:
    """Everything that is counted, at one moment."""

    time: float
    server_cpu: float
    own_cpu: float
    tokens: int
    events: int
    answers: int
    size: int

    def since(self, other: "Reading") -> "Reading":
        return Reading(*(mine - theirs for mine, theirs in zip(*map(dataclasses.astuple, (self, other)), strict=True)))


@dataclass
class Result:
    """`window` is what happened while every connection was busy; `before` tells how many tokens had come by then."""

    errors: int
    window: Reading
    before: int
    resident_mb: float
    arrivals: Arrivals
    latencies: list[float]
    """Seconds from each request to the end of its answer."""


def run(job: Job) -> Result:
    """Have a process of its own do the job; raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "perf.load", json.dumps(dataclasses.asdict(job))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError("the load process failed")
    values = json.loads(done.stdout)
    values["window"] = Reading(**values["window"])
    values["arrivals"] = [(moment, tokens) for moment, tokens in values["arrivals"]]
    return Result(**values)


class Load:
    """Connections, the loop over them, and the counts; subclasses say what to make of a piece of an answer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.request = job.request.encode()
        self.connections: dict[int, socket.socket] = {}
        self.sent_at: dict[int, float] = {}
        self.tokens = self.events = self.answers = self.size = self.errors = 0
        self.arrivals: Arrivals = []
        self.latencies: list[float] = []
        self.now = time.monotonic()
        self.opened: Reading | None = None
        self.closed: Reading | None = None

    def run(self) -> Result:
        poll = select.epoll()
        for _ in range(self.job.connections):
            connection = socket.create_connection(("127.0.0.1", self.job.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[connection.fileno()] = connection
            poll.register(connection, select.EPOLLIN)
        for number in self.connections:
            self.send(number)
        while self.connections and (ready := poll.poll(SILENCE_SECONDS)):
            self.take(ready)
        self.errors += len(self.connections)
        return self.result()

    def send(self, number: int) -> None:
        self.sent_at[number] = time.monotonic()
        self.connections[number].sendall(self.request)

    def take(self, ready: list[tuple[int, int]]) -> None:
        """What one poll found shares one moment."""
        self.now = time.monotonic()
        before = self.tokens
        for number, _ in ready:
            data = self.connections[number].recv(RECEIVE_BYTES)
            self.size += len(data)
            self.events += data.count(END_OF_EVENT)
            self.received(number, data)
        if self.tokens > before:
            self.arrivals.append((self.now, self.tokens - before))

    def received(self, number: int, data: bytes) -> None:
        raise NotImplementedError

    def answered(self, number: int) -> None:
        self.answers += 1
        self.latencies.append(self.now - self.sent_at[number])

    def leave(self, number: int) -> None:
        self.connections.pop(number).close()

    def open_window(self) -> None:
        self.opened = self.read()
        self.switch_profile("1")

    def close_window(self) -> None:
        if self.opened is not None and self.closed is None:
            self.closed = self.read()
            self.switch_profile("0")

    def switch_profile(self, state: str) -> None:
        if self.job.profile_switch:
            Path(self.job.profile_switch).write_text(state)

    def read(self) -> Reading:
        server_cpu = cpu_ns(self.job.pid) / 1e9
        return Reading(self.now, server_cpu, time.process_time(), self.tokens, self.events, self.answers, self.size)

    def result(self) -> Result:
        if (
            self.opened is None
            or self.closed is None
            or self.closed.tokens + self.closed.answers == (self.opened.tokens + self.opened.answers)
        ):
            raise SystemExit(f"load: no moment when all were under way, {self.errors} errors; ask for more tokens")
        window = self.closed.since(self.opened)
        return Result(self.errors, window, self.opened.tokens, resident_mb(self.job.pid), self.arrivals, self.latencies)


class StreamLoad(Load):
    """Each connection is one stream. The window opens when all have some tokens and closes when one has them all."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.marker = job.marker.encode()
        self.tokens_of: dict[int, int] = {}
        self.cold = job.connections

    def received(self, number: int, data: bytes) -> None:
        before = self.tokens_of.get(number, 0)
        after = self.tokens_of[number] = before + data.count(self.marker)
        self.tokens += after - before
        if before < WARM_TOKENS <= after:
            self.cold -= 1
            if not self.cold:
                self.open_window()
        if after >= self.job.tokens:
            self.close_window()
        if not data or data.endswith(END_OF_CHUNKS):
            self.errors += after != self.job.tokens
            self.answered(number)
            self.leave(number)


class RequestLoad(Load):
    """Each connection sends its next request when it has the answer. The window leaves out the first tenth."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.pieces: dict[int, bytes] = {}
        self.unsent = job.requests
        self.template, self.marker = self.request, job.numbered.encode()

    def send(self, number: int) -> None:
        if self.unsent:
            self.unsent -= 1
            if self.marker:
                self.request = self.template.replace(self.marker, b"%0*d" % (len(self.marker), self.unsent), 1)
            super().send(number)
        else:
            self.close_window()
            self.leave(number)

    def received(self, number: int, data: bytes) -> None:
        answer = self.pieces.pop(number, b"") + data
        if not data:
            self.errors += 1
            self.leave(number)
        elif not is_whole(answer):
            self.pieces[number] = answer
        else:
            self.errors += not answer.startswith(b"HTTP/1.1 200 ")
            self.answered(number)
            if self.opened is None and self.answers >= self.job.requests * WARM_SHARE:
                self.open_window()
            self.send(number)


def is_whole(answer: bytes) -> bool:
    """Whether a response is complete, by its chunks or its content-length."""
    head, _, body = answer.partition(b"\r\n\r\n")
    _, has_length, rest = head.partition(b"content-length: ")
    if has_length:
        return len(body) == int(rest.partition(b"\r\n")[0])
    return answer.endswith(END_OF_CHUNKS)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    result = (RequestLoad if job.requests else StreamLoad)(job).run()
    json.dump(dataclasses.asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
