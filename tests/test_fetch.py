"""What images may be fetched from: addresses, also those that a name has only at the second look, domains and URLs."""

import asyncio
import ipaddress
import socket
from collections.abc import Coroutine
from typing import Any

import httpcore
import pytest

from gateway.errors import BadImage
from gateway.fetch import Fetcher, Limits, PinnedNetwork, is_public

PATH = "messages[0].content[0].image_url"
FORBIDDEN = (
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1"),
    *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1"),
)


@pytest.mark.parametrize("address", FORBIDDEN)
def test_what_only_this_machine_may_reach_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8"])
def test_what_anybody_may_reach_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Resolver:
    """Gives a name another address each time it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.asked = 0
        self.connected: list[str] = []
        self._answers = answers

        async def getaddrinfo(_: object, host: str, port: int, **options: Any) -> list[Any]:
            answer = self._answers[min(self.asked, len(self._answers) - 1)]
            self.asked += 1
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]

        async def connect_tcp(_: object, host: str, *arguments: Any) -> Any:
            self.connected.append(host)
            raise httpcore.ConnectError("nobody is there")

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)


def run(story: Coroutine[Any, Any, Any]) -> str:
    """What is wrong with it."""
    with pytest.raises(BadImage) as caught:
        asyncio.run(story)
    assert caught.value.param == PATH
    return caught.value.message


def test_a_name_is_looked_up_once_and_that_address_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, ["1.1.1.1"], ["127.0.0.1"])
    assert "cannot be fetched" in run(Fetcher(Limits(100, 5)).fetch("https://rebinding.example/a.png", PATH))
    assert (resolver.asked, resolver.connected) == (1, ["1.1.1.1"])


def test_one_forbidden_address_makes_a_name_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, ["1.1.1.1", "10.0.0.1"])
    assert "not at a public address" in run(Fetcher(Limits(100, 5)).fetch("https://mixed.example/", PATH))
    assert not resolver.connected
    allowed = Limits(100, 5, networks=(ipaddress.ip_network("10.0.0.0/8"),))
    assert "cannot be fetched" in run(Fetcher(allowed).fetch("https://mixed.example/", PATH))
    assert resolver.connected == ["1.1.1.1", "10.0.0.1"]


def test_domains_are_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, ["1.1.1.1"])
    fetcher = Fetcher(Limits(100, 5, domains=("example.com",)))
    for url in ("https://notexample.com/", "https://example.com.evil.org/", "https://example.com@evil.org/"):
        assert "example.com only" in run(fetcher.fetch(url, PATH))
    assert resolver.asked == 0
    for url in ("https://example.com/", "https://IMAGES.Example.com./a b?c=\u00fc"):
        assert "cannot be fetched" in run(fetcher.fetch(url, PATH))
    assert resolver.asked == 2


@pytest.mark.parametrize("url", ["https://[::1", "https://a:b/", "https://", "//x/", "gopher://x/", "http://x/"])
def test_what_is_no_url_to_fetch_is_refused(url: str) -> None:
    assert run(Fetcher(Limits(100, 5)).fetch(url, PATH)).startswith(PATH)


def test_sockets_are_not_reached_either() -> None:
    with pytest.raises(NotImplementedError):
        asyncio.run(PinnedNetwork(()).connect_unix_socket("/run/docker.sock"))
