"""The interpreters that are compared: found in the checkout's virtual environments, with how they were built.

Every `.venv*` that has what the gateway imports counts, so a `.venv-3.14t` made by hand is measured too. One that is
free-threaded counts twice, with the GIL off and on.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.__main__ import ENVIRONMENT
from perf.machine import ROOT

PROBE = """
import json, platform, sys, sysconfig
from importlib.metadata import distribution
import grpc, hypercorn, jinja2, starlette, tokenizers
read = sysconfig.get_config_var
arguments = read("CONFIG_ARGS") or ""
flags = f"{read('OPT')} {read('CONFIGURE_CFLAGS') or ''}"
facts = {
    "version": platform.python_version() + ("t" if read("Py_GIL_DISABLED") else ""),
    "compiler": platform.python_compiler(),
    "configure": arguments,
    "optimisation": " ".join(sorted({flag for flag in flags.split() if flag.startswith("-O") or flag == "-DNDEBUG"})),
    "PGO": "yes" if "--enable-optimizations" in arguments else "no",
    "LTO": "yes" if "--with-lto" in arguments or "-flto" in (read("PY_LDFLAGS") or "") else "no",
    "shared library": "yes" if read("Py_ENABLE_SHARED") else "no",
}
for name in ("grpcio", "tokenizers"):
    found = distribution(name)
    wheel = found.read_text("WHEEL") or ""
    tags = [line.partition(": ")[2] for line in wheel.splitlines() if line.startswith("Tag: ")]
    built = "published" if "manylinux" in tags[0] else "built here"
    facts[name] = f"{found.version} ({tags[0]}, {built})"
print(json.dumps([facts, bool(read("Py_GIL_DISABLED")), list(sys.version_info[:2])]))
"""
ALIKE = ("optimisation", "PGO", "LTO", "shared library", "compiler", "grpcio", "tokenizers")
"""Facts that make a comparison of interpreters unfair where they differ."""


@dataclass(frozen=True)
class Build:
    """An interpreter with its GIL on or off. `name` is "3.13", "3.13t" or "3.13t GIL on"."""

    name: str
    python: str
    has_gil: bool
    facts: dict[str, str] = field(compare=False, default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        switch = {"PYTHON_GIL": str(int(self.has_gil))} if self.is_free_threaded else {}
        return {**without_choice(), **ENVIRONMENT, **switch}

    @property
    def is_free_threaded(self) -> bool:
        """Whether it could do without a GIL."""
        return self.name.partition(" ")[0].endswith("t")


def without_choice() -> dict[str, str]:
    """Our environment, without what says whether our own GIL is on."""
    return {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}


def helper(builds: Sequence[Build]) -> Build:
    """What the load and the simulated engines run on, the same for all arms: a GIL build, as engines' Pythons are."""
    return next((build for build in builds if not build.is_free_threaded), builds[0])


def find() -> list[Build]:
    """Free-threaded ones first; raises RuntimeError when there is none."""
    builds: dict[str, Build] = {}
    for python in sorted(ROOT.glob(".venv*/bin/python")):
        try:
            done = subprocess.run(
                [python, "-W", "ignore", "-c", PROBE],
                env=without_choice(),
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            continue  # an environment for something else
        facts, is_free_threaded, version = json.loads(done.stdout)
        name = ".".join(map(str, version)) + ("t" if is_free_threaded else "")
        builds.setdefault(name, Build(name, str(python), not is_free_threaded, facts))
        if is_free_threaded:
            builds.setdefault(f"{name} GIL on", Build(f"{name} GIL on", str(python), True, facts))
    if not builds:
        raise RuntimeError("no environment with the gateway's packages; run `make setup`")
    return sorted(builds.values(), key=lambda build: (build.has_gil, not build.is_free_threaded))


def differences(builds: list[Build]) -> list[str]:
    """What the builds do not have in common though they should, one sentence each."""
    found = []
    for fact in ALIKE:
        values: dict[str, list[str]] = {}
        for build in builds:
            values.setdefault(_comparable(fact, build.facts.get(fact, "?")), []).append(build.name)
        if len(values) > 1:
            found.append(f"{fact}: " + "; ".join(f"{', '.join(names)}: {value}" for value, names in values.items()))
    return found


def _comparable(fact: str, value: str) -> str:
    """A wheel's tags name the interpreter, which differs of course."""
    if fact not in ("grpcio", "tokenizers"):
        return value
    version, _, rest = value.partition(" (")
    return f"{version}, {rest.rpartition(', ')[2].rstrip(')')}"
