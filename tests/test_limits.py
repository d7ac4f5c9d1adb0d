"""Limits through the front door: keys and their quotas, places and who gets them, the memory of bodies, audit lines."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.limits.keys import digest_of
from tests import chat
from tests.api.test_chat import refusal
from tests.executor import FakeExecutor
from tests.processes import PATIENCE, Gateway, eventually, wait_until_idle

PATH = "/v1/chat/completions"
PLACES, QUEUE = 2, 3


def secret(name: str) -> bytes:
    return f"secret-{name}".encode()


def bearer(name: str) -> str:
    return f"Bearer secret-{name}"


def entry(name: str, *lines: str) -> str:
    return "\n".join(["[[key]]", f'name = "{name}"', f'sha256 = "{digest_of(secret(name))}"', *lines, ""])


KEYS = {
    "free": (),
    "flood": (),
    "best": ('priority = "high"',),
    "none": ("models = []",),
    "few": ("requests_per_minute = 2",),
    "brief": ("tokens_per_minute = 60",),
    "single": ("concurrency = 1",),
    "ops": ("admin = true",),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("limits") / "keys.toml"
    path.write_text("".join(entry(name, *lines) for name, lines in KEYS.items()))
    return path


@pytest.fixture(scope="module")
def limited_executor() -> Iterator[FakeExecutor]:
    with FakeExecutor() as executor:
        yield executor


@pytest.fixture(scope="module")
def limited(limited_executor: FakeExecutor, path: Path) -> Iterator[Gateway]:
    """Two loops that share few places, keys from a file, and little memory for bodies."""
    options = (
        "--http-threads",
        "2",
        "--max-concurrency",
        str(PLACES),
        "--queue-size",
        str(QUEUE),
        "--api-keys",
        str(path),
    )
    memory = ("--max-bodies-mb", "1", "--log-level", "debug")
    with Gateway(*options, *memory, workers=[limited_executor.url]) as gateway:
        yield gateway.wait_until_ready()
        wait_until_idle(gateway)
        assert gateway.metric("gateway_admitted_requests", "gateway_waiting_requests", "gateway_body_bytes") == 0
        assert gateway.metric("gateway_key_active_requests") == 0
        assert gateway.terminate() == 0
        assert '"key": "free"' in gateway.output and "secret-" not in gateway.output
        assert not any(digest_of(secret(name)) in gateway.output for name in KEYS)


@pytest.fixture
def executor(limited_executor: FakeExecutor, limited: Gateway) -> FakeExecutor:
    limited_executor.start_anew()
    return limited_executor


class Clients:
    """Requests with keys, each in a thread of its own; the executor ends them when the test says so."""

    def __init__(self, gateway: Gateway, executor: FakeExecutor, background: ThreadPoolExecutor) -> None:
        self._gateway = gateway
        self._executor = executor
        self._background = background
        self._answers: list[Future[httpx.Response]] = []

    def ask(self, key: str, content: str = "Hi", **headers: str) -> Future[httpx.Response]:
        """Sent; returns when it is answered, waits, or is under way."""
        known = self._known()
        words = {"authorization": bearer(key)} | {name.replace("_", "-"): text for name, text in headers.items()}
        body = chat.body(content, max_tokens=4)
        answer = self._background.submit(lambda: self._gateway.client.post(PATH, json=body, headers=words))
        self._answers.append(answer)
        eventually(lambda: self._known() != known, "an answer, or a request more")
        return answer

    def finish_next(self) -> str:
        """End the request that the executor heard of next; returns its id.

        Not before the executor has every request that has a place: two loops that were given one each would race there.
        """
        eventually(
            lambda: self._executor.submits.qsize() == self._gateway.metric("gateway_admitted_requests"),
            "the executor has heard of all that were admitted",
        )
        submit = self._executor.next_submit()
        self._executor.finish(submit, prompt_tokens=len(submit.token_ids) // 4)
        return submit.request_id

    def waiting(self, **labels: str) -> float:
        return self._gateway.metric("gateway_waiting_requests", **labels)

    def _known(self) -> tuple[int, float]:
        done = sum(answer.done() for answer in self._answers)
        return done, self._gateway.metric("gateway_waiting_requests", "gateway_admitted_requests")


@pytest.fixture
def clients(limited: Gateway, executor: FakeExecutor, background: ThreadPoolExecutor) -> Clients:
    return Clients(limited, executor, background)


def get(gateway: Gateway, key: str, path: str = "/v1/models") -> httpx.Response:
    return gateway.client.get(path, headers={"authorization": bearer(key)})


def test_a_key_sees_and_uses_its_models_only(limited: Gateway, clients: Clients) -> None:
    assert [model["id"] for model in get(limited, "free").json()["data"]] == ["demo"]
    assert get(limited, "none").json()["data"] == []

    error = refusal(clients.ask("none").result(), 403)

    assert (error["param"], error["message"]) == ("model", "this key may not use the model 'demo'")
    refusal(get(limited, "stranger"), 401)
    assert get(limited, "stranger").headers["www-authenticate"] == "Bearer"
    refusal(get(limited, "ops"), 401)


def test_requests_a_minute_are_counted(limited: Gateway) -> None:
    assert [get(limited, "few").status_code for _ in range(2)] == [200, 200]
    answer = get(limited, "few")
    error = refusal(answer, 429)
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 25 <= int(answer.headers["retry-after"]) <= 30
    assert limited.metric("gateway_refused_total", reason="rate_limit_exceeded") == 1
    assert limited.metric("gateway_key_requests_total", key="few", status="429") == 1


def test_tokens_are_reserved_and_what_was_not_used_comes_back(limited: Gateway, clients: Clients) -> None:
    for _ in range(3):  # each takes some 12 of 60 tokens, but for the reserve
        answer = clients.ask("brief", "word " * 150)
        if answer.done():
            break
        clients.finish_next()
        assert answer.result().status_code == 200
        eventually(lambda: limited.metric("gateway_admitted_requests") == 0, "its place is free again")
    used = limited.metric("gateway_key_tokens_total", key="brief")
    assert used > 60, "the reserve was a guess, and what was used counts"
    refused = clients.ask("brief").result()
    assert "60 tokens a minute" in refusal(refused, 429)["message"]
    assert int(refused.headers["retry-after"]) > 0


def test_requests_at_a_time_are_counted(limited: Gateway, clients: Clients) -> None:
    first = clients.ask("single")
    assert "1 requests at a time" in refusal(clients.ask("single").result(), 429)["message"]
    clients.finish_next()
    assert first.result().status_code == 200
    eventually(lambda: get(limited, "single").status_code == 200)


def test_more_than_there_are_places_for_wait_and_more_than_may_wait_are_refused(
    limited: Gateway, clients: Clients
) -> None:
    answers = [clients.ask("free") for _ in range(PLACES + QUEUE)]
    assert clients.waiting(priority="normal") == QUEUE

    refused = clients.ask("free").result()

    error = refusal(refused, 429)
    assert (error["code"], int(refused.headers["retry-after"]) >= 1) == ("overloaded", True)
    for _ in answers:
        clients.finish_next()
    assert [answer.result().status_code for answer in answers] == [200] * len(answers)
    last = answers[-1].result()
    assert "admission;dur=" in last.headers["server-timing"]
    line = json.loads(limited.line(f'"id": "{last.headers["x-request-id"]}"').string)
    assert line["admission_ms"] > 0
    assert {"id", "ms", "key", "outcome", "model", "worker", "first_token_ms"} - line.keys() <= {"first_token_ms"}
    assert (line["key"], line["outcome"], line["message"]) == ("free", "ok", f"POST {PATH} 200")
    assert limited.metric("gateway_admission_wait_seconds_count", priority="normal") >= len(answers)


def test_a_flood_loses_its_own_and_others_take_turns_with_it(limited: Gateway, clients: Clients) -> None:
    flood = [clients.ask("flood", x_request_id=f"flood-{number}") for number in range(PLACES + QUEUE)]
    other = clients.ask("free", x_request_id="other")
    best = clients.ask("best", x_request_id="best")
    lower = clients.ask("best", x_request_id="lower", x_priority="low")
    eventually(lambda: flood[-1].done())
    assert refusal(flood[-1].result(), 429)["code"] == "overloaded"
    assert clients.waiting(priority="high") == clients.waiting(priority="low") == 1

    order = [clients.finish_next() for _ in range(PLACES + QUEUE + 2)]

    assert set(order[:PLACES]) == {"flood-0", "flood-1"}
    assert order.index("other") < order.index("flood-3"), "they take turns"
    assert {"best", "lower"} <= set(order[PLACES : PLACES + 3]), "no class waits for another's queue to empty"
    assert {each.result().status_code for each in (*flood[:-1], other, best, lower)} == {200}


def test_a_key_cannot_ask_for_a_better_class_than_its_own(limited: Gateway, clients: Clients) -> None:
    holders = [clients.ask("flood") for _ in range(PLACES)]
    answer = clients.ask("free", x_priority="high")
    assert (clients.waiting(priority="high"), clients.waiting(priority="normal")) == (0, 1)
    error = refusal(clients.ask("free", x_priority="urgent").result(), 400)
    assert error["message"] == "x-priority must be one of high, normal, low"
    for _ in range(PLACES + 1):
        clients.finish_next()
    assert {each.result().status_code for each in (*holders, answer)} == {200}


def test_who_leaves_the_queue_never_reaches_an_engine(
    limited: Gateway, clients: Clients, executor: FakeExecutor
) -> None:
    holders = [clients.ask("flood") for _ in range(PLACES)]
    body = json.dumps(chat.body()).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: {bearer('free')}\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", limited.port), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + body)
        eventually(lambda: clients.waiting() == 1)
    eventually(lambda: clients.waiting() == 0, "the queue without it")
    for _ in holders:
        clients.finish_next()
    assert {each.result().status_code for each in holders} == {200}
    eventually(lambda: limited.metric("gateway_admitted_requests") == 0)
    assert executor.submits.empty()


def test_bodies_in_all_are_bounded(limited: Gateway) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: {bearer('free')}\r\ncontent-length: 900000\r\n\r\n".encode()
    )
    with socket.create_connection(("127.0.0.1", limited.port), timeout=PATIENCE) as first:
        first.sendall(head + b" " * 800_000)
        eventually(lambda: limited.metric("gateway_body_bytes") >= 800_000, "the first body in memory")
        with socket.create_connection(("127.0.0.1", limited.port), timeout=PATIENCE) as second:
            second.sendall(head + b" " * 500_000)
            answer = second.recv(4000)
        assert answer.startswith(b"HTTP/1.1 429") and b"--max-bodies-mb" in answer and b"retry-after: 1" in answer
    eventually(lambda: limited.metric("gateway_body_bytes") == 0, "memory given back")


def admin(gateway: Gateway, method: str, key: str, body: Any = None, **headers: str) -> httpx.Response:
    words = {"authorization": bearer(key)} | headers
    return gateway.client.request(method, "/admin/pools?because=test", json=body, headers=words)


def test_every_admin_action_has_its_line(limited: Gateway) -> None:
    change = {"tokenize": {"threads": 2}}
    assert admin(limited, "GET", "ops").status_code == 200
    assert admin(limited, "PATCH", "ops", change).status_code == 200
    refusal(admin(limited, "PATCH", "ops", {"tokenize": {"threads": -2}}), 400)
    refusal(admin(limited, "PATCH", "free", change), 401)

    limited.line("admin: PATCH /admin/pools 401")
    lines = [entry for entry in limited.log() if entry["message"].startswith("admin: ")]
    assert [entry["message"].rpartition(" ")[2] for entry in lines] == ["200", "400", "401"]
    assert (lines[0]["admin"], lines[0]["client"], json.loads(lines[0]["change"])) == ("ops", "127.0.0.1", change)
    assert lines[0]["query"] == "because=test" and lines[0]["id"] and lines[2]["admin"] == "nobody"


def test_keys_follow_their_file(limited: Gateway, path: Path) -> None:
    before = path.read_text()
    path.write_text(before + entry("late"))
    limited_to = eventually(lambda: get(limited, "late").status_code == 200, "the new key")
    path.write_text("key = ")
    limited.line("the API keys stay as they are: .* is not valid TOML")
    assert limited_to and get(limited, "late").status_code == 200
    path.write_text(before)
    eventually(lambda: get(limited, "late").status_code == 401, "the end of the key")


def test_prompts_are_logged_only_where_that_is_asked_for(limited: Gateway, clients: Clients) -> None:
    answer = clients.ask("free", "between us")
    clients.finish_next()
    assert answer.result().status_code == 200
    assert "between us" not in limited.output
