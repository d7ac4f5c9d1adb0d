"""`python3.13t -m perf.profiled_gateway DUMP …`: a gateway that writes its running thread's stack to DUMP.

Between START and STOP the kernel's CPU clock interrupts whichever thread is using it, and faulthandler writes that
thread's Python stack from within the signal: no safe point is waited for, and time spent waiting is not seen.
"""

import faulthandler
import os
import signal
import sys

from gateway.__main__ import ENVIRONMENT

START, STOP = signal.SIGUSR1, signal.SIGUSR2
PERIOD_SECONDS = 0.001
"""As short as the kernel's tick allows: it rounds up, to 4 ms on most."""


def main() -> int:
    os.environ.update(ENVIRONMENT)
    from gateway import command

    dump = open(sys.argv[1], "wb", buffering=0)
    # Chained to nothing: only a chained handler puts errno back, which system calls of the thread may be about to read.
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    faulthandler.register(signal.SIGPROF, file=dump, all_threads=False, chain=True)
    signal.signal(START, lambda *_: signal.setitimer(signal.ITIMER_PROF, PERIOD_SECONDS, PERIOD_SECONDS))
    signal.signal(STOP, lambda *_: signal.setitimer(signal.ITIMER_PROF, 0))
    return command.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
