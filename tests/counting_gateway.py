"""The gateway with one thing added: for each line on standard input it writes how many tasks are unfinished."""

import os
import sys
import threading
from asyncio.tasks import _scheduled_tasks

from gateway import command


def count_tasks() -> None:
    for _ in sys.stdin:
        sys.stdout.write(f"tasks: {unfinished_tasks()}\n")
        sys.stdout.flush()


def unfinished_tasks() -> int:
    """Not from gc.get_objects: what that does to other threads is in gateway/immortal.py."""
    while True:
        try:
            return sum(not task.done() for task in [*_scheduled_tasks])
        except RuntimeError:  # another one began meanwhile
            continue


threading.Thread(target=count_tasks, name="counter", daemon=True).start()
os._exit(command.main(sys.argv[1:]))
