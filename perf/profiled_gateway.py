"""`python3.13t -m perf.profiled_gateway SWITCH DUMP …`: a gateway that writes its running thread's stack to DUMP.

While the pipe SWITCH has told "1" last, the kernel's CPU clock interrupts whichever thread is using it, and
faulthandler writes that thread's Python stack from within the signal: no safe point is waited for, and time spent
waiting is not seen.
"""

import faulthandler
import os
import signal
import sys
import threading

from gateway.__main__ import ENVIRONMENT

PERIOD_SECONDS = 0.001
"""As short as the kernel's tick allows: it rounds up, to 4 ms on most."""


def main() -> int:
    os.environ.update(ENVIRONMENT)
    from gateway import command

    switch, dump = sys.argv[1], open(sys.argv[2], "wb", buffering=0)
    # Chained, to nothing: only a chained handler puts errno back, which the thread may be about to read.
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    faulthandler.register(signal.SIGPROF, file=dump, all_threads=False, chain=True)
    threading.Thread(target=obey, args=(switch,), daemon=True).start()
    return command.main(sys.argv[3:])


def obey(switch: str) -> None:
    while True:
        with open(switch) as pipe:
            period = PERIOD_SECONDS if pipe.read() == "1" else 0.0
        signal.setitimer(signal.ITIMER_PROF, period, period)


if __name__ == "__main__":
    sys.exit(main())
