"""The process from its start to its end: ports, signals, the grace period, dead clients."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from engine_adapters.base import FinishReason
from gateway import command
from gateway.config import Config
from gateway.listening import StartError, listen
from tests import chat
from tests.demo_model import ids_of
from tests.executor import FakeExecutor, flood
from tests.processes import GIL_ARGUMENTS, ROOT, Gateway, Simulator, environment, eventually, has_ended, wait_until_idle


def failed_start(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """A gateway that is expected to give up at once."""
    command = [sys.executable, "-m", "gateway", *GIL_ARGUMENTS, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**changes), capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_gateway_and_its_executor(number: signal.Signals) -> None:
    with Gateway() as gateway:
        gateway.wait_until_ready()
        (executor,) = psutil.Process(gateway.child.pid).children()

        gateway.send_signal(number)

        assert gateway.exit_code() == 0
        eventually(lambda: has_ended(executor), "the executor's end")
        assert not gateway.lines('"level": "(WARNING|ERROR)"')


def test_a_signal_before_it_is_ready_ends_the_gateway() -> None:
    with Gateway(workers=["step://127.0.0.1:1"]) as gateway:
        assert gateway.terminate() == 0
        assert gateway.stdout == ""


def test_the_ready_line_has_a_command_that_works() -> None:
    with FakeExecutor("Hi") as executor, Gateway(workers=[executor.url]) as gateway:
        assert gateway.line("^Ready: (.*)$", "stdout")[1] == gateway.url
        gateway.line("-d", "stdout")
        command = gateway.stdout.partition("\n")[2]
        words = command.replace("\\\n", " ").replace("curl -N", "", 1).strip()
        assert words.startswith(f"{gateway.url}/v1/chat/completions -H 'content-type: application/json'")
        body = words.partition("-d '")[2].removesuffix("'")

        with gateway.client.stream("POST", "/v1/chat/completions", content=body) as response:
            executor.finish(executor.next_submit())
            assert list(chat.events_of(response))[-1] == chat.DONE


def test_a_running_stream_is_finished_within_the_grace_period(server: str) -> None:
    with FakeExecutor("before") as executor, Gateway("--server", server, workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        with chat.opened(gateway) as events:
            submit = executor.next_submit()
            assert chat.first_text(events) == "before"

            gateway.send_signal(signal.SIGTERM)
            eventually(lambda: gateway.refuses_connections(), "refusal of new connections")
            executor.say(submit, *ids_of(" and after"))
            executor.finish(submit)

            *chunks, end = events
        assert chat.text_of(chunks) == " and after"
        assert end == chat.DONE
        assert gateway.exit_code() == 0


@pytest.mark.slow
def test_a_running_stream_outlasts_the_servers_own_patience(server: str) -> None:
    # Hypercorn gives connections 3 s to end.
    arguments = ("--output", "random", "--decode-base-ms", "40", "--decode-per-request-ms", "0")
    with Simulator(*arguments) as simulator, Gateway("--server", server, workers=[simulator.url]) as gateway:
        gateway.wait_until_ready()
        with chat.opened(gateway, max_tokens=100, stream_options={"include_usage": True}) as events:
            chat.first_text(events)
            gateway.send_signal(signal.SIGTERM)
            *_, usage, end = events

        assert end == chat.DONE
        assert usage["usage"]["completion_tokens"] == 100
        assert gateway.exit_code() == 0


def test_at_the_end_of_the_grace_period_streams_get_an_error_and_the_executor_is_freed(server: str) -> None:
    with (
        Simulator("--output", "random") as simulator,
        Gateway("--server", server, "--grace-seconds", "0.3", workers=[simulator.url]) as gateway,
        Gateway(workers=[simulator.url]) as witness,
    ):
        gateway.wait_until_ready()
        witness.wait_until_ready()
        with chat.opened(gateway) as events:
            chat.first_text(events)
            eventually(lambda: witness.metric("gateway_worker_running") == 1)

            gateway.send_signal(signal.SIGTERM)
            *_, last = events

        assert last["error"]["message"] == "the gateway is shutting down"
        assert last["error"]["code"] == "unavailable"
        assert gateway.exit_code() == 0
        eventually(lambda: witness.metric("gateway_worker_running") == 0, "a free executor")


def test_aborts_are_sent_and_confirmed_before_the_end(server: str) -> None:
    arguments = ("--server", server, "--grace-seconds", "0")
    with FakeExecutor("Hi") as executor, Gateway(*arguments, workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        with chat.opened(gateway) as events:
            submit = executor.next_submit()
            chat.first_text(events)

            gateway.send_signal(signal.SIGTERM)

            assert executor.next_abort() == submit.stream_id
            executor.finish(submit, FinishReason.ABORTED)
            *_, last = events
        assert last["error"]
        assert gateway.exit_code() == 0


def test_a_request_without_a_token_yet_gets_503_at_the_end_of_the_grace_period(
    server: str, background: ThreadPoolExecutor
) -> None:
    arguments = ("--server", server, "--grace-seconds", "0.1")
    with FakeExecutor() as executor, Gateway(*arguments, workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        responses = [
            background.submit(gateway.client.post, "/v1/chat/completions", json=chat.body(stream=stream))
            for stream in (False, True)
        ]
        for _ in responses:
            executor.next_submit()

        gateway.send_signal(signal.SIGTERM)

        for response in responses:
            assert response.result().status_code == 503
            assert response.result().json()["error"]["message"] == "the gateway is shutting down"
        assert gateway.exit_code() == 0


def test_a_second_signal_cuts_the_grace_period_short() -> None:
    with FakeExecutor("Hi") as executor, Gateway("--grace-seconds", "300", workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        with chat.opened(gateway) as events:
            chat.first_text(events)
            gateway.send_signal(signal.SIGTERM)
            eventually(lambda: gateway.refuses_connections())

            gateway.send_signal(signal.SIGTERM)
            *_, last = events

        assert last["error"]["code"] == "unavailable"
        assert gateway.exit_code() == 0


def test_idle_connections_do_not_hold_the_end_up(server: str) -> None:
    with FakeExecutor() as executor, Gateway("--server", server, workers=[executor.url]) as gateway:
        gateway.wait_until_ready()
        address = ("127.0.0.1", gateway.port)
        with socket.create_connection(address), socket.create_connection(address) as halted:
            halted.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
            assert gateway.terminate() == 0


def test_killed_with_9_the_gateway_takes_its_executor_along() -> None:
    with Gateway() as gateway:
        gateway.wait_until_ready()
        (executor,) = psutil.Process(gateway.child.pid).children()
        with chat.opened(gateway) as events:
            chat.first_text(events)

            gateway.send_signal(signal.SIGKILL)

            gateway.exit_code()
        eventually(lambda: has_ended(executor), "the executor's end")


def test_a_busy_port_is_an_error_that_names_it() -> None:
    with FakeExecutor() as executor, Gateway(workers=[executor.url]) as gateway:
        second = failed_start("--port", str(gateway.port))

        assert second.returncode == 2
        assert second.stderr.startswith(f"gateway: port {gateway.port} on 127.0.0.1 is in use")
        assert "Traceback" not in second.stderr
        assert gateway.wait_until_ready()


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_that_another_program_would_share_is_busy_too(option: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()

        with pytest.raises(StartError, match=str(other.getsockname()[1])):
            listen(Config(port=other.getsockname()[1]))


def test_a_port_just_given_up_can_be_had_again() -> None:
    with FakeExecutor() as executor:
        with Gateway(workers=[executor.url]) as gateway:
            gateway.wait_until_ready()
            assert gateway.terminate() == 0
        with Gateway("--port", str(gateway.port), workers=[executor.url]) as second:
            assert second.wait_until_ready().port == gateway.port


def test_connections_have_no_delay_and_a_limit_for_dead_peers() -> None:
    with listen(Config(port=0, dead_client_seconds=12)) as listener:
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12000
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0


BAD_STARTS: dict[str, tuple[list[str], str]] = {
    "a port that is none": (["--port", "70000"], "port from the command line: '70000' must be between 0 and 65535"),
    "a host that is none": (["--host", "no such host"], "--host no such host is not an address"),
    "an address of somebody else": (["--host", "192.0.2.1", "--port", "0"], "cannot listen on 192.0.2.1"),
    "a worker URL of another scheme": (["--worker", "http://a:1"], "worker 'http://a:1': the scheme must be"),
    "a model folder that is none": (["--model-path", "x=/nonexistent"], "/nonexistent is not a folder"),
    "a model folder without a model": (["--model-path", "tests"], "tests"),
    "a file that is not there": (["--config", "/nonexistent.toml"], "cannot read /nonexistent.toml"),
    "two models of one name": (
        ["--model-path", "a=engine_adapters/simulator/model", "--model-path", "a=engine_adapters/simulator/model"],
        "two model folders are named 'a'",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_what_cannot_be_used_is_named_and_ends_the_start(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command.main([*GIL_ARGUMENTS, *arguments]) == 2

    output = capsys.readouterr().err
    assert output.startswith("gateway: ")
    assert message in output


def test_a_client_that_stops_reading_is_cut(server: str) -> None:
    with (
        FakeExecutor("Hi") as executor,
        Gateway("--server", server, "--dead-client-seconds", "1", workers=[executor.url]) as gateway,
    ):
        gateway.wait_until_ready()
        with chat.sent(gateway, stream=True):
            submit = executor.next_submit()
            flood(executor, submit)

            assert executor.next_abort() == submit.stream_id
            executor.finish(submit, FinishReason.ABORTED)
            wait_until_idle(gateway)


def test_models_may_be_many_and_named(simulator: Simulator) -> None:
    folder = ROOT / "engine_adapters/simulator/model"
    with Gateway(
        "--model-path", f"one={folder}", "--model-path", str(folder), workers=[f"{simulator.url}?model=one"]
    ) as gateway:
        names = [model["id"] for model in gateway.client.get("/v1/models").json()["data"]]
        assert names == ["one", "model"]
        eventually(lambda: gateway.ready()["reasons"] == ["no worker of model 'model' is ready"])
        assert chat.complete(gateway, model="one", max_tokens=1)


def test_the_environment_sets_what_the_command_line_does_not(simulator: Simulator) -> None:
    settings = environment(GATEWAY_WORKER=simulator.url, GATEWAY_HTTP_THREADS="3", GATEWAY_LOG_FORMAT="human")
    with Gateway(env=settings) as gateway:
        gateway.wait_until_ready()
        eventually(lambda: gateway.client.get("/metrics").text.count("\ngateway_active_requests{") == 3)
        assert gateway.lines('"level"'), "--log-format json on the command line wins"
