"""Images through the front door to every kind of engine, and what is left of them when a process is killed."""

import base64
import hashlib
import itertools
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from engine_adapters.tokenizer_file import TokenizerFile
from gateway.multimodal import load_image, processor_of
from tests import chat
from tests.demo_model import END_OF_TURN
from tests.executor import FakeExecutor, demo_info
from tests.native_servicer import Servicer
from tests.openengine import OpenEngineServer
from tests.processes import Gateway, Simulator, eventually
from tests.trtllm_executor import NEW, OLD, Executor
from tests.vision_model import data_url, image_part, make_vision_model, picture, text_part

PATH = "/v1/chat/completions"
RED, BLUE, LARGE = picture(), picture(84, 56, (10, 20, 250)), picture(600, 500)
CONTENT = [text_part("First "), image_part(data_url(RED)), text_part(" then "), image_part(data_url(BLUE))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision_model(tmp_path_factory.mktemp("vision") / "demo")


@pytest.fixture(scope="module")
def placeholder(folder: Path) -> int:
    return TokenizerFile(folder).ids["<|image_pad|>"]


@dataclass
class Fleet:
    """One gateway whose models have engines of every kind. `half` wants its tensors in half precision."""

    gateway: Gateway
    servicer: Servicer
    openengine: OpenEngineServer
    simulator: Simulator
    half: Simulator
    files: Executor
    tensors: Executor


@pytest.fixture(scope="module")
def fleet(folder: Path, tools_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    calls = tmp_path_factory.mktemp("calls")
    simulated = ("--speed", "0", "--log-images", "--model-path", str(folder))
    tensors = ("--image-tensors", "--image-dtype", "float16")
    with ExitStack() as stack:
        enter = stack.enter_context
        servicer = enter(Servicer(tools_python))
        servicer.obey(eos=END_OF_TURN, vocab_size=10_000, steps=[[[5]], [[END_OF_TURN]]])
        openengine = enter(OpenEngineServer(tools_python, eos=END_OF_TURN, supports_multimodal=True))
        simulator = enter(Simulator(*simulated))
        half = enter(Simulator(*simulated, "--image-dtype", "bfloat16"))
        files = enter(Executor(version=OLD, calls=calls / "files", model=folder, images=True))
        preprocessed = enter(Executor(*tensors, version=NEW, calls=calls / "tensors", model=folder, images=True))
        blind = enter(FakeExecutor(info=demo_info(tokenizer_fingerprint=b"")))
        engines = {
            "native": [servicer], "openengine": [openengine], "half": [half], "files": [files],
            "tensors": [preprocessed], "blind": [blind], "mixed": [simulator, servicer], "pair": [simulator, half],
        }  # fmt: skip
        workers = [f"{engine.url}?model={model}" for model, each in engines.items() for engine in each]
        paths = [word for model in engines for word in ("--model-path", f"{model}={folder}")]
        gateway = enter(Gateway(*paths, "--policy", "mixed=round_robin", workers=workers))
        eventually(lambda: gateway.worker_states() == ["ready"] * len(workers))
        yield Fleet(gateway, servicer, openengine, simulator, half, files, preprocessed)


def ask(gateway: Gateway, model: str, content: Any = CONTENT, status: int = 200) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 5}
    response = gateway.client.post(PATH, json=body)
    assert response.status_code == status, response.text
    return response


def test_trtllm_service_gets_the_files_and_placeholders(fleet: Fleet, placeholder: int) -> None:
    ask(fleet.gateway, "native")
    request = fleet.servicer.wait_for("generate")["request"]
    assert [base64.b64decode(each) for each in request["multimodal_input"]["image_data"]] == [RED, BLUE]
    assert request["tokenized"]["input_token_ids"].count(placeholder) == 2
    refused = ask(fleet.gateway, "native", [image_part(data_url(RED[:30]))], 400).json()["error"]
    assert refused["param"] == "messages[0].content[0].image_url", "the gateway looks at them"


def test_openengine_gets_media_items(fleet: Fleet, placeholder: int) -> None:
    ask(fleet.gateway, "openengine")
    request = fleet.openengine.request()
    assert [base64.b64decode(each["raw_bytes"]) for each in request["media"]] == [RED, BLUE]
    assert [each["uuid"] for each in request["media"]] == [sha256(RED), sha256(BLUE)]
    assert request["token_ids"]["ids"].count(placeholder) == 2


def test_an_engine_without_images_is_named(fleet: Fleet) -> None:
    error = ask(fleet.gateway, "blind", status=400).json()["error"]
    assert error["param"] == "messages[0].content[1].image_url"
    assert "not supported by the engine of this model (fake)" in error["message"]


def test_tensorrt_llm_gets_files_or_tensors(fleet: Fleet, placeholder: int) -> None:
    ask(fleet.gateway, "files")
    usage = ask(fleet.gateway, "tensors").json()["usage"]
    files = fleet.files.calls()[-1]["inputs"]
    assert files["prompt_token_ids"].count(placeholder) == 2
    images = files["multi_modal_data"]["image"]
    assert ["size=56x56" in images[0], "size=84x56" in images[1]] == [True, True]
    tensors = fleet.tensors.calls()[-1]["inputs"]["multimodal_data"]["image"]
    assert tensors["pixel_values"].startswith("[40, 1176] "), "the patches of both"
    assert tensors["image_grid_thw"].startswith("[2, 3] ")
    assert usage["prompt_tokens"] == len(files["prompt_token_ids"]) - 2 + 4 + 6


def test_each_engine_of_a_model_gets_what_it_takes(fleet: Fleet, placeholder: int) -> None:
    for _ in range(2):
        ask(fleet.gateway, "mixed")
    ids = fleet.servicer.wait_for("generate")["request"]["tokenized"]["input_token_ids"]
    assert ids.count(placeholder) == 2
    first, second = (json.loads(line.partition(" image ")[2]) for line in fleet.simulator.lines(" image ")[:2])
    assert (first["length"], second["length"]) == (4, 6)
    assert second["offset"] > first["offset"] + 4


def test_an_engine_that_wants_half_precision_gets_it(fleet: Fleet, folder: Path) -> None:
    ask(fleet.gateway, "half", [image_part(data_url(LARGE))])
    image = json.loads(fleet.half.lines(" image ")[0].partition(" image ")[2])
    assert [each["dtype"] for each in image["tensors"]] == ["bfloat16", "int64"]
    processor = processor_of(folder)
    assert processor is not None
    values = processor.preprocess(load_image(LARGE)).tensors["pixel_values"]
    assert image["tensors"][0]["sha256"] == sha256(rounded(values).tobytes())


def rounded(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """bfloat16 by another way: the nearer of the two neighbours, the even one where both are as near."""
    low = values.view(np.uint32) >> 16
    below, above = ((low + each).astype(np.uint32) << 16 for each in (0, 1))
    exact = values.astype(np.float64)
    to_below, to_above = (abs(exact - each.view(np.float32).astype(np.float64)) for each in (below, above))
    up = (to_above < to_below) | ((to_above == to_below) & (low % 2 == 1))
    return (low + up).astype(np.uint16)


def test_requests_go_where_their_images_are_cached(fleet: Fleet) -> None:
    questions = ("What is it?", "And why?", "Who did it?")
    colours = itertools.count()
    homes = set()

    def both_have_some() -> bool:
        colour = next(colours)
        home = {worker_of(fleet.gateway, colour, question) for question in questions}
        assert len(home) == 1, (colour, home)
        homes.update(home)
        return len(homes) == 2

    # An engine may have told of another model's request when it last told anything, and is passed over until it does.
    eventually(both_have_some, "another picture is another prompt, though its tokens are equal: it goes elsewhere")


def worker_of(gateway: Gateway, colour: int, question: str) -> str:
    picture_url = data_url(picture(560, 560, (colour, 0, 0)))
    answer = ask(gateway, "pair", [image_part(picture_url), text_part(question)])
    request_id = answer.headers["x-request-id"]
    found = eventually(lambda: [entry["worker"] for entry in gateway.log() if entry.get("id") == request_id])
    return str(found[0])


def test_nothing_is_left_when_a_gateway_is_killed(folder: Path) -> None:
    arguments = ("--model-path", str(folder), "--output", "random", "--ignore-eos", "--decode-base-ms", "20")
    path = ("--model-path", f"demo={folder}", "--image-cache-mb", "0")
    with Simulator(*arguments) as simulator, Gateway(*path, workers=[simulator.url]) as gateway:
        # With its first frame the executor says that it can read the gateway's memory.
        ask(gateway.wait_until_ready(), "demo", "Hello!")
        content = [image_part(data_url(LARGE))]
        body = {"model": "demo", "messages": [{"role": "user", "content": content}], "stream": True}
        with gateway.client.stream("POST", PATH, json=body) as response:
            events = chat.events_of(response)  # kept: without them the client leaves
            chat.first_text(events)
            eventually(lambda: mapped(simulator.child.pid), "the picture is shared, and not sent")
            eventually(lambda: not mapped(gateway.child.pid), "an answer has begun: it is the engine's alone")
            gateway.send_signal(signal.SIGKILL)
            gateway.exit_code()
        eventually(lambda: not mapped(simulator.child.pid), "the executor's end of it")


def mapped(pid: int) -> list[str]:
    return [each.path for each in psutil.Process(pid).memory_maps() if "gateway-image" in each.path]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
