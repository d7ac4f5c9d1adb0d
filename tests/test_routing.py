"""Routing through the front door: conversations stay where their blocks are, keys where they belong."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests import chat
from tests.processes import GIL_ARGUMENTS, Gateway, Process, Simulator, eventually, wait_until_idle

PATH = "/v1/chat/completions"
SYSTEM = "You are a patient teacher who explains everything twice. " * 20
FAST = ("--speed", "0", "--dp-size", "2")


@pytest.fixture(scope="module")
def simulators() -> Iterator[list[Simulator]]:
    with Simulator(*FAST) as one, Simulator(*FAST) as two:
        yield [one, two]


def urls(simulators: list[Simulator]) -> list[str]:
    return [simulator.url for simulator in simulators]


def started(simulators: list[Simulator], *options: str) -> Gateway:
    return Gateway(*options, workers=urls(simulators))


def wait_for_all(gateway: Gateway, count: int = 2) -> None:
    eventually(lambda: gateway.worker_states() == ["ready"] * count)


def ask(gateway: Gateway, messages: list[dict[str, str]], headers: dict[str, str] | None = None, **options: Any) -> Any:
    body = chat.body(messages=messages, max_tokens=16, **options)
    response = gateway.client.post(PATH, json=body, headers=headers or {})
    assert response.status_code == 200, response.text
    return response.json()


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_every_turn_of_a_conversation_goes_to_the_rank_that_has_the_others(simulators: list[Simulator]) -> None:
    with started(simulators) as gateway:
        wait_for_all(gateway)
        for name in ("Ann", "Bob", "Cid", "Dan", "Eve"):
            before = 0
            messages = [{"role": "system", "content": f"{name}: {SYSTEM}"}]
            for turn in range(3):
                messages.append({"role": "user", "content": f"Question {turn}?"})
                answer = ask(gateway, messages)
                if turn:
                    assert cached(answer) > 0.8 * before, "it is on the worker and the rank that read the rest"
                before = answer["usage"]["prompt_tokens"]
                messages.append(answer["choices"][0]["message"])
        # What an executor has not told must be nothing that it did not have.
        assert gateway.metric("gateway_wire_faults_total") == 0


def test_what_was_cached_before_is_learned_when_a_gateway_comes(simulators: list[Simulator]) -> None:
    messages = [{"role": "system", "content": f"Known before: {SYSTEM}"}, {"role": "user", "content": "Hello?"}]
    with started(simulators) as gateway:
        wait_for_all(gateway)
        ask(gateway, messages)
        blocks = gateway.metric("gateway_cached_blocks")
        assert blocks > 0
    with started(simulators) as gateway:
        wait_for_all(gateway)
        eventually(lambda: gateway.metric("gateway_cached_blocks") >= blocks, "the executors' snapshots")
        assert cached(ask(gateway, messages)) > 100


def test_salts_keep_prompts_apart(simulators: list[Simulator]) -> None:
    messages = [{"role": "system", "content": f"Salted: {SYSTEM}"}, {"role": "user", "content": "Hello?"}]
    with started(simulators) as gateway:
        wait_for_all(gateway)
        assert cached(ask(gateway, messages, cache_salt="a")) == 0
        assert cached(ask(gateway, messages, cache_salt="b")) == 0
        assert cached(ask(gateway, messages, cache_salt="a")) > 100
        assert cached(ask(gateway, messages, cache_salt="b")) > 100


@pytest.mark.parametrize("policy", ["sticky", "consistent_hashing"])
def test_a_routing_key_stays_with_its_worker(simulators: list[Simulator], policy: str) -> None:
    with started(simulators, "--policy", policy) as gateway:
        wait_for_all(gateway)
        for number in range(8):
            messages = [{"role": "user", "content": f"{policy} {number}: {SYSTEM}"}]
            headers = {"x-routing-key": f"user {number}"}
            ask(gateway, messages, headers)
            assert cached(ask(gateway, messages, headers)) > 100
        wait_until_idle(gateway)


def test_an_unknown_policy_ends_the_start() -> None:
    with Process([sys.executable, "-m", "gateway", *GIL_ARGUMENTS, "--policy", "demo=fastest"]) as process:
        assert process.exit_code() == 2
        assert "there is no 'fastest'; there is cache_aware" in process.stderr
