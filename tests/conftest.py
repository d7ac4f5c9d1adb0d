"""What all tests share: the options, the GIL's state, and gateways that serve many tests."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from tests.executor import FakeExecutor
from tests.processes import IS_FREE_THREADED_BUILD, ROOT, Gateway, Simulator, wait_until_idle

settings.register_profile("no-deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no-deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--duration", type=float, default=3.0, metavar="SECONDS", help="how long each soak test runs")


def pytest_sessionstart() -> None:
    """The suite is about running without the GIL: on a free-threaded build nothing may have switched it on."""
    if IS_FREE_THREADED_BUILD and sys._is_gil_enabled():
        raise pytest.UsageError("the GIL is on; run the tests with PYTHON_GIL=0")


@pytest.fixture(scope="session")
def duration(pytestconfig: pytest.Config) -> float:
    """Seconds that a soak test runs."""
    seconds: float = pytestconfig.getoption("--duration")
    return seconds


@pytest.fixture(scope="session")
def tools_python() -> Path:
    """An interpreter that has the `openai` package."""
    path = Path(os.environ.get("GATEWAY_TOOLS_PYTHON", ROOT / ".venv-tools/bin/python"))
    assert path.exists(), f"{path} is missing: `make test` makes it, or set GATEWAY_TOOLS_PYTHON"
    return path


HAS_GRANIAN = IS_FREE_THREADED_BUILD and find_spec("granian") is not None
SERVERS = (
    "hypercorn",
    pytest.param("granian", marks=pytest.mark.skipif(not HAS_GRANIAN, reason="optional, and tested without a GIL")),
)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """Each HTTP server in turn, for --server."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    """An executor that answers shipped texts at once."""
    with Simulator("--speed", "0") as simulator:
        yield simulator


@pytest.fixture(scope="session")
def gateway(simulator: Simulator) -> Iterator[Gateway]:
    """A gateway for tests that leave it as it was, with two HTTP loops and a small limit for bodies."""
    with Gateway("--http-threads", "2", "--max-body-mb", "4", workers=[simulator.url]) as gateway:
        yield gateway.wait_until_ready()
        wait_until_idle(gateway)
        assert gateway.terminate() == 0


@pytest.fixture(scope="session")
def echo_gateway() -> Iterator[Gateway]:
    """A gateway whose executor says the prompt once more, at once."""
    with Simulator("--speed", "0", "--output", "echo") as simulator, Gateway(workers=[simulator.url]) as gateway:
        yield gateway.wait_until_ready()


@pytest.fixture(scope="session")
def slow_gateway() -> Iterator[Gateway]:
    """A gateway whose executor never ends by itself: a token every 20 ms, prompts at 10000 tokens/s."""
    arguments = ("--output", "random", "--decode-base-ms", "20", "--prefill-tps", "10000")
    with Simulator(*arguments) as simulator, Gateway("--http-threads", "2", workers=[simulator.url]) as gateway:
        yield gateway.wait_until_ready()


@pytest.fixture(scope="session")
def acted_executor() -> Iterator[FakeExecutor]:
    with FakeExecutor() as executor:
        yield executor


@pytest.fixture(scope="session")
def acted_gateway(acted_executor: FakeExecutor) -> Iterator[Gateway]:
    # Many of its tests are about failures: a circuit breaker would keep the next ones from their executor.
    with Gateway("--connect-seconds", "2", "--breaker-error-rate", "0", workers=[acted_executor.url]) as gateway:
        yield gateway.wait_until_ready()


@pytest.fixture
def executor(acted_executor: FakeExecutor, acted_gateway: Gateway) -> FakeExecutor:
    """An executor that says what the test tells it to; `acted_gateway` is its gateway, connected."""
    acted_executor.start_anew()
    acted_gateway.wait_until_ready()
    return acted_executor


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Threads for what a test waits for later."""
    with ThreadPoolExecutor(32) as threads:
        yield threads
