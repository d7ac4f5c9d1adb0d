"""The measurements work and tell the truth about errors and noise. No time is asserted."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from perf import compare, page, reading, results
from perf.load import Flow, Job, Load
from perf.parameters import SMOKE, changed
from perf.results import Results
from tests.processes import ROOT

REQUEST = "GET / HTTP/1.1\r\nhost: here\r\n\r\n"


class Refusing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


class Server(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a server that answers every request so."""
    handler = type("Handler", (Refusing,), {"status": status})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def loaded(port: int, flow: Flow) -> dict[str, float]:
    result = Load(Job(port, {"front": [os.getpid()]}, [flow], 0.02, 0.2)).run()
    done = result.flows[flow.name]
    return {"ended": done.ended, "errors": done.errors, "answers": len(done.answers), "cpu": result.usage["front"].cpu}


def outcome(*values: float, figure: str = "us_per_token", machine: str = "2") -> Results:
    found = Results("full", "now", {"cores": machine, "processor": "p"}, {"3.13t": {}}, [])
    found.point("streaming", "3.13t", {"streams": 64}).runs = [{figure: value, "errors": 0.0} for value in values]
    return found


def test_a_smoke_run_measures_requests_and_writes_a_report(tmp_path: Path) -> None:
    which = ("--only", "requests", "--arms", "granian")
    command = [sys.executable, "-m", "perf", "suite", "--smoke", *which, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)

    assert done.returncode == 0, done.stderr
    found = results.load(tmp_path / "results.json")
    assert {"open loop", "as many as possible"} == {point.place["load"] for point in found.of("requests")}
    for point in found.of("requests"):
        assert point.middle("requests_per_s") > 0 and point.middle("us_per_request") > 0
        assert point.middle("errors") == 0 and point.middle("rss_mb") > 10 and point.middle("threads") > 3
    html = (tmp_path / "report.html").read_text("utf-8")
    assert (
        "One-token requests" in html and "src=" not in html and "http://" not in html.replace("http://www.w3.org", "")
    )
    assert "make perf" in (tmp_path / "report.md").read_text("utf-8")


def test_the_load_counts_answers_and_tells_errors() -> None:
    with answering(200) as port:
        served = loaded(port, Flow("all", [REQUEST], rate=100.0))
    with answering(500) as port:
        refused = loaded(port, Flow("all", [REQUEST], connections=1))

    assert served["answers"] > 2 and served["errors"] == 0 and served["cpu"] > 0
    assert refused["errors"] > 0 and refused["ended"] == 0


def test_a_change_beyond_the_noise_is_told_and_noise_is_not() -> None:
    before = outcome(10.0, 10.2, 10.4)

    assert [change.is_worse for change in compare.changes(before, outcome(13.0, 13.1, 13.4))] == [True]
    assert [change.is_worse for change in compare.changes(before, outcome(7.0, 7.1, 7.3))] == [False]
    assert not [*compare.changes(before, outcome(10.1, 10.5, 10.6))], "the runs overlap"
    assert not [*compare.changes(before, outcome(10.5, 11.5, 16.0))], "too wide to tell"
    assert not [*compare.changes(before, outcome(13.0))], "one run says nothing"


def test_compare_says_by_its_exit_code_whether_something_got_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    outcome(10.0, 10.2, 10.4).save(old)
    outcome(13.0, 13.1, 13.4, machine="16").save(new)

    assert compare.main([str(old), str(old)]) == 0
    assert compare.main([str(old), str(new)]) == 1
    assert "another machine" in capsys.readouterr().out
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    assert compare.main([str(old), str(tmp_path / "other.json")]) == 2


def test_a_report_reads_the_figures_against_their_goals() -> None:
    found = outcome(1.0)
    for arm, value in (("3.13t", 20.0), ("3.13", 120.0)):
        found.point("stall", arm, {"disturbance": "40k-token prompts"}).runs = [{"p99_ms": value, "p50_ms": 18.0}]

    assert any("6.00" in line and "met" in line and "2.0 and 102.0 ms" in line for line in reading.findings(found))
    assert "| 64 streams: 3.13t " in page.markdown(page.document(found))


def test_parameters_can_be_changed_by_name() -> None:
    assert changed(SMOKE, ["streams=1,2", "step_ms=5"]).streams == (1, 2)
    with pytest.raises(ValueError, match="expected NAME=VALUE"):
        changed(SMOKE, ["stream=1"])
