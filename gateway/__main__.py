"""`python3.13t -m gateway`: checks the interpreter, switches the GIL off, and starts.

This file must parse on every Python 3, so that an old one gets the message below and not a syntax error.
"""

import os
import sys
import sysconfig

ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # our threads do that
    "GRPC_VERBOSITY": "NONE",  # of engines that we start: its log is about connections, of which ours tells more
}


def check_version() -> None:
    if sys.version_info < (3, 13):  # noqa: UP036
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"The gateway needs Python 3.13 or newer, and this is {version} ({sys.executable}).\n"
            "`make setup` provides a free-threaded 3.13; then run .venv/bin/python3.13t -m gateway"
        )


def switch_off_gil() -> None:
    """On a free-threaded build, start over with PYTHON_GIL=0 unless the GIL was chosen or refused explicitly.

    Importing tokenizers would otherwise switch it on: it does not declare that it can do without.
    """
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return
    if "PYTHON_GIL" in os.environ or "gil" in sys._xoptions:
        return
    os.environ["PYTHON_GIL"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> int:
    check_version()
    switch_off_gil()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from gateway import command

    return command.main(sys.argv[1:])


if __name__ == "__main__":
    # No interpreter shutdown: threads would run into a dying interpreter.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
