"""Images in chat requests, through the front door to the simulator, which tells of each one it gets."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gateway.multimodal import load_image, processor_of
from tests.image_host import ImageHost
from tests.processes import Gateway, Simulator, eventually, wait_until_idle
from tests.test_openai_client import OpenAiClient
from tests.vision_model import data_url, image_part, make_vision_model, picture, text_part

PATH = "/v1/chat/completions"
RED, BLUE, LARGE = picture(), picture(colour=(10, 20, 250)), picture(1000, 800)
PIXELS = {RED: 4, BLUE: 4, LARGE: 36 * 29}
"""Their tokens."""


class Site:
    """A gateway, its executor, a web server, and a directory that files may come from."""

    def __init__(self, folder: Path, files: Path, simulator: Simulator, gateway: Gateway, host: ImageHost) -> None:
        self.folder = folder
        self.files = files
        self.simulator = simulator
        self.gateway = gateway
        self.host = host
        self._seen = 0

    def ask(self, *content: Any, status: int = 200, **fields: Any) -> dict[str, Any]:
        """The answer to one message of these parts."""
        return self.talk([{"role": "user", "content": [*content]}], status, **fields)

    def talk(self, messages: list[dict[str, Any]], status: int = 200, **fields: Any) -> dict[str, Any]:
        body = {"model": "demo", "messages": messages, "max_tokens": 3} | fields
        response: httpx.Response = self.gateway.client.post(PATH, json=body)
        assert response.status_code == status, response.text
        result: dict[str, Any] = response.json()
        return result

    def images(self, count: int) -> list[dict[str, Any]]:
        """The next images that the executor got."""
        lines = eventually(lambda: (found := self.simulator.lines(" image "))[self._seen + count - 1 :] and found)
        found = [json.loads(line.partition(" image ")[2]) for line in lines[self._seen :]]
        self._seen += count
        assert len(found) == count
        return found

    def refused(self, url: str, **fields: Any) -> str:
        """What the error says of an image; it names its path."""
        error = self.ask(text_part("What?"), image_part(url), status=400, **fields)["error"]
        assert error["param"] == "messages[0].content[1].image_url"
        assert error["type"] == "invalid_request_error"
        message: str = error["message"]
        assert message.startswith(error["param"])
        return message


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = make_vision_model(tmp_path_factory.mktemp("vision") / "model")
    files = tmp_path_factory.mktemp("files")
    executor = ("--speed", "0", "--log-images", "--model-path", str(folder))
    options = ("--image-http", "--image-network", "127.0.0.0/8", "--image-network", "::1/128", "--image-limit", "3")
    limits = ("--image-mb", "1", "--image-seconds", "2", "--image-directory", str(files))
    with Simulator(*executor) as simulator, ImageHost(RED) as host:
        arguments = ("--model-path", f"demo={folder}", *options, *limits)
        with Gateway(*arguments, workers=[simulator.url]) as gateway:
            yield Site(folder, files, simulator, gateway.wait_until_ready(), host)
            wait_until_idle(gateway)


def test_an_image_reaches_the_engine_as_its_processor_makes_it(site: Site) -> None:
    processor = processor_of(site.folder)
    assert processor is not None
    for data in (RED, LARGE):
        answer = site.ask(text_part("Look: "), image_part(data_url(data)), text_part(" and say."))
        (image,) = site.images(1)
        features = processor.preprocess(load_image(data))
        expected = [
            {"name": name, "dtype": array.dtype.name, "shape": [*array.shape], "sha256": sha256(array.tobytes())}
            for name, array in features.tensors.items()
        ]
        assert image["tensors"] == expected
        assert (image["hash"], image["encoded"]) == (sha256(data), "")
        assert image["length"] == features.num_tokens == PIXELS[data]
        assert image["offset"] < answer["usage"]["prompt_tokens"] - image["length"]


def test_images_keep_their_order_over_turns(site: Site) -> None:
    first = {"role": "user", "content": [image_part(data_url(RED)), text_part("and"), image_part(data_url(BLUE))]}
    turns = [first, {"role": "assistant", "content": "Both."}, {"role": "user", "content": [image_part(data_url(RED))]}]
    site.talk(turns)
    images = site.images(3)
    assert [image["hash"] for image in images] == [sha256(RED), sha256(BLUE), sha256(RED)]
    places = [image["offset"] for image in images]
    assert places == sorted(places)


def test_a_picture_seen_before_costs_a_hash_and_is_in_the_prefix_cache(site: Site) -> None:
    data = picture(560, 560, (1, 2, 3))
    site.ask(image_part(data_url(data)), text_part("Say what this is, please."))
    misses, hits = (site.gateway.metric("gateway_images_total", outcome=each) for each in ("miss", "hit"))
    answer = site.ask(image_part(data_url(data)), text_part("Say what this is, please."))
    assert site.gateway.metric("gateway_images_total", outcome="miss") == misses
    assert site.gateway.metric("gateway_images_total", outcome="hit") == hits + 1
    usage = answer["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 400
    # The same number of tokens, and another picture: nothing of it is cached.
    other = site.ask(image_part(data_url(picture(560, 560, (9, 2, 3)))), text_part("Say what this is, please."))
    assert other["usage"]["prompt_tokens"] == usage["prompt_tokens"]
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    site.images(3)


def base64_of(data: bytes) -> str:
    return data_url(data).partition(",")[2]


FORMS: dict[str, dict[str, Any]] = {
    "openai": image_part(data_url(RED), detail="auto"),
    "url itself": {"type": "image_url", "image_url": data_url(RED)},
    "responses": {"type": "input_image", "image_url": data_url(RED)},
    "qwen": {"type": "image", "image": data_url(RED)},
    "bare base64": {"type": "image", "image": base64_of(RED)},
    "base64 object": {"type": "image", "image": {"base64": base64_of(RED)}},
    "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64_of(RED)}},
    "anthropic url": {"type": "image", "source": {"type": "url", "url": data_url(RED)}},
    "transformers": {"type": "image", "url": data_url(RED)},
    "without padding": image_part(data_url(RED).rstrip("=")),
}


@pytest.mark.parametrize("form", FORMS)
def test_clients_have_many_forms(site: Site, form: str) -> None:
    site.ask(text_part("What?"), FORMS[form])
    (image,) = site.images(1)
    assert image["hash"] == sha256(RED)


def test_an_image_may_be_percent_encoded_or_a_file(site: Site) -> None:
    encoded = "".join(f"%{byte:02x}" for byte in RED)
    (site.files / "red apple.png").write_bytes(RED)
    for url in (f"data:image/png,{encoded}", f"file://{site.files}/red%20apple.png"):
        site.ask(image_part(url))
        (image,) = site.images(1)
        assert image["hash"] == sha256(RED)


def test_images_are_fetched_over_connections_that_stay(site: Site) -> None:
    site.ask(image_part(site.host.url("/image")), image_part(site.host.url("/to?/image")))
    before = site.host.connections
    site.ask(image_part(site.host.url("/image?a b=\u00e4")))
    assert site.host.connections == before
    assert {image["hash"] for image in site.images(3)} == {sha256(RED)}


def bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (8200, 8200)).save(file, "PNG")
    return file.getvalue()


def test_what_is_no_image_is_refused_with_its_path(site: Site) -> None:
    (site.files / "link.png").symlink_to(site.folder / "config.json")
    cases = {
        data_url(b"GIF89a"): "must be",
        data_url(b"hello"): "image",
        data_url(RED[: len(RED) // 2]): "broken",
        data_url(bomb()): "too large",
        "data:image/png;base64,????": "base64",
        "data:image/png;base64": "comma",
        data_url(bytes(2 << 20)): "--image-mb",
        "ftp://localhost/a.png": "https",
        "https://": "https",
        f"file://{site.folder}/config.json": "--image-directory",
        f"file://{site.files}/link.png": "--image-directory",
        f"file://{site.files}/none.png": "No such file",
        f"file://{site.files}": "directory",
        site.host.url("/missing"): "404",
        site.host.url("/large"): "--image-mb",
        site.host.url("/slow"): "--image-seconds",
        site.host.url("/to?/to?/to?/to?/to?/to?/to?/image"): "redirected",
        site.host.url("/to?http://169.254.169.254/latest"): "--image-network",
        site.host.url("/to?file:///etc/passwd"): "https",
        "http://10.0.0.1/": "--image-network",
        "http://[::ffff:10.0.0.1]/": "--image-network",
        "http://no.such.host.invalid/": "cannot be fetched",
        "http://localhost:1/": "cannot be fetched",
    }
    before = site.gateway.metric("gateway_images_rejected_total")
    for url, why in cases.items():
        assert why in site.refused(url), url[:60]
    assert site.gateway.metric("gateway_images_rejected_total") == before + len(cases)


def test_fields_that_make_no_sense_are_refused(site: Site) -> None:
    path = "messages[0].content[0]"
    for part, param in (
        ({"type": "image_url"}, f"{path}.image_url"),
        ({"type": "image_url", "image_url": {}}, f"{path}.image_url.url"),
        ({"type": "image_url", "image_url": 3}, f"{path}.image_url"),
        (image_part(data_url(RED), detail="huge"), f"{path}.image_url.detail"),
        ({"type": "video_url"}, f"{path}.type"),
    ):
        assert site.ask(part, status=400)["error"]["param"] == param
    many = site.ask(*[image_part(data_url(RED))] * 4, status=400)["error"]
    assert many["param"] == "messages[0].content[3].image_url" and "--image-limit" in many["message"]
    forged = site.ask(text_part("<|image_pad|>"), image_part(data_url(RED)), status=400)["error"]
    assert "<|image_pad|>" in forged["message"] and forged["param"] == "messages[0].content[1].image_url"
    cut = site.ask(image_part(data_url(RED)), status=400, truncate_prompt_tokens=5)["error"]
    assert cut["param"] == "truncate_prompt_tokens"
    long = site.ask(image_part(data_url(LARGE)), status=400, max_tokens=32_000)["error"]
    assert long["code"] == "context_length_exceeded"


def test_tokenize_counts_an_images_tokens(site: Site) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": [image_part(data_url(LARGE))]}]}
    tokens = site.gateway.client.post("/v1/tokenize", json=body).json()["tokens"]
    assert tokens.count(max(tokens)) == PIXELS[LARGE]


def test_the_vision_pool_is_resized_like_the_others(site: Site) -> None:
    answer = site.gateway.client.patch("/admin/pools", json={"vision": {"threads": 3}}).json()
    assert answer["vision"]["threads"] == 3
    assert site.gateway.metric("gateway_pool_threads", pool="vision") == 3


def test_the_official_client_shows_pictures(site: Site, tools_python: Path) -> None:
    content = [text_part("What is this?"), image_part(data_url(BLUE), detail="high")]
    with OpenAiClient(tools_python) as client:
        chunks = client.chat(site.gateway, messages=[{"role": "user", "content": content}], stream=True, max_tokens=5)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    (image,) = site.images(1)
    assert image["length"] == PIXELS[BLUE]
    assert image["hash"] != sha256(BLUE), "looked at more closely it may be something else"


def test_a_model_without_images_says_so(gateway: Gateway) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": [image_part(data_url(RED))]}]}
    error = gateway.client.post(PATH, json=body).json()["error"]
    assert error["param"] == "messages[0].content[0].image_url"
    assert "takes only text" in error["message"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
