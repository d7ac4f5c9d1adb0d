"""`python -m gateway` before it serves: the interpreter's version, the GIL, the help, the doctor."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway import doctor
from tests.executor import FakeExecutor, demo_info
from tests.processes import GIL_ARGUMENTS, IS_FREE_THREADED_BUILD, ROOT, Gateway, environment

needs_free_threading = pytest.mark.skipif(not IS_FREE_THREADED_BUILD, reason="this build has a GIL in any case")
needs_a_gil = pytest.mark.skipif(IS_FREE_THREADED_BUILD, reason="this build can do without the GIL")


def run(
    *arguments: str, python: Path | str = sys.executable, **changes: str | None
) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "gateway", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**changes), capture_output=True, text=True, timeout=60, check=False
    )


def version_of(python: str) -> tuple[int, ...]:
    command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    environ = environment(PYTHON_GIL=None)
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    return tuple(map(int, result.stdout.split())) if result.returncode == 0 else ()


@pytest.fixture(scope="module")
def old_pythons(tools_python: Path) -> list[str]:
    """Interpreters here that are older than the gateway asks for."""
    names = [str(tools_python), *(shutil.which(f"python3.{minor}") or "" for minor in (8, 9, 10, 11, 12))]
    return [name for name in names if name and (0,) < version_of(name) < (3, 13)]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The doctor's findings about this installation, with one good worker and two that are not."""
    strange, later = demo_info(tokenizer_fingerprint=b"\1" * 32), demo_info(protocol_version=99)
    with FakeExecutor() as one, FakeExecutor(info=strange) as two, FakeExecutor(info=later) as three:
        workers = [one.url, two.url, three.url]
        result = run("doctor", "--json", *(word for url in workers for word in ("--worker", url)), PYTHON_GIL=None)
    assert result.returncode == 1, "there are problems"
    found: dict[str, Any] = json.loads(result.stdout)
    return found | {"urls": workers}


def test_an_older_python_gets_a_clear_message(old_pythons: list[str]) -> None:
    if not old_pythons:
        pytest.skip("no Python older than 3.13 here")
    for python in old_pythons:
        result = run(python=python, PYTHON_GIL=None)

        assert result.returncode == 1
        assert result.stderr.startswith("The gateway needs Python 3.13 or newer, and this is 3.")
        assert "make setup" in result.stderr
        assert "Traceback" not in result.stderr


@needs_free_threading
def test_it_switches_the_gil_off_by_itself(report: dict[str, Any]) -> None:
    assert report["interpreter"]["gil_enabled_now"] is False


@needs_free_threading
def test_with_the_gil_left_to_itself_it_serves() -> None:
    with FakeExecutor() as executor:
        with Gateway(workers=[executor.url], env=environment(PYTHON_GIL=None)) as gateway:
            gateway.wait_until_ready()


@needs_free_threading
@pytest.mark.parametrize("how", ["PYTHON_GIL", "-X gil"])
def test_it_refuses_to_serve_with_the_gil_on(how: str) -> None:
    if how == "PYTHON_GIL":
        result = run("--port", "0", PYTHON_GIL="1")
    else:
        command = [sys.executable, "-X", "gil=1", "-m", "gateway", "--port", "0"]
        environ = environment(PYTHON_GIL=None)
        result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 2
    assert "gateway: the GIL is on" in result.stderr
    assert "--allow-gil" in result.stderr


@needs_free_threading
def test_with_allow_gil_it_serves_all_the_same() -> None:
    with FakeExecutor() as executor:
        workers = [executor.url]
        with Gateway("--allow-gil", workers=workers, env=environment(PYTHON_GIL="1")) as gateway:
            gateway.wait_until_ready()


@needs_a_gil
def test_a_build_with_a_gil_refuses_without_allow_gil() -> None:
    result = run("--port", "0")

    assert result.returncode == 2
    assert "make setup" in result.stderr
    assert "--allow-gil" in result.stderr


def test_the_help_names_every_option_and_command() -> None:
    result = run("--help")

    assert result.returncode == 0
    for word in ("--host", "--port", "--model-path", "--worker", "--config", "--grace-seconds", "doctor"):
        assert word in result.stdout
    assert all(len(line) <= 120 for line in result.stdout.splitlines())


@pytest.mark.slow
def test_a_parser_that_is_not_there_is_refused_with_those_that_are() -> None:
    for option in ("--tool-parser", "--reasoning-parser"):
        result = run(*GIL_ARGUMENTS, option, "qwen4", "--port", "0")
        assert result.returncode == 2
        assert "qwen4" in result.stderr and "kimi_k2" in result.stderr and "qwen3" in result.stderr

    assert "no model is named 'other'" in run(*GIL_ARGUMENTS, "--tool-parser", "other=hermes", "--port", "0").stderr


def test_the_doctor_tells_how_answers_are_read(report: dict[str, Any]) -> None:
    (parsers,) = report["parsers"]
    assert parsers["tool_parser"] == "hermes" and "<tool_call>" in parsers["tool_parser_why"]
    assert "tools hermes" in doctor.in_words(report)


def test_the_doctor_tells_the_interpreter_and_the_gil(report: dict[str, Any]) -> None:
    interpreter = report["interpreter"]

    assert interpreter["free_threaded_build"] is IS_FREE_THREADED_BUILD
    assert interpreter["gil_enabled_now"] is not IS_FREE_THREADED_BUILD
    assert interpreter["version"].startswith("3.")
    assert interpreter["cores"] >= 1


def test_the_doctor_tells_what_each_package_does_to_the_gil(report: dict[str, Any]) -> None:
    packages = {package["name"]: package for package in report["packages"]}

    assert {"grpcio", "tokenizers", "jinja2", "starlette", "hypercorn"} <= packages.keys()
    assert packages["grpcio"]["version"] and packages["grpcio"]["error"] is None
    assert packages["starlette"]["gil_after_import"] is not IS_FREE_THREADED_BUILD
    assert packages["grpcio"]["would_enable_gil"] is IS_FREE_THREADED_BUILD


def test_the_doctor_tells_what_is_in_the_models_folder(report: dict[str, Any]) -> None:
    (model,) = report["models"]

    assert model["tokenizer_file"] == "tokenizer.json"
    assert [*model["eos"].values()] == ["<|im_end|>", "<|endoftext|>"]
    assert model["before_texts"] == {}
    assert model["chat_templates"]["default"]["content_parts"] == ["assistant", "system", "tool", "user"]
    assert model["chat_templates"]["default"]["tools"] is True
    assert model["warnings"] == []
    lines = doctor.in_words(report)
    assert "chat template default: tools, parts from assistant, system, tool, user; arguments as objects" in lines


def test_the_doctor_measures_the_tokenizer(report: dict[str, Any]) -> None:
    (speed,) = report["tokenizers"]

    assert speed["model"] == "demo"
    assert speed["one_thread_mb_per_s"] > 0
    assert speed["all_threads_mb_per_s"] > 0
    assert len(speed["fingerprint"]) == 64


def test_the_doctor_asks_the_workers(report: dict[str, Any]) -> None:
    good, strange, later = report["workers"]

    assert good["problem"] is None and good["engine"] == "fake 1"
    assert "another tokenizer" in strange["problem"]
    assert "speaks version 99" in later["problem"]
    assert len(report["problems"]) == 2 + (not IS_FREE_THREADED_BUILD)


def test_the_doctor_speaks_to_people_too(report: dict[str, Any]) -> None:
    words = doctor.in_words(report)

    assert f"GIL {'off' if IS_FREE_THREADED_BUILD else 'on'}" in words
    assert f"{report['urls'][0]}: reached, fake 1" in words
    assert f"PROBLEM: worker {report['urls'][1]} has another tokenizer" in words
    assert "No problems found." in doctor.in_words(report | {"problems": []})
