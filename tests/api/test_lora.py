"""LoRA adapters as models of their own, and kv_retention: what reaches the engine and what is refused."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine_adapters.base import FEATURES, FinishReason, Lora
from engine_adapters.step import messages
from gateway.config import ConfigError
from gateway.model import DEMO_FOLDER, Model, load_adapters, read_aliases
from tests import chat
from tests.executor import FakeExecutor, demo_info
from tests.processes import Gateway

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def tuned() -> Iterator[tuple[Gateway, FakeExecutor]]:
    """A gateway with two adapters, and its executor, which can do everything."""
    with FakeExecutor(info=demo_info(features=sorted(FEATURES))) as executor:
        with Gateway("--lora", "tuned=7@/adapters/a b", "--lora", "other=demo:8", workers=[executor.url]) as gateway:
            yield gateway.wait_until_ready(), executor


def asked(stage: tuple[Gateway, FakeExecutor], **fields: Any) -> tuple[messages.Submit, dict[str, Any]]:
    """What the executor is asked, and the answer."""
    gateway, executor = stage
    with ThreadPoolExecutor(1) as background:
        response = background.submit(gateway.client.post, PATH, json=chat.body(**fields))
        submit = executor.next_submit()
        executor.finish(submit, FinishReason.LENGTH)
        return submit, response.result().json()


def test_an_adapter_is_a_model_with_a_parent(tuned: tuple[Gateway, FakeExecutor]) -> None:
    listed = {model["id"]: model for model in tuned[0].client.get("/v1/models").json()["data"]}
    assert [*listed] == ["demo", "tuned", "other"]
    assert "parent" not in listed["demo"]
    assert (listed["tuned"]["parent"], listed["tuned"]["root"]) == ("demo", "demo")
    assert listed["tuned"]["engines"] == listed["demo"]["engines"] == ["fake 1"]


def test_its_name_reaches_the_engine_as_the_adapter(tuned: tuple[Gateway, FakeExecutor]) -> None:
    submit, answer = asked(tuned, model="tuned")
    assert submit.lora == messages.Lora("tuned", 7, "/adapters/a b")
    assert answer["model"] == "tuned"
    submit, _ = asked(tuned, model="other")
    assert submit.lora == messages.Lora("other", 8)
    submit, _ = asked(tuned)
    assert submit.lora is None


def test_an_unknown_model_is_told_of_the_adapters(tuned: tuple[Gateway, FakeExecutor]) -> None:
    response = tuned[0].client.post(PATH, json=chat.body(model="tuner"))
    assert response.status_code == 404
    assert "'demo', 'tuned', 'other'" in response.json()["error"]["message"]


def test_kv_retention_reaches_the_engine(tuned: tuple[Gateway, FakeExecutor]) -> None:
    ranges = [{"end": 4, "priority": 90, "duration_ms": 500}, {"start": 4, "priority": 0}]
    submit, _ = asked(tuned, kv_retention={"ranges": ranges, "decode_priority": 10, "decode_duration_ms": 7})
    expected = [messages.KvRange(0, 4, 90, 500), messages.KvRange(4, None, 0)]
    assert submit.kv_retention == messages.KvRetention(expected, 10, 7)
    submit, _ = asked(tuned, kv_retention={"decode_priority": 0})
    assert submit.kv_retention == messages.KvRetention(decode_priority=0)


@pytest.mark.parametrize(
    ("retention", "param"),
    [
        (5, "kv_retention"),
        ({"ranges": 5}, "kv_retention.ranges"),
        ({"ranges": [{"start": 0}]}, "kv_retention.ranges[0].priority"),
        ({"ranges": [{"priority": 101}]}, "kv_retention.ranges[0].priority"),
        ({"ranges": [{"priority": 1, "start": -1}]}, "kv_retention.ranges[0].start"),
        ({"ranges": [{"priority": 1, "start": 5, "end": 5}]}, "kv_retention.ranges[0].end"),
        ({"ranges": [{"priority": 1, "start": 3}, {"priority": 1, "end": 4}]}, "kv_retention.ranges[0]"),
        ({"ranges": [{"priority": 1}, {"priority": 1, "start": 4}]}, "kv_retention.ranges[1]"),
        ({"ranges": [{"priority": 1, "duration_ms": 0}]}, "kv_retention.ranges[0].duration_ms"),
        ({"decode_priority": 1.5}, "kv_retention.decode_priority"),
    ],
)
def test_a_bad_kv_retention_is_refused_with_its_path(
    tuned: tuple[Gateway, FakeExecutor], retention: Any, param: str
) -> None:
    response = tuned[0].client.post(PATH, json=chat.body(kv_retention=retention))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "tuned"}, "model"),
        ({"kv_retention": {"decode_priority": 1}}, "kv_retention"),
        ({"cache_salt": "a"}, "cache_salt"),
        ({"priority": 1}, "priority"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_by_field_and_engine(fields: dict[str, Any], param: str) -> None:
    with FakeExecutor() as executor, Gateway("--lora", "tuned=7", workers=[executor.url]) as gateway:
        response = gateway.wait_until_ready().client.post(PATH, json=chat.body(**fields))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param and "(fake)" in error["message"]


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {"demo": Model.load("demo", DEMO_FOLDER)}


def test_adapters_are_read_from_their_arguments(models: dict[str, Model]) -> None:
    adapters = load_adapters(("a=1", "b=demo:2@x@y:z=1"), models)
    assert [(each.name, each.parent, each.lora) for each in adapters.values()] == [
        ("a", "demo", Lora("a", 1)),
        ("b", "demo", Lora("b", 2, "x@y:z=1")),
    ]
    two = models | {"second": models["demo"]}
    assert load_adapters(("a=second:1", "b=demo:1"), two)["a"].parent == "second"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("a",), "expected NAME=[MODEL:]ID[@PATH]"),
        (("=1",), "expected NAME="),
        (("a=x",), "expected NAME="),
        (("a=0",), "the ID being a number from 1 on"),
        (("a=²",), "expected NAME="),
        (("a=1@",), "the PATH behind @ is empty"),
        (("a=nobody:1",), "say whose adapter it is with NAME=MODEL:ID; there is demo"),
        (("demo=1",), "there is a model 'demo' already"),
        (("a=1", "a=2"), "there is a model 'a' already"),
        (("a=1", "b=1"), "'a' has this ID already"),
    ],
)
def test_a_bad_adapter_is_named(models: dict[str, Model], arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_adapters(arguments, models)
    assert problem in str(caught.value) and repr(arguments[-1]) in str(caught.value)


# --- other names


def test_an_alias_is_the_model_itself_or_an_adapter(models: dict[str, Model]) -> None:
    served = models | load_adapters(("tuned=1",), models)
    aliases = read_aliases(("gpt=demo", "Org/Name-1=tuned"), served)
    assert {name: model.name for name, model in aliases.items()} == {"gpt": "demo", "Org/Name-1": "tuned"}
    assert aliases["gpt"] is models["demo"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("gpt",), "expected NAME=MODEL"),
        (("=demo",), "expected NAME=MODEL"),
        (("gpt=nobody",), "no model 'nobody' is served; there is demo"),
        (("demo=demo",), "there is a model 'demo' already"),
        (("gpt=demo", "gpt=demo"), "there is a model 'gpt' already"),
    ],
)
def test_a_bad_alias_is_named(models: dict[str, Model], arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_aliases(arguments, models)
    assert problem in str(caught.value) and repr(arguments[-1]) in str(caught.value)
