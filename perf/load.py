"""The load: clients on raw sockets in a process of their own, which count and do nothing else.

`python -m perf.load` reads a Job as JSON from its input and writes a Result as JSON. One epoll loop serves all
connections; a piece of an answer costs it a `recv` and two counts, so that it needs far less CPU than what it measures.
Moments in a Result are seconds since the window opened.
"""

import dataclasses
import heapq
import json
import math
import random
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from perf.machine import Usage, clock_of_machine, usage_of
from perf.stamps import Arrivals

RECEIVE_BYTES = 1 << 18
PATIENCE_SECONDS = 60.0
"""How long the window waits for steady streams to begin."""
WARM_TOKENS = 5
END_OF_EVENT = b"\n\n"
END_OF_CHUNKS = b"0\r\n\r\n"
ALWAYS = -math.inf


@dataclass(frozen=True)
class Flow:
    """One kind of requests. Closed loop (`connections`): so many at once, each asks again when it has its answer. Open
    loop (`rate`): they come at random (Poisson), so many a second, however those before them fare.

    `requests` are whole HTTP requests, sent in turn; `begins` and `ends` bound the moments when one is sent.
    """

    name: str
    requests: list[str]
    marker: str = ""
    """A text that every token of an answer has once; without one, an answer counts as one token."""
    connections: int = 0
    rate: float = 0.0
    begins: float = ALWAYS
    ends: float = math.inf
    is_steady: bool = False
    """Streams that never end: the window opens when all have some tokens, and the end of one is an error."""
    keeps_gaps: bool = False


@dataclass(frozen=True)
class Job:
    port: int
    pids: dict[str, list[int]]
    """Processes whose CPU time and memory are read, by role."""
    flows: list[Flow]
    warm_seconds: float
    seconds: float
    profile_switch: str = ""
    """A pipe that is told "1" when the window opens and "0" when it closes."""
    seed: int = 0


@dataclass
class FlowResult:
    """`answers`, of requests asked in the window, are (asked, first token, end, tokens); asked is when it was due."""

    tokens: int = 0
    events: int = 0
    tokens_before: int = 0
    """Before the window opened."""
    ended: int = 0
    """Answers that ended in the window, whenever they were asked for."""
    answers: list[tuple[float, float, float, int]] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """(moment, seconds since the stream's token before)."""
    arrivals: Arrivals = field(default_factory=list)
    """By the monotonic clock, from the first token on."""
    unanswered: int = 0
    errors: int = 0
    first_error: str = ""


@dataclass
class Result:
    """`usage` is by role, the load's own included; `busy` is the share of all cores in use by anyone. Of the window."""

    seconds: float
    usage: dict[str, Usage]
    busy: float
    lateness_p99: float
    """Of open-loop requests: seconds from when one was due to when it was sent."""
    flows: dict[str, FlowResult]


class Client:
    """A connection and the answer it waits for."""

    __slots__ = ("asked", "connection", "counts", "first", "flow", "head", "is_blocked", "last", "tokens", "unsent")

    def __init__(self, connection: socket.socket, flow: Flow) -> None:
        self.connection = connection
        self.flow = flow
        self.unsent = memoryview(b"")
        self.is_blocked = False
        self.asked = self.first = self.last = 0.0
        self.tokens = 0
        self.head = b""
        self.counts = False
        """Whether the answer under way was asked for in the window."""


class Load:
    """The loop over all connections, and the counts."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.results = {flow.name: FlowResult() for flow in job.flows}
        self.requests = {flow.name: [request.encode() for request in flow.requests] for flow in job.flows}
        self.turns = dict.fromkeys(self.results, 0)
        self.markers = {flow.name: flow.marker.encode() for flow in job.flows}
        self.clients: dict[int, Client] = {}
        self.idle: dict[str, deque[Client]] = {name: deque() for name in self.results}
        self.due: list[tuple[float, int]] = []
        """(moment by the monotonic clock, number of a flow that sends then)."""
        self.lateness: list[float] = []
        self.poll = select.epoll()
        self.cold = sum(flow.connections for flow in job.flows if flow.is_steady)
        self.dice = random.Random(1 + job.seed)
        self.now = self.began = time.monotonic()
        self.opened: float | None = None
        self.closes = math.inf

    # --- the course of a job ----------------------------------------------------------------------------------------

    def run(self) -> Result:
        for number, flow in enumerate(self.job.flows):
            if flow.begins == ALWAYS:
                self.start(number, self.now)
        while self.opened is None:
            self.turn(self.began + self.job.warm_seconds)
            if self.now >= self.began + self.job.warm_seconds and not self.cold:
                self.open_window()
            elif self.now > self.began + PATIENCE_SECONDS:
                raise SystemExit(f"load: {self.cold} streams did not begin; {self.all_errors()}")
        before, machine = self.read(), clock_of_machine()
        while self.now < self.closes:
            self.turn(self.closes)
        after = self.read()
        self.switch_profile("0")
        busy = (clock_of_machine() - machine) / (self.now - self.opened)
        usage = {role: after[role].since(before[role]) for role in after}
        return self.result(usage, busy)

    def open_window(self) -> None:
        self.opened = self.now
        self.closes = self.now + self.job.seconds
        for result in self.results.values():
            result.tokens_before, result.tokens, result.events = result.tokens, 0, 0
        for number, flow in enumerate(self.job.flows):
            if flow.begins != ALWAYS:
                self.start(number, self.now + flow.begins)
        self.switch_profile("1")

    def start(self, number: int, moment: float) -> None:
        flow = self.job.flows[number]
        if flow.rate:
            moment += self.dice.expovariate(flow.rate)
        for _ in range(flow.connections or 1):
            heapq.heappush(self.due, (moment, number))

    def turn(self, until: float) -> None:
        """Wait for answers or for the next request to be due; what one poll found shares one moment."""
        wait = min(until, self.due[0][0] if self.due else until) - time.monotonic()
        ready = self.poll.poll(max(0.0, min(wait, 1.0)))
        self.now = time.monotonic()
        for number, events in ready:
            client = self.clients[number]
            if events & select.EPOLLOUT and client.unsent:
                self.send(client)
            if events & ~select.EPOLLOUT:
                self.receive(client)
        while self.due and self.due[0][0] <= self.now:
            self.ask(*heapq.heappop(self.due))

    # --- requests ---------------------------------------------------------------------------------------------------

    def ask(self, due: float, number: int) -> None:
        flow = self.job.flows[number]
        if due - (self.opened or 0.0) >= flow.ends and self.opened is not None:
            return
        idle = self.idle[flow.name]
        client = idle.popleft() if idle else self.connect(flow)
        requests = self.requests[flow.name]
        client.unsent = memoryview(requests[self.turns[flow.name] % len(requests)])
        self.turns[flow.name] += 1
        client.asked, client.first, client.last, client.tokens, client.head = due, 0.0, 0.0, 0, b""
        client.counts = self.opened is not None
        if flow.rate:
            self.lateness.append(time.monotonic() - due)
            heapq.heappush(self.due, (due + self.dice.expovariate(flow.rate), number))
        self.send(client)

    def connect(self, flow: Flow) -> Client:
        """Waits for nothing: what is sent before the server accepts goes out when it does."""
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", self.job.port))
        client = self.clients[connection.fileno()] = Client(connection, flow)
        client.is_blocked = True
        self.poll.register(connection, select.EPOLLIN | select.EPOLLOUT)
        return client

    def send(self, client: Client) -> None:
        try:
            client.unsent = client.unsent[client.connection.send(client.unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(client, repr(error))
            return
        if client.is_blocked != bool(client.unsent):
            client.is_blocked = not client.is_blocked
            self.poll.modify(client.connection, select.EPOLLIN | (select.EPOLLOUT if client.is_blocked else 0))

    # --- answers ----------------------------------------------------------------------------------------------------

    def receive(self, client: Client) -> None:
        try:
            data = client.connection.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self.fail(client, "the connection was closed")
            return
        flow, result = client.flow, self.results[client.flow.name]
        marker = self.markers[flow.name]
        if marker:
            self.count(client, result, data.count(marker), data.count(END_OF_EVENT))
        if not client.first or not flow.is_steady:
            client.head = (client.head + data)[: 1 << 16]
        if flow.is_steady:
            if data.endswith(END_OF_CHUNKS):
                self.fail(client, f"a steady stream ended: {client.head[:300]!r}")
        elif is_whole(client.head):
            self.answered(client, result)

    def count(self, client: Client, result: FlowResult, tokens: int, events: int) -> None:
        if not tokens:
            return
        result.tokens += tokens
        result.events += events
        result.arrivals.append((self.now, tokens))
        if client.flow.is_steady and client.tokens < WARM_TOKENS <= client.tokens + tokens:
            self.cold -= 1
        client.tokens += tokens
        if not client.first:
            client.first = self.now
        elif client.flow.keeps_gaps and self.opened is not None:
            result.gaps.append((self.now - self.opened, self.now - client.last))
        client.last = self.now

    def answered(self, client: Client, result: FlowResult) -> None:
        flow, opened = client.flow, self.opened
        if not client.head.startswith(b"HTTP/1.1 200 ") or (flow.marker and not client.tokens):
            self.note_error(result, client.head[:300].decode("latin-1"))
        elif opened is not None:
            result.ended += 1
            if client.counts:
                moments = (client.asked, client.first or self.now, self.now)
                asked, first, ended = (moment - opened for moment in moments)
                result.answers.append((asked, first, ended, client.tokens or 1))
        client.asked = 0.0
        self.idle[flow.name].append(client)
        if not flow.rate:
            self.ask(self.now, self.job.flows.index(flow))

    def fail(self, client: Client, reason: str) -> None:
        self.note_error(self.results[client.flow.name], reason)
        client.asked = 0.0
        self.poll.unregister(client.connection)
        del self.clients[client.connection.fileno()]
        client.connection.close()

    def note_error(self, result: FlowResult, reason: str) -> None:
        result.errors += 1
        result.first_error = result.first_error or reason

    # --- what comes of it -------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Usage]:
        roles = {role: usage_of(pids) for role, pids in self.job.pids.items()}
        return {**roles, "load": usage_of([])}

    def switch_profile(self, state: str) -> None:
        if self.job.profile_switch:
            with open(self.job.profile_switch, "w") as pipe:
                pipe.write(state)

    def all_errors(self) -> str:
        return "; ".join(f"{name}: {each.first_error}" for name, each in self.results.items() if each.errors)

    def result(self, usage: dict[str, Usage], busy: float) -> Result:
        for client in self.clients.values():
            result = self.results[client.flow.name]
            result.unanswered += bool(client.asked and client.counts and not client.flow.is_steady)
            client.connection.close()
        self.poll.close()
        late = sorted(self.lateness) or [0.0]
        assert self.opened is not None
        return Result(self.now - self.opened, usage, busy, late[len(late) * 99 // 100], self.results)


def is_whole(answer: bytes) -> bool:
    """Whether a response is complete, by its chunks or its content-length."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    _, has_length, rest = head.partition(b"content-length: ")
    if has_length:
        return len(body) >= int(rest.partition(b"\r\n")[0])
    return answer.endswith(END_OF_CHUNKS)


def main() -> None:
    values = json.load(sys.stdin)
    values["flows"] = [Flow(**flow) for flow in values["flows"]]
    json.dump(dataclasses.asdict(Load(Job(**values)).run()), sys.stdout)


if __name__ == "__main__":
    main()
