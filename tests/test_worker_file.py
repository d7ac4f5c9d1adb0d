"""--worker-file: what it may say, and workers that follow it while requests run."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.worker_file import WorkerFileError, read
from tests import chat
from tests.processes import GIL_ARGUMENTS, Gateway, Process, Simulator, eventually, wait_until_idle

MODELS = frozenset({"demo"})


def toml(*workers: dict[str, Any]) -> str:
    return "".join(
        "[[worker]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in worker.items())
        for worker in workers
    )


def write(path: Path, text: str) -> None:
    """Replaced whole, as one should."""
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)


def states(gateway: Gateway) -> dict[str, str]:
    return {worker["name"]: worker["state"] for worker in gateway.ready()["workers"]}


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_workers_are_read_from_toml_and_json(tmp_path: Path, suffix: str) -> None:
    workers = [{"url": "step://a:1?weight=2"}, {"url": "step://b:2", "name": "b", "draining": True}]
    path = tmp_path / f"workers{suffix}"
    path.write_text(json.dumps({"worker": workers}) if suffix == ".json" else toml(*workers))

    found = read(path, MODELS)

    assert [*found] == ["step://a:1", "b"]
    assert found["step://a:1"].address.weight == 2 and not found["step://a:1"].draining
    assert found["b"].draining


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("worker = ", "is not valid TOML"),
        ("workers = []", "a list `worker` and nothing else"),
        ("worker = 1", "a list `worker` and nothing else"),
        ("worker = [1]", r"worker\[0\] must have a url"),
        (toml({"url": "step://a:1", "wieght": 2}), r"worker\[0\].wieght cannot be 2; there is url \(str\)"),
        (toml({"url": "step://a:1", "draining": "no"}), r"worker\[0\].draining cannot be 'no'"),
        (toml({"url": "step://a"}), r"worker\[0\].url: worker 'step://a': expected"),
        (toml({"url": "step://a:1?model=x"}), "the model 'x', which is not served here"),
        (toml({"url": "step://a:1"}, {"url": "step://a:1"}), r"worker\[1\]: there is a worker 'step://a:1' already"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "workers.toml"
    path.write_text(text)

    with pytest.raises(WorkerFileError, match=complaint):
        read(path, MODELS)


def test_a_file_that_is_not_there_ends_the_start() -> None:
    with Process([sys.executable, "-m", "gateway", *GIL_ARGUMENTS, "--worker-file", "/nowhere.toml"]) as process:
        assert process.exit_code() == 2
        assert "cannot read /nowhere.toml" in process.stderr


@pytest.fixture(scope="module")
def simulators() -> Iterator[list[Simulator]]:
    with Simulator("--speed", "0") as one, Simulator("--speed", "0") as two:
        yield [one, two]


def test_workers_follow_the_file_and_no_request_fails(simulators: list[Simulator], tmp_path: Path) -> None:
    path = tmp_path / "workers.toml"
    first, second = ({"url": simulator.url, "name": name} for simulator, name in zip(simulators, "ab", strict=True))
    write(path, toml(first))
    failures: list[object] = []
    is_over = threading.Event()

    def ask(gateway: Gateway) -> None:
        while not is_over.is_set():
            response = gateway.client.post("/v1/chat/completions", json=chat.body(max_tokens=8))
            if response.status_code != 200:
                failures.append(response.text)

    with Gateway("--worker-file", str(path)) as gateway:
        gateway.wait_until_ready()
        clients = [threading.Thread(target=ask, args=(gateway,)) for _ in range(3)]
        for client in clients:
            client.start()
        write(path, toml(first, second))
        eventually(lambda: states(gateway) == {"a": "ready", "b": "ready"})
        write(path, toml(first | {"draining": True}, second | {"url": second["url"] + "?weight=5"}))
        eventually(lambda: states(gateway) == {"a": "draining", "b": "ready"})
        write(path, toml(second))
        eventually(lambda: states(gateway) == {"b": "ready"})
        write(path, "worker = [")
        assert gateway.line("the workers stay as they are: .* is not valid TOML")
        # Another place under the same name: it goes first, and comes back.
        write(path, toml(first | {"url": first["url"]}, {"url": first["url"], "name": "b"}))
        eventually(lambda: states(gateway) == {"a": "ready", "b": "ready"})
        is_over.set()
        for client in clients:
            client.join()
        wait_until_idle(gateway)

    assert not failures
