"""`--worker-file`: workers listed in a TOML or JSON file, followed while it changes.

    [[worker]]
    url = "step://10.0.0.5:9000?weight=2"
    name = "a"           # the URL without its options, if left out
    draining = false
    labels = { rack = "7" }

Threads: made on the main thread; from then on the watch's.
"""

import json
import logging
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway import log
from gateway.engines import EngineThread
from gateway.reload import stamp
from gateway.routing import AddressError, NameTaken, Worker, WorkerAddress

FIELDS = {"url": str, "name": str, "draining": bool, "labels": dict}


class WorkerFileError(ValueError):
    """The file cannot be read or makes no sense; the message says where and how."""


@dataclass(frozen=True, slots=True)
class Entry:
    address: WorkerAddress
    draining: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


class WorkerFile:
    """Raises WorkerFileError when it cannot be read now; later, what it said last goes on to count."""

    def __init__(self, path: Path, engine: EngineThread, models: Iterable[str]) -> None:
        self._path = path
        self._engine = engine
        self._models = frozenset(models)
        self._stamp = stamp(path)
        self._wanted = read(path, self._models)
        self._applied: dict[str, Entry] = {}

    def follow(self) -> None:
        """Read the file again if it has changed, and bring the workers in line with it."""
        now = stamp(self._path)
        if now != self._stamp:
            self._stamp = now
            try:
                self._wanted = read(self._path, self._models)
                log.event(logging.INFO, f"read {self._path} again", workers=len(self._wanted))
            except WorkerFileError as error:
                log.event(logging.ERROR, f"the workers stay as they are: {error}")
        self._reconcile()

    def _reconcile(self) -> None:
        """A worker that is somewhere else now goes first, and comes back under its name when it is gone."""
        router = self._engine.router
        there = {worker.name: worker for worker in router.snapshot()}
        for name in self._applied.keys() - self._wanted.keys():
            del self._applied[name]
            if name in there:
                router.leave(there[name])
        for name, entry in self._wanted.items():
            worker, before = there.get(name), self._applied.get(name)
            if worker is None:
                self._connect(name, entry)
            elif worker in router.leaving or before == entry:
                continue
            elif replace(worker.address, weight=1.0) != replace(entry.address, weight=1.0):
                router.leave(worker)
            else:
                self._change(worker, entry)

    def _connect(self, name: str, entry: Entry) -> None:
        with suppress(NameTaken):  # somebody else was faster; the next look finds that one
            self._change(self._engine.connect(entry.address, name), entry)

    def _change(self, worker: Worker, entry: Entry) -> None:
        self._applied[worker.name] = entry
        self._engine.router.set_weight(worker, entry.address.weight)
        self._engine.router.set_labels(worker, entry.labels)
        self._engine.router.drain(worker, entry.draining)


def read(path: Path, models: frozenset[str]) -> dict[str, Entry]:
    """The workers of a file by name; raises WorkerFileError."""
    try:
        text = path.read_text("utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise WorkerFileError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise WorkerFileError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    listed = values.get("worker", []) if isinstance(values, dict) else None
    if not isinstance(listed, list) or set(values) - {"worker"}:
        raise WorkerFileError(f"{path} must have a list `worker` and nothing else")
    entries: dict[str, Entry] = {}
    for index, value in enumerate(listed):
        name, entry = read_entry(value, f"{path}: worker[{index}]", models)
        if name in entries:
            raise WorkerFileError(f"{path}: worker[{index}]: there is a worker {name!r} already; give it another name")
        entries[name] = entry
    return entries


def read_entry(value: Any, place: str, models: frozenset[str]) -> tuple[str, Entry]:
    if not isinstance(value, dict) or "url" not in value:
        raise WorkerFileError(f"{place} must have a url")
    for key, item in value.items():
        if key not in FIELDS or not isinstance(item, FIELDS[key]):
            kinds = ", ".join(f"{name} ({kind.__name__})" for name, kind in FIELDS.items())
            raise WorkerFileError(f"{place}.{key} cannot be {item!r}; there is {kinds}")
    try:
        address = WorkerAddress.parse(value["url"])
    except AddressError as error:
        raise WorkerFileError(f"{place}.url: {error}") from error
    if address.model is not None and address.model not in models:
        raise WorkerFileError(f"{place}.url names the model {address.model!r}, which is not served here")
    labels = value.get("labels", {})
    if not all(isinstance(text, str) for text in (*labels, *labels.values())):
        raise WorkerFileError(f"{place}.labels must be texts by name")
    return value.get("name", str(address)), Entry(address, value.get("draining", False), labels)
