"""Worker URLs: one parser, whose refusals say what was expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines import ENGINES
from gateway.routing import AddressError, WorkerAddress
from gateway.routing.address import SCHEMES

GOOD: dict[str, WorkerAddress] = {
    "step://host:1": WorkerAddress("step", "host", 1),
    "step://10.0.0.7:65535/": WorkerAddress("step", "10.0.0.7", 65535),
    "step://[::1]:5000": WorkerAddress("step", "::1", 5000),
    "STEP://Host:5000": WorkerAddress("step", "host", 5000),
    "step://a.b-c.example:7?model=meta/llama-3": WorkerAddress("step", "a.b-c.example", 7, model="meta/llama-3"),
    "openengine://h:7": WorkerAddress("openengine", "h", 7),
    "step://h:7?role=prefill&weight=2": WorkerAddress("step", "h", 7, role="prefill", weight=2.0),
    "step://h:7?weight=0.5&model=a%20b&role=decode": WorkerAddress("step", "h", 7, "a b", "decode", 0.5),
}


@pytest.mark.parametrize(("url", "address"), GOOD.items())
def test_a_good_url_is_taken_apart(url: str, address: WorkerAddress) -> None:
    assert WorkerAddress.parse(url) == address


BAD = {
    "": "the scheme must be one of step",
    "host:5000": "the scheme must be",
    "http://host:5000": "the scheme must be",
    "step:host:5000": "expected step://host:port",
    "step://host": "expected step://host:port",
    "step://:5000": "expected step://host:port",
    "step://host:0": "expected step://host:port",
    "step://host:port": "host:port",
    "step://host:70000": "70000",
    "step://host:5000/path": "expected step://host:port",
    "step://user@host:5000": "expected step://host:port",
    "step://host:5000#part": "expected step://host:port",
    "step://[::1:5000": "IPv6",
    "step://host:5000?role=chief": "role must be one of any, prefill, decode",
    "trtllm://host:5000?role=prefill": "cannot carry what a prefill hands over to a decode",
    "step://host:5000?weight=0": "weight must be a number above 0",
    "step://host:5000?weight=-1": "weight must be a number above 0",
    "step://host:5000?weight=nan": "weight must be a number above 0",
    "step://host:5000?weight=inf": "weight must be a number above 0",
    "step://host:5000?weight=heavy": "weight must be a number above 0",
    "step://host:5000?model=": "options are model, role, weight and tls",
    "step://host:5000?model=a&model=b": "each at most once",
    "step://host:5000?color=red": "options are model, role, weight and tls",
    "step://host:5000?model": "step://host:5000?model",
}


@pytest.mark.parametrize(("url", "message"), BAD.items())
def test_a_bad_url_is_refused_by_name(url: str, message: str) -> None:
    with pytest.raises(AddressError) as caught:
        WorkerAddress.parse(url)

    assert repr(url) in str(caught.value)
    assert message in str(caught.value)


@given(url=st.text(max_size=40) | st.text(max_size=30).map(lambda rest: "step://host:1" + rest))
def test_any_text_is_an_address_or_refused(url: str) -> None:
    try:
        address = WorkerAddress.parse(url)
    except AddressError:
        return
    assert WorkerAddress.parse(str(address)).target == address.target


@given(
    host=st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z0-9]{1,5})?", fullmatch=True) | st.ip_addresses().map(str),
    port=st.integers(1, 65535),
)
def test_an_address_is_written_as_it_is_read(host: str, port: int) -> None:
    address = WorkerAddress("step", host, port)

    assert WorkerAddress.parse(str(address)) == address
    assert address.target.endswith(f":{port}")


def test_every_scheme_has_its_engine() -> None:
    assert set(SCHEMES) == set(ENGINES)
