"""The set-up: what it says about a bare machine, what its locks hold, and that a cut-off stage goes on where it was."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "setup"
LOCKS = [SETUP / name for name in ("gateway.lock", "tools.lock", "build.lock")]

# What every Debian and Ubuntu has, however small (packages of priority `required`), and nothing else.
ALWAYS_THERE = (
    "bash awk cat chmod cp cut df dirname env find flock getconf grep head ln mkdir mv nproc readlink rm sed sha256sum "
    "sleep sort tail tar timeout touch tr uname"
).split()


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a fresh machine: an empty home, and a PATH with the bare necessities."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ALWAYS_THERE:
        if found := shutil.which(name):
            (commands / name).symlink_to(found)
    (commands / "apt-get").symlink_to("/bin/true")
    return {
        "PATH": str(commands),
        "HOME": str(tmp_path),
        "GATEWAY_CACHE": str(tmp_path / "cache"),
        "GATEWAY_WHEELHOUSE": "",
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone in which nothing was set up."""
    shutil.copytree(SETUP, tmp_path / "checkout" / "setup")
    return tmp_path / "checkout"


def bash(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(shutil.which("bash")), "-euo", "pipefail", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)


def bootstrap(checkout: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(shutil.which("bash")), str(checkout / "setup" / "bootstrap.sh"), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)


def test_a_bare_machine_is_told_everything_it_lacks_at_once(checkout: Path, bare: dict[str, str]) -> None:
    done = bootstrap(checkout, bare, "--tools")
    assert done.returncode == 1
    for missing in ("gcc", "g++", "make", "xz", "cargo >= 1.", "CPython from 3.10"):
        assert f"  - {missing}" in done.stderr or f"  - a {missing}" in done.stderr
    [install] = re.findall(r"apt-get install (.*)", done.stderr)
    assert {"gcc", "g++", "make", "xz-utils", "gpgv", "python3-venv"} <= set(install.split())


def test_only_what_the_stages_ahead_need_is_asked_for(bare: dict[str, str]) -> None:
    planned = f"""
        HERE={SETUP} CACHE=$GATEWAY_CACHE FREE_WHEELS=$GATEWAY_CACHE PYTHON= BUILT_WHEELS=(tokenizers grpcio)
        for file in preflight interpreter wheels environments; do . "$HERE/$file.sh"; done
        mkdir -p "$FREE_WHEELS"
        for name in $HAVE; do touch "$FREE_WHEELS/$name-$(locked $name $HERE/gateway.lock)-cp313-cp313t-linux.whl"; done
        plan_built_wheels
        printf '%s\\n' "${{missing[@]}}"
    """
    assert "cargo" in bash(planned, bare | {"HAVE": "grpcio"}).stdout
    assert "g++" in bash(planned, bare | {"HAVE": "grpcio"}).stdout
    assert "cargo" not in bash(planned, bare | {"HAVE": "tokenizers"}).stdout
    assert "g++" not in bash(planned, bare | {"HAVE": "tokenizers grpcio"}).stdout


def test_an_interpreter_that_does_not_fit_is_an_error_that_names_it(checkout: Path, bare: dict[str, str]) -> None:
    done = bootstrap(checkout, bare | {"GATEWAY_PYTHON": "/bin/false"})
    assert done.returncode == 1
    assert "GATEWAY_PYTHON=/bin/false is not a complete free-threaded CPython 3.13" in done.stderr


def test_a_second_set_up_waits_for_the_first(checkout: Path, bare: dict[str, str]) -> None:
    cache = Path(bare["GATEWAY_CACHE"])
    cache.mkdir()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [str(shutil.which("bash")), str(checkout / "setup" / "bootstrap.sh")]
        second = subprocess.Popen(command, env=bare, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert second.stdout.readline() == f"another set-up is using {cache}: waiting for it\n"
        assert second.poll() is None
    assert "this machine lacks" in second.communicate(timeout=50)[1]


def test_a_failed_stage_shows_the_end_of_its_log_and_the_remedy(tmp_path: Path, bare: dict[str, str]) -> None:
    done = bash(
        f'CACHE={tmp_path}; . {SETUP}/stage.sh; stage "a build" 5 "Try harder." sh -c "echo no luck; exit 3"',
        bare | os.environ,
    )
    assert done.returncode == 1
    assert "| no luck" in done.stderr
    assert "Try harder." in done.stderr


def test_a_cut_off_build_compiles_only_what_it_had_not_compiled(tmp_path: Path, bare: dict[str, str]) -> None:
    compiler = tmp_path / "bin" / "gcc"
    compiler.write_text('#!/bin/sh\necho "$@" >>"$HOME/compiled"\nwhile [ "$1" != -o ]; do shift; done\n: >"$2"\n')
    compiler.chmod(0o755)
    build = f"""
        WORK={tmp_path}/work; . {SETUP}/wheels.sh; write_resuming_compiler gcc
        for name in one two; do "$WORK/bin/resuming-gcc" -c $name.c -o "$HOME/$name.o"; done
    """
    (tmp_path / "one.o").touch()
    done = bash(build, bare)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in (tmp_path / "compiled").read_text().splitlines()] == ["two.c"]
    assert (tmp_path / "two.o").exists()


def test_a_wheelhouse_file_counts_only_when_it_has_the_hash_it_should(tmp_path: Path, bare: dict[str, str]) -> None:
    house = tmp_path / "wheelhouse"
    house.mkdir()
    (house / "good-2.whl").write_bytes(b"good")
    (house / "good-3.whl").write_bytes(b"tampered with")
    digest = hashlib.sha256(b"good").hexdigest()
    (house / "SHA256SUMS").write_text(f"{digest}  good-2.whl\n{digest}  good-3.whl\n")
    done = bash(f"WHEELHOUSE={house}; . {SETUP}/interpreter.sh; from_wheelhouse 'good-*.whl'", bare)
    assert done.stdout == f"{house}/good-2.whl\n"
    assert "good-3.whl is not what its SHA256SUMS says" in done.stderr


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_holds_versions_and_hashes_and_no_addresses(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    assert len(entries) >= 5
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==[^ ]+( ; .*)? \\\n", entry)
        assert "--hash=sha256:" in entry


def test_the_lock_leaves_out_only_what_is_built_here(bare: dict[str, str]) -> None:
    script = f". {SETUP}/wheels.sh; entries {SETUP}/gateway.lock {{}} tokenizers grpcio"
    built = bash(script.format("only"), bare).stdout
    others = bash(script.format("without"), bare).stdout
    assert re.findall(r"^([a-z-]+)==", built, re.MULTILINE) == ["grpcio", "tokenizers"]
    assert len(built) + len(others) == len((SETUP / "gateway.lock").read_text())
