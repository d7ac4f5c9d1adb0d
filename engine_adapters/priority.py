"""Threads that give way to others of their process where both want the same core."""

import os
import threading

NICENESS = 10
"""A tenth of the core while others want all of it, all of it when none does. By measurement (docs/performance.md): 5 is
too little, 15 brings no more."""


def give_way() -> None:
    """Have the kernel prefer all other threads to this one. For long work that nobody waits for token by token: event
    loops share its core, and on 3.13t whoever meets a lock that is held yields up to 40 times, each time to such work
    for 4 ms."""
    try:
        # Not this thread's plus so much: a thread begins with that of the one that started it, who may give way too.
        own = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), own + NICENESS)
    except (OSError, AttributeError):
        pass  # elsewhere than on Linux a thread has no priority of its own
