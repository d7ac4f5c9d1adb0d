"""Log lines: for people, or one JSON object each."""

import json
import logging
from collections.abc import Iterator

import pytest

from gateway import log


@pytest.fixture
def restored() -> Iterator[None]:
    """The loggers as they were, afterwards."""
    before = [(source, source.handlers[:], source.propagate, source.level) for source in log.SOURCES]
    yield
    for source, handlers, propagate, level in before:
        source.handlers[:], source.propagate = handlers, propagate
        source.setLevel(level)


@pytest.mark.usefixtures("restored")
def test_json_lines_have_time_level_message_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "info")
    log.event(logging.WARNING, 'two\nlines and "quotes" é', id="x", empty="", zero=0)
    log.event(logging.DEBUG, "not shown")

    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {"level": "WARNING", "message": 'two\nlines and "quotes" é', "id": "x", "zero": 0}


@pytest.mark.usefixtures("restored")
def test_lines_for_people_have_the_fields_behind_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("human", "debug")
    log.event(logging.INFO, "worker is ready", model="demo", reason="")

    assert capsys.readouterr().err.split(" ", 1)[1] == "INFO    worker is ready model=demo\n"


@pytest.mark.parametrize("log_format", ["json", "human"])
@pytest.mark.usefixtures("restored")
def test_an_exception_is_told_with_its_traceback(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    log.configure(log_format, "info")
    try:
        raise ValueError("deep down")
    except ValueError:
        log.logger.exception("it failed")

    output = capsys.readouterr().err
    assert "ValueError: deep down" in output and "Traceback" in output
    if log_format == "json":
        assert json.loads(output)["message"] == "it failed"


@pytest.mark.usefixtures("restored")
def test_what_engine_adapters_say_is_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("human", "info")
    logging.getLogger("engine_adapters.trtllm").info("%s does without %s", "gpu-1", "GetLoad")

    assert capsys.readouterr().err.split(" ", 1)[1] == "INFO    gpu-1 does without GetLoad\n"


@pytest.mark.usefixtures("restored")
def test_what_admins_do_is_told_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("human", "error")
    log.event(logging.WARNING, "not shown")
    log.audit("PATCH /admin/pools 200", admin="ops")

    assert capsys.readouterr().err.split(" ", 1)[1] == "INFO    admin: PATCH /admin/pools 200 admin=ops\n"


@pytest.mark.usefixtures("restored")
def test_what_clients_say_makes_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("human", "info")
    log.event(logging.INFO, "GET /a\n12:00:00 INFO forged", error="\x1b[2J \x85é")

    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r"GET /a\x0a12:00:00 INFO forged error=\x1b[2J \x85é")
