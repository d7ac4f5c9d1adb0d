"""Images through the front door to every kind of engine, and what is left of them when a process is killed."""

import base64
import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine_adapters.tokenizer_file import TokenizerFile
from tests import chat
from tests.demo_model import END_OF_TURN
from tests.native_servicer import Servicer
from tests.openengine import OpenEngineServer
from tests.processes import Gateway, Simulator, eventually, wait_until_idle
from tests.trtllm_executor import NEW, OLD, Executor
from tests.vision_model import data_url, image_part, make_vision_model, picture, text_part

PATH = "/v1/chat/completions"
RED, BLUE = picture(), picture(84, 56, (10, 20, 250))
CONTENT = [text_part("First "), image_part(data_url(RED)), text_part(" then "), image_part(data_url(BLUE))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision_model(tmp_path_factory.mktemp("vision") / "demo")


@pytest.fixture(scope="module")
def placeholder(folder: Path) -> int:
    return TokenizerFile(folder).ids["<|image_pad|>"]


def ask(gateway: Gateway, content: Any = CONTENT, **fields: Any) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 5} | fields
    return gateway.client.post(PATH, json=body)


def served(folder: Path, *workers: str, arguments: Sequence[str] = ()) -> Gateway:
    return Gateway("--model-path", f"demo={folder}", *arguments, workers=workers)


def test_trtllm_service_gets_the_files_and_placeholders(folder: Path, placeholder: int, tools_python: Path) -> None:
    with Servicer(tools_python) as servicer, served(folder, servicer.url) as gateway:
        servicer.obey(eos=END_OF_TURN, vocab_size=placeholder + 1, steps=[[[5]], [[END_OF_TURN]]])
        gateway.wait_until_ready()
        assert ask(gateway).status_code == 200
        request = servicer.wait_for("generate")["request"]
        assert [base64.b64decode(each) for each in request["multimodal_input"]["image_data"]] == [RED, BLUE]
        assert request["tokenized"]["input_token_ids"].count(placeholder) == 2
        refused = ask(gateway, [image_part(data_url(RED[:30]))])
        assert refused.json()["error"]["param"] == "messages[0].content[0].image_url", "the gateway looks at them"
        wait_until_idle(gateway)


def test_openengine_gets_media_items(folder: Path, placeholder: int, tools_python: Path) -> None:
    with OpenEngineServer(tools_python, eos=END_OF_TURN, supports_multimodal=True) as server:
        with served(folder, server.url) as gateway:
            gateway.wait_until_ready()
            assert ask(gateway).status_code == 200
            request = server.request()
            assert [base64.b64decode(each["raw_bytes"]) for each in request["media"]] == [RED, BLUE]
            assert [each["uuid"] for each in request["media"]] == [sha256(RED), sha256(BLUE)]
            assert [each["modality"] for each in request["media"]] == ["MODALITY_IMAGE"] * 2 or [1, 1]
            assert request["token_ids"]["ids"].count(placeholder) == 2


def test_an_engine_without_images_is_named(folder: Path, tools_python: Path) -> None:
    with OpenEngineServer(tools_python) as server, served(folder, server.url) as gateway:
        gateway.wait_until_ready()
        error = ask(gateway).json()["error"]
        assert error["param"] == "messages[0].content[1].image_url"
        assert "not supported by the engine of this model" in error["message"]


def test_tensorrt_llm_gets_files_or_tensors(folder: Path, placeholder: int, tmp_path: Path) -> None:
    ways = {OLD: (), NEW: ("--image-tensors", "--image-dtype", "float16")}
    inputs: dict[str, Any] = {}
    for version, arguments in ways.items():
        calls = tmp_path / version
        with Executor(*arguments, version=version, calls=calls, model=folder, images=True) as executor:
            with served(folder, executor.url) as gateway:
                answer = ask(gateway.wait_until_ready())
                assert answer.status_code == 200, answer.text
                inputs[version] = executor.calls()[-1]["inputs"]
    files, tensors = inputs[OLD], inputs[NEW]["multimodal_data"]["image"]
    assert files["prompt_token_ids"].count(placeholder) == 2
    images = files["multi_modal_data"]["image"]
    assert ["size=56x56" in images[0], "size=84x56" in images[1]] == [True, True]
    assert tensors["pixel_values"].startswith("[40, 1176] "), "the patches of both"
    assert tensors["image_grid_thw"].startswith("[2, 3] ")
    assert answer.json()["usage"]["prompt_tokens"] == len(files["prompt_token_ids"]) - 2 + 4 + 6


@pytest.fixture(scope="module")
def fleet(folder: Path, tools_python: Path) -> Iterator[tuple[Gateway, Simulator, Servicer]]:
    """Engines that want tensors and engines that want files."""
    with (
        Simulator("--speed", "0", "--log-images", "--model-path", str(folder)) as simulator,
        Servicer(tools_python) as servicer,
    ):
        servicer.obey(eos=END_OF_TURN, vocab_size=10_000, steps=[[[5]], [[END_OF_TURN]]])
        workers = (simulator.url, servicer.url)
        with served(folder, *workers, arguments=("--policy", "round_robin")) as gateway:
            eventually(lambda: gateway.wait_until_ready().worker_states() == ["ready", "ready"])
            yield gateway, simulator, servicer


def test_each_engine_gets_what_it_takes(fleet: tuple[Gateway, Simulator, Servicer], placeholder: int) -> None:
    gateway, simulator, servicer = fleet
    for _ in range(2):
        assert ask(gateway).status_code == 200
    ids = servicer.wait_for("generate")["request"]["tokenized"]["input_token_ids"]
    assert ids.count(placeholder) == 2
    first, second = (json.loads(line.partition(" image ")[2]) for line in simulator.lines(" image "))
    assert (first["length"], second["length"]) == (4, 6)
    assert second["offset"] > first["offset"] + 4


def test_requests_go_where_their_images_are_cached(folder: Path) -> None:
    arguments = ("--speed", "0", "--model-path", str(folder))
    with Simulator(*arguments) as one, Simulator(*arguments) as other:
        with served(folder, one.url, other.url) as gateway:
            eventually(lambda: gateway.wait_until_ready().worker_states() == ["ready", "ready"])
            homes = [
                [worker_of(gateway, colour, question) for question in ("What is it?", "And why?", "Who did it?")]
                for colour in range(4)
            ]
    assert all(len({*home}) == 1 for home in homes), homes
    assert len({home[0] for home in homes}) == 2, "equal tokens are not the same picture"


def worker_of(gateway: Gateway, colour: int, question: str) -> str:
    picture_url = data_url(picture(560, 560, (colour, 0, 0)))
    answer = ask(gateway, [image_part(picture_url), text_part(question)])
    request_id = answer.headers["x-request-id"]
    found = eventually(lambda: [entry["worker"] for entry in gateway.log() if entry.get("id") == request_id])
    return str(found[0])


def test_nothing_is_left_when_a_process_is_killed(folder: Path) -> None:
    content = [image_part(data_url(picture(600, 500)))]
    arguments = ("--model-path", str(folder), "--output", "random", "--ignore-eos", "--decode-base-ms", "20")
    with Simulator(*arguments) as simulator:
        with served(folder, simulator.url, arguments=("--image-cache-mb", "0")) as gateway:
            gateway.wait_until_ready()
            body = {"model": "demo", "messages": [{"role": "user", "content": content}], "stream": True}
            with gateway.client.stream("POST", PATH, json=body) as response:
                chat.first_text(chat.events_of(response))
                assert mapped(simulator.child.pid), "the picture is shared, and not sent"
                eventually(lambda: not mapped(gateway.child.pid), "an answer has begun: it is the engine's alone")
                gateway.send_signal(signal.SIGKILL)
                gateway.exit_code()
        eventually(lambda: not mapped(simulator.child.pid), "the executor's end of it")
        with served(folder, simulator.url) as gateway:
            assert ask(gateway.wait_until_ready(), content).status_code == 200
            simulator.send_signal(signal.SIGKILL)
            eventually(lambda: gateway.worker_states() == ["lost"])
            assert gateway.metric("gateway_image_cache_entries") == 1


def mapped(pid: int) -> list[str]:
    return [each.path for each in psutil.Process(pid).memory_maps() if "gateway-image" in each.path]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
