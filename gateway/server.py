"""The process: starts every thread, serves HTTP on loops of its own, and ends in good order.

Threads: `Server` is the main thread's. It shares with the HTTP threads what `Gateway` holds, and tells them to stop
through their loops.
"""

import asyncio
import functools
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_adapters.base import EngineInfo
from engine_adapters.tls import WorkerTls
from gateway import log
from gateway.api.status import unready
from gateway.app import App
from gateway.config import Config
from gateway.embedded import EmbeddedExecutor
from gateway.engines import EngineThread, WorkerUnfit
from gateway.errors import Unavailable
from gateway.fetch import trusted
from gateway.gateway import Gateway
from gateway.gauges import add_cache_gauges, add_gauges, add_limit_gauges, count_collections
from gateway.http_loop import ServerSettings, count_active
from gateway.immortal import make_immortal
from gateway.limits import Admission, ByteBudget, KeyFile, Keys
from gateway.listening import StartError, listen, raise_open_files, server_tls
from gateway.metrics import (
    IMAGE_CACHE_BYTES,
    IMAGE_CACHE_ENTRIES,
    Registry,
)
from gateway.model import Model, load_adapters, read_aliases
from gateway.pools import Pool
from gateway.reload import Reloader
from gateway.routing import BreakerRules, NameTaken, Policies, Router, WorkerAddress, role_problem
from gateway.schemas import Validators
from gateway.threads import Alarm, Supervisor
from gateway.tokenizer import Encoder, Structure, TokenCache
from gateway.watch import Watch
from gateway.worker_file import WorkerFile, WorkerFileError

if TYPE_CHECKING:  # numpy and Pillow are imported only where a model has images
    from gateway.multimodal.vision import Vision

SERVERS = {"hypercorn": "gateway.http_server", "granian": "gateway.granian_server"}
LAST_WORDS_SECONDS = 1.0
"""How long the ends of streams, the aborts and the servers may take once the grace period is over."""


class Server:
    """A gateway, which runs from `begin` on. Raises StartError when the address cannot be had."""

    def __init__(
        self, config: Config, models: dict[str, Model], workers: list[WorkerAddress], policies: Policies
    ) -> None:
        adapters = load_adapters(config.lora, models)
        key_path = Path(config.api_keys) if config.api_keys else None
        keys = Keys(config.api_key, config.admin_key, key_path, (*models, *adapters))
        tls = server_tls(config)
        worker_tls = WorkerTls.of(config.worker_ca, config.worker_cert, config.worker_key)
        self._listener = listen(config)
        self._alarm = Alarm()
        supervisor = Supervisor(on_failure=lambda reason: self._alarm.ring(), holds=True)
        registry, router = Registry(), Router(policies, rules=breaker_rules(config))
        aliases = read_aliases(config.alias, {**models, **adapters})
        admit = functools.partial(admitted_model, models, aliases)
        cores = threading.Semaphore(os.cpu_count() or 1)
        tokenize = Pool("tokenize", config.tokenize_threads, supervisor, cores)
        vision = Pool("vision", config.vision_threads, supervisor, cores, rest_seconds=1.0, gives_way=True)
        cache = TokenCache(config.cache_mb << 20) if config.cache_mb else None
        self.gateway = Gateway(
            config=config,
            models=models,
            adapters=adapters,
            aliases=aliases,
            encoders={
                name: Encoder(model.tokenizer.library, Structure(model.tokenizer.library), cache, tokenize.share)
                for name, model in models.items()
            },
            router=router,
            engine=EngineThread(router, admit, registry.cells(), supervisor, config.health_seconds, worker_tls),
            tokenize=tokenize,
            vision=vision,
            visions=visions_of(config, models, registry),
            keys=keys,
            admission=Admission(config.max_concurrency, config.queue_size, config.queue_seconds),
            body_memory=ByteBudget(config.max_bodies_mb << 20),
            validators=Validators(),
            registry=registry,
            supervisor=supervisor,
        )
        add_gauges(self.gateway)
        add_limit_gauges(self.gateway)
        if cache is not None:
            add_cache_gauges(registry, cache)
        count_collections(registry.cells())
        worker_file = followed(config, self.gateway)
        self._watch = Watch(self.gateway, worker_file)
        self.embedded = [] if workers or worker_file else [self._embed(model) for model in models.values()]
        connect_all(self.gateway, workers)
        key_file = KeyFile(keys, key_path) if key_path else None
        self._reloader = Reloader([each for each in (key_file, tls) if each is not None], supervisor)
        self._scheme = "https" if tls else "http"
        serve = functools.partial(serve_with(config.server), App(self.gateway), settings=ServerSettings.of(config, tls))
        self._http = [HttpThread(number, serve, self._listener, supervisor) for number in range(config.http_threads)]

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"{self._scheme}://[{host}]:{port}" if ":" in host else f"{self._scheme}://{host}:{port}"

    def begin(self) -> None:
        """Until then this process has one thread."""
        self.gateway.supervisor.begin()

    def wait(self, timeout: float | None = None) -> bool:
        """Until a failure, or a signal once `end_on_signals` was called; False when `timeout` seconds have passed."""
        return self._alarm.wait(timeout)

    def end_on_signals(self) -> None:
        """Main thread only."""
        signal.set_wakeup_fd(self._alarm.fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # that there is a handler makes it write to the alarm

    def is_ready(self) -> bool:
        """Whether all HTTP loops are there, and a worker for every model."""
        return len(self.gateway.loops) == len(self._http) and not unready(self.gateway)

    def stop(self) -> int:
        """End everything in order and return the exit code. The engine's loop goes on until the process is gone."""
        supervisor = self.gateway.supervisor
        supervisor.ending = True
        for http in self._http:
            http.stop()
        self._listener.close()
        if supervisor.failure is None:
            self._alarm.clear()
            self._wait_for_requests(self.gateway.config.grace_seconds)
        error = Unavailable(supervisor.failure or "the gateway is shutting down")
        for loop in self.gateway.loops:
            loop.end_all(error)
        self._wait_for_requests(LAST_WORDS_SECONDS)
        self.gateway.engine.confirmed_aborts(LAST_WORDS_SECONDS)
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        for http in self._http:
            http.thread.join(max(0.0, deadline - time.monotonic()))
        self._watch.stop()
        self._reloader.stop()
        for executor in self.embedded:
            executor.stop(LAST_WORDS_SECONDS)
        return 0 if supervisor.failure is None else 1

    def _embed(self, model: Model) -> EmbeddedExecutor:
        if not (model.folder / "tokenizer.json").is_file():
            raise StartError(
                f"the embedded simulator needs a tokenizer.json, and {model.folder} has its tokenizer in another "
                "format; name an executor with --worker"
            )

        def connect(address: str) -> None:
            url = WorkerAddress.parse(f"step://{address}?model={model.name}&tls=false")
            self.gateway.engine.connect(url, f"embedded-{model.name}")

        return EmbeddedExecutor(model.name, model.folder, self.gateway.supervisor, connect)

    def _wait_for_requests(self, seconds: float) -> None:
        """Until none is active, `seconds` have passed, or another signal tells us to hurry."""
        deadline = time.monotonic() + seconds
        while count_active(self.gateway.loops) and time.monotonic() < deadline and not self._alarm.wait(0.01):
            pass


type Serve = Callable[[socket.socket, asyncio.Event], Coroutine[Any, Any, None]]


def serve_with(name: str) -> Callable[..., Coroutine[Any, Any, None]]:
    """An HTTP server's coroutine; raises StartError when its package is missing."""
    module = SERVERS[name]
    try:
        serve: Callable[..., Coroutine[Any, Any, None]] = importlib.import_module(module).serve
    except ImportError as error:
        raise StartError(f"--server {name} needs a package that is not installed: {error}") from error
    return serve


class HttpThread:
    """One HTTP event loop in a thread of its own, with its own duplicate of the listening socket."""

    def __init__(self, number: int, serve: Serve, listener: socket.socket, supervisor: Supervisor) -> None:
        self._serve = serve
        self._listener = listener.dup()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self.thread = supervisor.spawn(f"http-{number}", self._run)

    def stop(self) -> None:
        """From any thread: accept no more, and end when the open connections do."""
        try:
            self._loop.call_soon_threadsafe(self._stopping.set)
        except RuntimeError:
            pass  # its thread has died, and the loop with it

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(self._listener, self._stopping))


def admitted_model(
    models: dict[str, Model], aliases: dict[str, Model], address: WorkerAddress, info: EngineInfo
) -> str:
    """The served model that a worker's engine fits; raises WorkerUnfit."""
    known = {**aliases, **models}
    name = address.model or (info.model if info.model in known else None)
    if name is None and len(models) == 1:
        (name,) = models
    model = known.get(name or "")
    if model is None:
        raise WorkerUnfit(
            f"it serves {info.model!r}, and this gateway serves {', '.join(map(repr, models))}; "
            "say which one it is with ?model=NAME in the worker's URL"
        )
    theirs, ours = info.tokenizer_fingerprint, model.tokenizer.fingerprint
    if theirs and theirs != ours:
        raise WorkerUnfit(
            f"its tokenizer ({theirs.hex()[:16]}…) is not that of model {model.name!r} here ({ours.hex()[:16]}…): "
            "every token would mean something else; point both at the same model folder"
        )
    if problem := role_problem(address.role, info):
        raise WorkerUnfit(problem)
    return model.served_by


def breaker_rules(config: Config) -> BreakerRules | None:
    if not config.breaker_error_rate:
        return None
    return BreakerRules(
        config.breaker_error_rate, config.breaker_requests, config.breaker_window_seconds, config.breaker_open_seconds
    )


def connect_all(gateway: Gateway, workers: list[WorkerAddress]) -> None:
    """A worker that serves several models is one for each of them. Raises StartError."""
    times = Counter(map(str, workers))
    try:
        for address in workers:
            several = times[str(address)] > 1 and address.model
            gateway.engine.connect(address, f"{address}?model={address.model}" if several else None)
    except NameTaken as error:
        raise StartError(f"--worker: {error}; name each URL once") from error


def followed(config: Config, gateway: Gateway) -> WorkerFile | None:
    """The --worker-file, if there is one; raises StartError."""
    if not config.worker_file:
        return None
    try:
        return WorkerFile(Path(config.worker_file), gateway.engine, (*gateway.models, *gateway.aliases))
    except WorkerFileError as error:
        raise StartError(str(error)) from error


def visions_of(config: Config, models: dict[str, Model], registry: Registry) -> "Mapping[str, Vision]":
    """For each model that takes images; raises StartError."""
    processors = {
        name: (model.processor, model.tokenizer.id_of) for name, model in models.items() if model.processor is not None
    }
    if not processors:
        return {}
    multimodal = importlib.import_module("gateway.multimodal.vision")
    trusted()  # now, and not on the loop that fetches the first image
    try:
        visions: Mapping[str, Vision] = multimodal.visions_of(config, processors)
    except multimodal.VisionError as error:
        raise StartError(str(error)) from error
    cache = next(iter(visions.values())).cache
    if cache is not None:
        registry.gauge(IMAGE_CACHE_BYTES, lambda: [((), cache.bytes)])
        registry.gauge(IMAGE_CACHE_ENTRIES, lambda: [((), len(cache))])
    return visions


def run(config: Config, models: dict[str, Model], workers: list[WorkerAddress], policies: Policies) -> int:
    """Serve until a signal or a failure; returns the exit code. Raises StartError."""
    raise_open_files()
    server = Server(config, models, workers, policies)
    make_immortal()
    server.begin()
    server.end_on_signals()
    log.event(logging.INFO, f"listening on {server.url}")
    while not server.is_ready() and not server.wait(0.02):
        pass
    if server.is_ready():
        announce(server)
    server.wait()
    return server.stop()


def announce(server: Server) -> None:
    """The ready line, and a command to paste."""
    model = next(iter(server.gateway.models))
    key = '-H "authorization: Bearer $KEY" ' if server.gateway.keys.are_needed else ""
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    sys.stdout.write(
        f"Ready: {server.url}\n  curl -N {server.url}/v1/chat/completions "
        f"-H 'content-type: application/json' {key}\\\n    -d '{body}'\n"
    )
    sys.stdout.flush()
