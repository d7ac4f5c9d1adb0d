"""The gateway with one thing added: for each line on standard input it writes how many tasks are unfinished."""

import asyncio
import gc
import os
import sys
import threading

from gateway import command


def count_tasks() -> None:
    for _ in sys.stdin:
        unfinished = sum(isinstance(each, asyncio.Task) and not each.done() for each in gc.get_objects())
        sys.stdout.write(f"tasks: {unfinished}\n")
        sys.stdout.flush()


threading.Thread(target=count_tasks, name="counter", daemon=True).start()
os._exit(command.main(sys.argv[1:]))
