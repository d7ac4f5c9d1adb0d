"""A dead thread is a dead gateway: it says which one, ends its requests with 503, and exits non-zero."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests import chat
from tests.executor import FakeExecutor
from tests.processes import PATIENCE, Gateway

PATH = "/v1/chat/completions"


@contextmanager
def killable(executor: FakeExecutor) -> Iterator[Gateway]:
    """A gateway with two HTTP loops whose threads can be killed by name."""
    program = ("-m", "tests.thread_killer")
    with Gateway("--http-threads", "2", workers=[executor.url], program=program) as gateway:
        yield gateway.wait_until_ready()


def wake_every_thread(gateway: Gateway) -> None:
    """Give each HTTP loop and each pool thread something to do, until nobody answers."""
    long_prompt = chat.body("word " * 3000, max_tokens=1)
    for _ in range(8):
        try:
            with httpx.Client(base_url=gateway.url, timeout=0.5) as client:
                client.post(PATH, json=long_prompt)
        except httpx.HTTPError:
            pass  # that is what a dying gateway may do


@pytest.mark.parametrize("name", ["engine", "watch", "tokenize-0", "http-0"])
def test_the_death_of_a_thread_is_named_and_ends_the_process(name: str) -> None:
    with FakeExecutor() as executor, killable(executor) as gateway:
        gateway.write(name)
        wake_every_thread(gateway)

        assert gateway.exit_code() == 1
        (line,) = gateway.lines('"level": "ERROR"')
        assert f"thread {name} died" in line


def test_requests_in_progress_get_503_when_a_thread_dies(background: ThreadPoolExecutor) -> None:
    with FakeExecutor() as executor, killable(executor) as gateway:
        responses = [
            background.submit(httpx.post, gateway.url + PATH, json=chat.body(stream=stream), timeout=PATIENCE)
            for stream in (False, True, False, True)
        ]
        for _ in responses:
            executor.next_submit()

        gateway.write("watch")

        for response in responses:
            assert response.result().status_code == 503
            assert "thread watch died" in response.result().json()["error"]["message"]
        assert gateway.exit_code() == 1


def test_streams_get_an_error_event_when_the_engine_thread_dies() -> None:
    with FakeExecutor("Hi") as executor, killable(executor) as gateway:
        with chat.opened(gateway) as events:
            chat.first_text(events)

            gateway.write("engine")
            *_, last = events

        assert "thread engine died" in last["error"]["message"]
        assert gateway.exit_code() == 1
