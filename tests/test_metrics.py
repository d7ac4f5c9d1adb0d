"""Counters that many threads write, and their Prometheus text."""

import re
import threading

from hypothesis import given
from hypothesis import strategies as st

from gateway.metrics import Metric, Registry
from tests.processes import Gateway

COUNTER = Metric("test_total", "counter", "How many.", ("kind",))
SECONDS = Metric("test_seconds", "histogram", "How long.", ("kind",), (0.1, 1.0, 10.0))
GAUGE = Metric("test_level", "gauge", "How much.")
SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (-?[\d.e+-]+)')


def samples(text: str) -> dict[str, float]:
    """The samples of an exposition by series; raises AssertionError where it is not in Prometheus's format."""
    result: dict[str, float] = {}
    helped: list[str] = []
    typed: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped.append(line.split()[2])
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == helped[-1] and name not in typed
            typed[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            family = re.sub("_(bucket|sum|count)$", "", match[1])
            assert helped[-1] in (match[1], family)
            series = line.rpartition(" ")[0]
            assert series not in result
            result[series] = float(match[3])
    assert text.endswith("\n")
    return result


def test_counts_of_many_threads_add_up() -> None:
    registry = Registry()
    threads, count = 4, 20_000
    is_over = threading.Event()

    def work(number: int) -> None:
        cells = registry.cells()
        for index in range(count):
            cells.add(COUNTER, (str(index % 3),), 2)
            cells.observe(SECONDS, ("x",), 0.05 if index % 2 else 5.0)

    def read() -> None:
        while not is_over.is_set():
            samples(registry.exposition() or "\n")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    reader = threading.Thread(target=read)
    for thread in (*workers, reader):
        thread.start()
    for thread in workers:
        thread.join()
    is_over.set()
    reader.join()

    found = samples(registry.exposition())
    assert sum(found[f'test_total{{kind="{kind}"}}'] for kind in range(3)) == 2 * threads * count
    assert found['test_seconds_count{kind="x"}'] == threads * count
    assert found['test_seconds_bucket{kind="x",le="0.1"}'] == threads * count / 2


def test_a_histogram_counts_each_bucket_with_those_below() -> None:
    registry = Registry()
    cells = registry.cells()
    for seconds in (0.05, 0.1, 0.5, 5.0, 50.0):
        cells.observe(SECONDS, ("a",), seconds)

    found = samples(registry.exposition())
    bounds = ("0.1", "1.0", "10.0", "+Inf")
    assert [found[f'test_seconds_bucket{{kind="a",le="{bound}"}}'] for bound in bounds] == [2, 3, 4, 5]
    assert found['test_seconds_sum{kind="a"}'] == 55.65


def test_a_gauge_is_read_when_it_is_asked_for() -> None:
    registry = Registry()
    level = 1.5
    registry.gauge(GAUGE, lambda: [((), level)])
    assert samples(registry.exposition()) == {"test_level": 1.5}

    level = -2.0
    assert samples(registry.exposition()) == {"test_level": -2}


@given(label=st.text(st.characters(exclude_categories=["Cs"])), value=st.floats(0, 1e300))
def test_any_label_and_value_is_written_so_that_it_can_be_read(label: str, value: float) -> None:
    registry = Registry()
    registry.cells().add(COUNTER, (label,), value)

    lines = registry.exposition().split("\n")

    match = SAMPLE.fullmatch(lines[2])
    assert match
    assert match[2] == 'kind="' + label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'
    assert float(match[3]) == value


def test_what_the_gateway_exposes_can_be_read(gateway: Gateway) -> None:
    response = gateway.client.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(response.text)
    for name in ("gateway_worker_state", "gateway_worker_in_flight", "gateway_active_requests"):
        assert any(series.startswith(name + "{") for series in found)
