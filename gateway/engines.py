"""The engine thread: one event loop where all gRPC lives, and a session for each worker.

Threads: the engine thread owns every `Session` and engine adapter. HTTP loops reach them only through the thread's
`Mailbox`; deliveries go to a stream through the mailbox of its own loop, one batch a frame. What others read of a
session (`load`, `streams`) is replaced or read whole.
"""

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from engine_adapters.base import (
    Engine,
    EngineInfo,
    EngineLost,
    Finish,
    FinishReason,
    KvEvent,
    Load,
    Submission,
)
from engine_adapters.step.client import StepClient
from engine_adapters.tls import WorkerTls
from engine_adapters.trtllm.native.client import NativeClient
from engine_adapters.trtllm.openengine.client import OpenEngineClient
from gateway import log
from gateway.health import Health
from gateway.metrics import WIRE_FAULTS, WORKER_ANSWERS, Cells
from gateway.routing import Lease, Router, Worker, WorkerAddress, WorkerState
from gateway.streams import Batch, Choice, Stream
from gateway.threads import Command, Mailbox, Outbox, Supervisor

type OnKvEvents = Callable[[Sequence[KvEvent], bool], None]

type MakeEngine = Callable[[str, Callable[[str], None], OnKvEvents, WorkerTls | None], Engine[Choice]]

ENGINES: dict[str, MakeEngine] = {
    "step": StepClient,
    "trtllm": NativeClient,
    "openengine": OpenEngineClient,
}
SUSPECT_SECONDS = 3.0
"""Executors speak at least every second, also when idle."""
REPORT_SECONDS = 0.02
"""The router hears of a worker's load this often at most."""
RECONNECT_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)


class WorkerUnfit(Exception):
    """The engine answers but must not be used; the message says why."""


class Session:
    """One worker's connection, over and over: connect, check, serve, and when that breaks end its streams and retry."""

    def __init__(self, thread: "EngineThread", worker_name: str, address: WorkerAddress) -> None:
        self.worker = Worker(worker_name, address, self)
        self._thread = thread
        self._engine: Engine[Choice] | None = None
        self._streams: dict[Stream, Lease] = {}
        self._reported_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._health = Health()
        self._ends = {reason: (worker_name, reason.name.lower()) for reason in FinishReason}
        self.is_leaving = False

    def __repr__(self) -> str:
        return f"<Session {self.worker.name}: {len(self._streams)} streams>"

    def start(self, stream: Stream, submission: Submission, lease: Lease, outbox: Outbox[Command]) -> None:
        """From an HTTP loop, by its outbox: submit; whatever happens, the stream gets a Finish."""
        choices = stream.choices  # now, since the stream forgets them when it is closed
        outbox.post(lambda: self._submit(stream, choices, submission, lease))

    def stop(self, choices: list[Choice], outbox: Outbox[Command]) -> None:
        """From an HTTP loop, by its outbox: abort; nothing more will be delivered for them."""
        outbox.post_now(lambda: self._abort(choices))

    def streams(self) -> list[Stream]:
        """From any thread: the streams that are open now."""
        return list(self._streams.copy())

    def check(self) -> None:
        """From the watch: a worker that says nothing is unhealthy until it speaks again."""
        engine = self._engine
        if engine is not None:
            self._thread.post(lambda: self._look_after(engine))

    @property
    def load(self) -> Load:
        """From any thread: what the executor last said of itself."""
        engine = self._engine
        return Load() if engine is None else engine.load

    @property
    def unconfirmed_aborts(self) -> int:
        return self._engine.unconfirmed_aborts if self._engine else 0

    def serve_in(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """Begin; the task ends when `leave` is called."""
        self._task = loop.create_task(self._serve(), name=self.worker.name)
        return self._task

    def leave(self) -> None:
        """On the engine thread: end what still runs there, and forget the worker."""
        if self._task is not None:
            self.is_leaving = True
            self._task.cancel()

    async def _serve(self) -> None:
        try:
            await self._serve_on()
        finally:
            self._end_streams(f"worker {self.worker.name} was removed", is_failure=False)
            self._thread.router.remove(self.worker)

    async def _serve_on(self) -> None:
        """Never returns; ends by cancellation."""
        failures = 0
        while True:
            try:
                await self._serve_once()
            except (WorkerUnfit, EngineLost) as error:
                # A connection that had been good starts the series of delays anew.
                failures = failures if self._state().info is None else 0
                self._publish(WorkerState("unhealthy", str(error)))
            except Exception as error:  # a door: one worker's trouble, whatever it is, must not be all workers'
                log.logger.error(f"the session of worker {self.worker.name} failed", exc_info=error)
                self._publish(WorkerState("unhealthy", f"its session failed: {error!r}"))
            # Only now, so that whoever tries again does not come back to this worker.
            self._end_streams(f"worker {self.worker.name} was lost", is_failure=True)
            pause = RECONNECT_SECONDS[min(failures, len(RECONNECT_SECONDS) - 1)]
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            failures += 1

    async def _serve_once(self) -> None:
        make = ENGINES[self.worker.address.scheme]
        tls = self._thread.tls if self.worker.address.tls else None
        engine = make(self.worker.address.target, self._count_fault, self._note_kv_events, tls)
        probing: asyncio.Task[None] | None = None
        try:
            info = await engine.connect()
            model = self._thread.admit(self.worker.address, info)
            self._engine = engine
            self._health = Health()
            role = self.worker.address.role if self.worker.address.role != "any" else info.role or "any"
            self._publish(WorkerState("ready", model=model, info=info, role=role))
            probing = asyncio.create_task(self._probe(engine))
            await engine.run(self._deliver)
        finally:
            self._engine = None
            if probing is not None:
                probing.cancel()
            with contextlib.suppress(Exception):  # a broken channel may object to being closed
                await engine.close()

    async def _probe(self, engine: Engine[Choice]) -> None:
        """Ask the executor how it is, again and again."""
        while True:
            await asyncio.sleep(self._thread.health_seconds * random.uniform(0.8, 1.2))
            try:
                problem = await engine.check_health()
            except EngineLost as error:
                problem = str(error)
            self._health.note(problem)
            self._look_after(engine)

    def _look_after(self, engine: Engine[Choice]) -> None:
        """Take the worker out of the rotation while it is silent or not well; its streams go on."""
        if engine is not self._engine:
            return
        self._report(engine)
        is_silent = time.monotonic() - engine.last_frame_at > SUSPECT_SECONDS
        problem = f"silent for {SUSPECT_SECONDS:g} s" if is_silent else self._health.problem
        known = self._state()
        if problem != (known.reason if known.state == "unhealthy" else ""):
            self._publish(replace(known, state="unhealthy" if problem else "ready", reason=problem))

    def _report(self, engine: Engine[Choice]) -> None:
        if engine is self._engine and engine.last_frame_at > self._reported_at:
            self._reported_at = time.monotonic()
            self._thread.router.report(self.worker, engine.load)

    def _note_kv_events(self, events: Sequence[KvEvent], is_first: bool) -> None:
        for _ in range(self._thread.router.note_kv_events(self.worker, events, is_first)):
            self._count_fault("kv_event")

    def _submit(self, stream: Stream, choices: list[Choice], submission: Submission, lease: Lease) -> None:
        if self._engine is None:
            self._post(_ends(choices, f"worker {self.worker.name} was lost"))
            return
        self._streams[stream] = lease
        lease.sent()
        self._engine.submit(choices, submission)

    def _abort(self, choices: Iterable[Choice]) -> None:
        for choice in choices:
            lease = self._streams.get(choice.stream)
            if lease is not None:
                lease.withdraw()
                self._thread.cells.add(WORKER_ANSWERS, self._ends[FinishReason.ABORTED])
            self._close(choice)
            if self._engine is not None:
                self._engine.abort(choice)

    def _close(self, choice: Choice) -> None:
        stream = choice.stream
        stream.open_choices.discard(choice)
        if not stream.open_choices:
            self._streams.pop(stream, None)

    def _deliver(self, deliveries: Batch) -> None:
        engine = self._engine
        assert engine is not None, "an engine delivers only while it runs"
        now = engine.last_frame_at
        if now - self._reported_at > REPORT_SECONDS:
            self._report(engine)
        for choice, _, finish, _ in deliveries:
            choice.stream.progressed_at = now
            if finish is not None:
                self._end(choice, finish)
        self._post(deliveries)

    def _end(self, choice: Choice, finish: Finish) -> None:
        self._thread.cells.add(WORKER_ANSWERS, self._ends[finish.reason])
        lease = self._streams.get(choice.stream)
        if lease is not None and finish.reason in (FinishReason.STOP, FinishReason.LENGTH):
            lease.ended(finish.cached_tokens)
        elif lease is not None and finish.reason is FinishReason.ERROR:
            lease.failed()
        elif lease is not None:
            lease.withdraw()
        self._close(choice)

    def _post(self, deliveries: Batch) -> None:
        for mailbox, batch in _by_mailbox(deliveries).items():
            if not mailbox.post(batch):
                self._abort(choice for choice, *_ in batch)

    def _end_streams(self, reason: str, is_failure: bool) -> None:
        streams, self._streams = self._streams, {}
        for stream, lease in streams.items():
            self._thread.cells.add(WORKER_ANSWERS, (self.worker.name, "lost"), len(stream.open_choices))
            if is_failure:
                lease.failed()
            self._post(_ends(stream.open_choices, reason))

    def _state(self) -> WorkerState:
        return self._thread.router.snapshot()[self.worker]

    def _publish(self, state: WorkerState) -> None:
        before = self._state()
        if not self._thread.supervisor.ending and (state.state, state.reason) != (before.state, before.reason):
            level = logging.INFO if state.state == "ready" else logging.WARNING
            log.event(level, f"worker {self.worker.name} is {state.state}", reason=state.reason, model=state.model)
        self._thread.router.publish(self.worker, state)

    def _count_fault(self, kind: str) -> None:
        self._thread.cells.add(WIRE_FAULTS, (self.worker.name, kind))


def _ends(choices: Iterable[Choice], reason: str) -> Batch:
    finish = Finish(FinishReason.ERROR, error=reason, retryable=True)
    return [(choice, (), finish, None) for choice in choices]


def _by_mailbox(deliveries: Batch) -> dict[Mailbox[Batch], Batch]:
    batches: dict[Mailbox[Batch], Batch] = {}
    for delivery in deliveries:
        mailbox = delivery[0].stream.mailbox
        batch = batches.get(mailbox)
        if batch is None:
            batches[mailbox] = [delivery]
        else:
            batch.append(delivery)
    return batches


def _obey(command: Command) -> None:
    command()


class EngineThread:
    """The one thread and loop that speak gRPC. The loop is never closed before the process ends.

    `admit(address, info)` gives the model a worker serves, or raises WorkerUnfit. Executors are asked how they are
    every `health_seconds`.
    """

    def __init__(
        self,
        router: Router,
        admit: Callable[[WorkerAddress, EngineInfo], str],
        cells: Cells,
        supervisor: Supervisor,
        health_seconds: float,
        tls: WorkerTls | None = None,
    ) -> None:
        self.health_seconds = health_seconds
        self.tls = tls
        self.router = router
        self.admit = admit
        self.cells = cells
        self._loop = asyncio.new_event_loop()
        self._inbox: Mailbox[Command] = Mailbox(self._loop, _obey)
        self._tasks: set[asyncio.Task[None]] = set()
        self.supervisor = supervisor
        self.thread = supervisor.spawn("engine", self._run)

    def __repr__(self) -> str:
        return f"<EngineThread: {len(self._tasks)} sessions>"

    def post(self, command: Command) -> None:
        """Have `command()` run on the engine thread; from any thread."""
        self._inbox.post(command)

    def outbox(self) -> Outbox[Command]:
        """The same for one HTTP loop, whose commands of one turn go together."""
        return Outbox(self._inbox)

    def connect(
        self, address: WorkerAddress, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Worker:
        """Add a worker and start its session; raises NameTaken."""
        session = Session(self, name or str(address), address)
        self.router.add(session.worker, labels)
        self.post(lambda: self._spawn(session))
        return session.worker

    def disconnect(self, worker: Worker) -> None:
        """Remove a worker; requests that it has begun to answer end with an error."""
        self.post(worker.session.leave)

    def confirmed_aborts(self, timeout: float) -> bool:
        """Wait until the executors have confirmed every abort, for at most `timeout` seconds."""
        confirmed = threading.Event()
        self.post(lambda: self._wait_for_aborts(confirmed))
        return confirmed.wait(timeout)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(self._on_loop_error)
        self._loop.run_forever()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # asyncio reports the odd broken connection here, too; a failed callback of ours is another matter.
        if "handle" in context:
            self.supervisor.fail(f"the engine thread failed: {context.get('exception')!r}")
        else:
            log.event(logging.DEBUG, "engine loop: " + context["message"], exception=context.get("exception"))

    def _spawn(self, session: Session) -> None:
        task = session.serve_in(self._loop)
        self._tasks.add(task)
        task.add_done_callback(partial(self._note_end, session))

    def _note_end(self, session: Session, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if session.is_leaving:
            log.event(logging.INFO, f"worker {session.worker.name} was removed")
        else:
            self.supervisor.fail(f"the session of {task.get_name()} ended: {task!r}")

    def _wait_for_aborts(self, confirmed: threading.Event) -> None:
        if any(worker.session.unconfirmed_aborts for worker in self.router.snapshot()):
            self._loop.call_later(0.01, self._wait_for_aborts, confirmed)
        else:
            confirmed.set()


def stalled(workers: Iterable[Worker], seconds: float) -> list[tuple[Worker, Stream]]:
    """The open streams that got nothing for `seconds`."""
    limit = time.monotonic() - seconds
    return [
        (worker, stream) for worker in workers for stream in worker.session.streams() if stream.progressed_at < limit
    ]
