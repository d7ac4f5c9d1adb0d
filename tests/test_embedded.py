"""The embedded executor: it serves without any setting, is restarted once, and its second death is the gateway's."""

import psutil

from tests import chat
from tests.processes import Gateway, eventually, has_ended


def executor_of(gateway: Gateway) -> psutil.Process | None:
    """The simulator that runs now."""
    children = psutil.Process(gateway.child.pid).children()
    return next((child for child in children if not has_ended(child)), None)


def kill_executor(gateway: Gateway) -> None:
    executor = executor_of(gateway)
    assert executor is not None
    executor.kill()
    eventually(lambda: executor_of(gateway) != executor)


def test_without_any_setting_the_demo_model_answers() -> None:
    with Gateway() as gateway:
        gateway.line("^Ready: ", "stdout")

        assert len(chat.complete(gateway)["choices"][0]["message"]["content"]) > 20
        (worker,) = gateway.ready()["workers"]
        assert worker["name"] == "embedded-demo"


def test_a_killed_executor_is_restarted_once_and_its_second_death_ends_the_gateway() -> None:
    with Gateway("--connect-seconds", "20") as gateway:
        gateway.wait_until_ready()

        kill_executor(gateway)

        assert gateway.line("the embedded executor died; starting it once more")
        assert chat.complete(gateway, max_tokens=3)["usage"]["completion_tokens"] == 3
        gateway.wait_until_ready()

        kill_executor(gateway)

        assert gateway.exit_code() == 1
        assert gateway.lines("the embedded executor of model 'demo' died again")
        assert len(gateway.lines("starting it once more")) == 1


def test_a_stream_on_a_killed_executor_ends_with_an_error() -> None:
    with Gateway() as gateway:
        gateway.wait_until_ready()
        with chat.opened(gateway, "A long story, please.") as events:
            chat.first_text(events)

            kill_executor(gateway)
            *_, last = events

        assert last["error"]["code"] == "engine_failed"
