"""Memory that a gateway shares with executors on its host: memfds, opened by the executor through the gateway's /proc.

The kernel frees a memfd when nobody has it open or mapped any more: a process that is killed leaves nothing behind.
"""

import fcntl
import functools
import mmap
import os
import queue
import sys
import threading
from typing import Any

from engine_adapters.image import MemoryFile
from engine_adapters.priority import give_way

PROBE_BYTES = 32
UNTRACKED: "dict[str, Any]" = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""Without it a mapping keeps a second file open."""
POPULATE = getattr(mmap, "MAP_POPULATE", 0)
"""All pages at once: one by one, as they are first written, takes twice as long."""
_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_SEAL_SHRINK = getattr(fcntl, "F_SEAL_SHRINK", 0x2)
_SEAL_GROW = getattr(fcntl, "F_SEAL_GROW", 0x4)


class Reaper:
    """A thread that lets go of things: the kernel takes 20 ms to free 100 MB, and whoever held a picture last may be an
    event loop. It is started when there is something for the first time.

    Threads: any may call `take`, also in a finalizer.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_there = False

    def start(self) -> None:
        with self._lock:
            if not self._is_there:
                self._is_there = True
                threading.Thread(target=self._run, name="reaper", daemon=True).start()

    def take(self, thing: object) -> None:
        self._queue.put(thing)

    def _run(self) -> None:
        give_way()
        while True:
            thing = self._queue.get()
            if isinstance(thing, functools.partial):
                thing()
            del thing


REAPER = Reaper()


class Mapping(mmap.mmap):
    """Is unmapped by the reaper."""

    def __del__(self) -> None:
        REAPER.take(self)


class OpenFile:
    """Is closed by the reaper when it is not needed any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        REAPER.start()

    def __del__(self) -> None:
        REAPER.take(functools.partial(os.close, self.fd))


def share(size: int) -> "tuple[memoryview, MemoryFile]":
    """`size` bytes, at least one, to be written, and where others find them for as long as somebody holds the
    MemoryFile. Raises OSError when no more files can be open, AttributeError where there are no memfds."""
    file = OpenFile(os.memfd_create("gateway-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(file.fd, size)
    # Who maps it relies on its size: reading behind the end of a file kills a process.
    fcntl.fcntl(file.fd, _ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW)
    view = memoryview(Mapping(file.fd, size, flags=mmap.MAP_SHARED | POPULATE, **UNTRACKED))
    return view, MemoryFile(os.getpid(), file.fd, os.fstat(file.fd).st_ino, size, file)


def probe() -> "tuple[bytes, MemoryFile] | None":
    """(content, place) of something for an executor to try its eyes on; None where memory cannot be shared."""
    content = os.urandom(PROBE_BYTES)
    try:
        view, file = share(PROBE_BYTES)
    except (OSError, AttributeError):
        return None
    view[:] = content
    return content, file


def read(file: MemoryFile) -> memoryview:
    """What another process shares, mapped read-only. Raises OSError when it is not there, or not that file any more."""
    REAPER.start()
    fd = os.open(f"/proc/{file.pid}/fd/{file.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if (found.st_ino, found.st_size) != (file.inode, file.size):
            raise FileNotFoundError(f"the memory file {file.fd} of process {file.pid} is another one by now")
        if not fcntl.fcntl(fd, _GET_SEALS) & _SEAL_SHRINK:
            raise PermissionError(f"the memory file {file.fd} of process {file.pid} may shrink")
        return memoryview(Mapping(fd, file.size, prot=mmap.PROT_READ, **UNTRACKED))
    finally:
        os.close(fd)
