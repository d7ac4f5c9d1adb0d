"""Who may ask: keys for /v1, the admin key or this machine for /admin, nothing for the rest."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.api.access import check_access
from gateway.errors import Forbidden
from gateway.limits import Keys
from tests import chat, completions
from tests.api.test_chat import refusal
from tests.processes import Gateway, Simulator, environment

POOLS = "/admin/pools"
PROTECTED: list[tuple[str, str, Any]] = [
    ("POST", "/v1/chat/completions", chat.body(max_tokens=1)),
    ("POST", "/v1/completions", completions.body(max_tokens=1)),
    ("POST", "/v1/tokenize", {"model": "demo", "prompt": "Hi"}),
    ("POST", "/v1/detokenize", {"model": "demo", "tokens": [1]}),
    ("GET", "/v1/models", None),
]
OPEN = ("/health", "/live", "/ready", "/metrics")


@pytest.fixture(scope="module")
def locked(simulator: Simulator) -> Iterator[Gateway]:
    """A gateway with two keys and an admin key."""
    keys = ("--api-key", "first-key", "--api-key", "second-key", "--admin-key", "admin-key")
    with Gateway("--log-level", "debug", *keys, workers=[simulator.url]) as gateway:
        yield gateway.wait_until_ready()


def ask(gateway: Gateway, method: str, path: str, body: Any, authorization: str | bytes | None) -> httpx.Response:
    headers = {} if authorization is None else {"authorization": authorization}
    return gateway.client.request(method, path, json=body, headers=headers)  # type: ignore[arg-type]


WRONG: dict[str, str | bytes | None] = {
    "nothing": None,
    "another key": "Bearer third-key",
    "half a key": "Bearer first",
    "more than a key": "Bearer first-key2",
    "both keys": "Bearer first-key second-key",
    "no scheme": "first-key",
    "another scheme": "Basic first-key",
    "no key": "Bearer",
    "the admin key": "Bearer admin-key",
    "other letters": "Bearer FIRST-KEY",
    "beyond ASCII": b"Bearer first-k\xc3\xa9y",
}


@pytest.mark.parametrize(("method", "path", "body"), PROTECTED, ids=lambda value: str(value)[:20])
def test_without_a_key_nothing_of_v1_is_answered(locked: Gateway, method: str, path: str, body: Any) -> None:
    error = refusal(ask(locked, method, path, body, None), 401)

    assert error["code"] == "invalid_api_key"
    assert "authorization: Bearer" in error["message"]


@pytest.mark.parametrize("authorization", WRONG.values(), ids=WRONG)
def test_a_wrong_key_is_no_key(locked: Gateway, authorization: str | bytes | None) -> None:
    refusal(ask(locked, "GET", "/v1/models", None, authorization), 401)


@pytest.mark.parametrize(("method", "path", "body"), PROTECTED, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_of_the_keys_opens_all_of_v1(locked: Gateway, method: str, path: str, body: Any, key: str) -> None:
    assert ask(locked, method, path, body, f"Bearer {key}").status_code == 200


@pytest.mark.parametrize("authorization", ["bearer first-key", "BEARER first-key", "Bearer   first-key"])
def test_the_schemes_letters_and_spaces_do_not_matter(locked: Gateway, authorization: str) -> None:
    assert ask(locked, "GET", "/v1/models", None, authorization).status_code == 200


@pytest.mark.parametrize("path", ["/v1/nonsense", "/v1/embeddings", "/v1/%6Dodels", "/v1/../v1/models"])
def test_without_a_key_not_even_what_exists_can_be_learnt(locked: Gateway, path: str) -> None:
    refusal(locked.client.get(path), 401)


def test_a_body_is_not_read_before_the_key_is_known(locked: Gateway) -> None:
    refusal(locked.client.post("/v1/chat/completions", content=b"not JSON"), 401)


@pytest.mark.parametrize("path", OPEN)
def test_what_monitors_ask_needs_no_key(locked: Gateway, path: str) -> None:
    assert locked.client.get(path).status_code == 200


def test_admin_needs_its_own_key(locked: Gateway) -> None:
    assert ask(locked, "GET", POOLS, None, "Bearer admin-key").status_code == 200
    for authorization in (None, "Bearer first-key", "Bearer admin", "admin-key"):
        error = refusal(ask(locked, "GET", POOLS, None, authorization), 401)
        assert "admin key" in error["message"]


def test_without_the_admin_key_nothing_changes(locked: Gateway) -> None:
    before = ask(locked, "GET", POOLS, None, "Bearer admin-key").json()

    refusal(ask(locked, "PATCH", POOLS, {"tokenize": {"threads": 7}}, "Bearer first-key"), 401)

    assert ask(locked, "GET", POOLS, None, "Bearer admin-key").json() == before


def test_keys_do_not_show_in_the_log_or_in_answers(locked: Gateway) -> None:
    answers = [ask(locked, "GET", "/v1/models", None, f"Bearer {key}") for key in ("first-key", "wrong-key")]
    locked.line("GET /v1/models 401")

    for text in (locked.output, *(answer.text for answer in answers)):
        assert not any(key in text for key in ("first-key", "second-key", "admin-key", "wrong-key"))


def test_keys_may_come_from_the_environment(simulator: Simulator) -> None:
    settings = environment(GATEWAY_API_KEY="first-key second-key", GATEWAY_WORKER=simulator.url)
    with Gateway(env=settings) as gateway:
        gateway.wait_until_ready()
        assert ask(gateway, "GET", "/v1/models", None, "Bearer second-key").status_code == 200
        refusal(ask(gateway, "GET", "/v1/models", None, "Bearer first-key second-key"), 401)
        assert gateway.client.get(POOLS).status_code == 200, "from this machine"


def test_without_keys_all_is_open(gateway: Gateway) -> None:
    assert ask(gateway, "GET", "/v1/models", None, None).status_code == 200
    assert ask(gateway, "GET", "/v1/models", None, "Bearer whatever").status_code == 200


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("192.0.2.7", False),
        ("::ffff:10.0.0.1", False),
        ("2001:db8::1", False),
        ("0.0.0.0", False),
    ],
)
def test_without_an_admin_key_admin_is_for_this_machine_only(address: str, may: bool) -> None:
    scope = {"path": POOLS, "client": (address, 5000), "headers": [(b"x-forwarded-for", b"127.0.0.1")]}

    if may:
        check_access(scope, Keys())
    else:
        with pytest.raises(Forbidden, match="this machine only"):
            check_access(scope, Keys())


def test_without_an_admin_key_no_web_page_is_an_admin(gateway: Gateway) -> None:
    body = {"url": "step://127.0.0.1:1"}
    error = refusal(gateway.client.post("/admin/workers", json=body, headers={"origin": "http://example.org"}), 403)

    assert "web pages" in error["message"]
    gateway.line("admin: POST /admin/workers 403")


def test_with_an_admin_key_it_does_not_matter_where_the_admin_is() -> None:
    scope = {"path": POOLS, "client": ("192.0.2.7", 5000), "headers": [(b"authorization", b"Bearer admin-key")]}

    check_access(scope, Keys(admin="admin-key"))
