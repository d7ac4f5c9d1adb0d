"""Executors that can do all that an engine may and say what a test tells them to, and their gateways."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine_adapters.base import FEATURES
from tests.api.dialogue import Conversation
from tests.executor import FakeExecutor, demo_info
from tests.processes import Gateway


@pytest.fixture(scope="session")
def all_able_executor() -> Iterator[FakeExecutor]:
    with FakeExecutor(info=demo_info(features=sorted(FEATURES))) as executor:
        yield executor


@pytest.fixture(scope="session")
def able_gateway(all_able_executor: FakeExecutor) -> Iterator[Gateway]:
    with Gateway("--connect-seconds", "2", workers=[all_able_executor.url]) as gateway:
        yield gateway.wait_until_ready()


@pytest.fixture
def able_executor(all_able_executor: FakeExecutor, able_gateway: Gateway) -> FakeExecutor:
    """`able_gateway` is its gateway, connected."""
    all_able_executor.start_anew()
    able_gateway.wait_until_ready()
    return all_able_executor


@pytest.fixture(scope="session")
def all_patient_executor() -> Iterator[FakeExecutor]:
    with FakeExecutor(info=demo_info(features=sorted(FEATURES))) as executor:
        yield executor


@pytest.fixture(scope="session")
def hasty_gateway(all_patient_executor: FakeExecutor) -> Iterator[Gateway]:
    """tests/hasty_gateway.py with one tokenizer thread."""
    program = ("-m", "tests.hasty_gateway")
    with Gateway("--tokenize-threads", "1", workers=[all_patient_executor.url], program=program) as gateway:
        yield gateway.wait_until_ready()


@pytest.fixture
def patient_executor(all_patient_executor: FakeExecutor, hasty_gateway: Gateway) -> FakeExecutor:
    """`hasty_gateway` is its gateway, connected."""
    all_patient_executor.start_anew()
    hasty_gateway.wait_until_ready()
    return all_patient_executor


@pytest.fixture
def conversation(able_executor: FakeExecutor, able_gateway: Gateway, background: ThreadPoolExecutor) -> Conversation:
    return Conversation(able_executor, able_gateway, background)
