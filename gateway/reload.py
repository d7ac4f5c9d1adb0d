"""Files that are read again when they change: API keys, certificates.

Threads: its own, which is the only one to call `reload`.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gateway.threads import Supervisor

LOOK_SECONDS = 0.5


class Followed(Protocol):
    """Something that has been read from files."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Which."""

    def reload(self) -> None:
        """A file has changed; what makes no sense is logged and changes nothing."""


class Reloader:
    """Looks at the files twice a second."""

    def __init__(self, followed: Sequence[Followed], supervisor: Supervisor) -> None:
        self._stamps = {each: stamps(each) for each in followed}
        self._stopped = threading.Event()
        if followed:
            supervisor.spawn("reload", self._run)

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            for each, before in self._stamps.items():
                now = stamps(each)
                if now != before:
                    self._stamps[each] = now
                    each.reload()


def stamps(followed: Followed) -> list[tuple[int, int, int]]:
    """Differ when a file has been written or replaced."""
    return [stamp(path) for path in followed.paths]


def stamp(path: Path) -> tuple[int, int, int]:
    """Differs when the file has been written or replaced."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_ino, status.st_size
