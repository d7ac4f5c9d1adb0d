"""Micro measurements by pytest-benchmark: `python3.13t -m pytest perf/test_micro.py`, not part of `make test`.

One thread; for several, `python3.13t -m perf components`. Times are those of a whole call.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from perf.components import COMPONENTS, Component


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.title)
def test_component(benchmark: BenchmarkFixture, component: Component) -> None:
    benchmark(component.make(component.share()))
