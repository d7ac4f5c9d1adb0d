"""What a gateway's threads share is immortal: nobody counts references to it. In processes of their own, which the rest
of the tests do not want to be immortal in."""

import subprocess
import sys
import sysconfig
import textwrap

import pytest

is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
no_gil = pytest.mark.skipif(not is_free_threaded or sys._is_gil_enabled(), reason="only without a GIL")

PRELUDE = """
import gc, sys, threading, weakref
from gateway.immortal import IMMORTAL, make_immortal

class Thing:
    pass

def is_immortal(thing):
    return sys.getrefcount(thing) == IMMORTAL

def on_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
"""


def run(script: str, *options: str) -> None:
    command = [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(script)]
    subprocess.run(command, check=True, timeout=60)


@no_gil
def test_what_is_there_is_immortal_and_all_that_hangs_on_it() -> None:
    run("""
        import re
        thing = Thing()
        gc.freeze()
        thing.pattern = re.compile("a+")
        match = re.compile("b+").match
        thing.deep = [{"key": (b"bytes %d" % 1, 1e9 + 1, lambda: thing)}]
        ((data, number, function),) = [each["key"] for each in thing.deep]
        plain = str.join
        assert make_immortal() > 1000
        ours = thing, thing.pattern, match.__self__, thing.deep, data, number, function, Thing
        for each in (*ours, plain, dict.__dict__["get"]):
            assert is_immortal(each), each
        assert make_immortal() < 1000
    """)


@no_gil
def test_what_comes_later_and_what_other_threads_made_ends_as_ever() -> None:
    run("""
        others = []
        on_a_thread(lambda: others.append(Thing()))
        make_immortal()
        assert not is_immortal(others[0])
        for dying in (weakref.ref(others.pop()), weakref.ref(Thing())):
            assert dying() is None
        cycle = Thing()
        cycle.itself = cycle
        gone = weakref.ref(cycle)
        del cycle
        gc.collect()
        assert gone() is None
    """)


def test_a_gateway_has_one_thread_while_it_is_done() -> None:
    run("""
        import os
        from gateway import command, server
        server.make_immortal = lambda: os._exit(threading.active_count() - 1)
        command.main(["--port", "0", "--api-key", "k", "--worker", "step://127.0.0.1:1"])
    """)


def test_with_a_gil_nothing_is_done() -> None:
    options = ("-X", "gil=1") if is_free_threaded else ()
    run("assert make_immortal() == 0 and not is_immortal(Thing())", *options)
