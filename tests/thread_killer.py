"""The gateway with one thing added: each line on standard input names a thread, and that thread gets a SystemExit.

The exception is raised when the thread next runs Python code, so a thread that waits has to be woken by the test.
"""

import ctypes
import os
import sys
import threading

from gateway import command


def kill_named_threads() -> None:
    for line in sys.stdin:
        for thread in threading.enumerate():
            if thread.name == line.strip() and thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


threading.Thread(target=kill_named_threads, name="killer", daemon=True).start()
os._exit(command.main(sys.argv[1:]))
