"""StopScanner where the stop string itself belongs to the text, against what it does without."""

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.parsers.stop import StopScanner, StopStrings
from tests.parsers.test_stop import STOPS, TEXTS, cut, reference


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None]:
    """The text passed on, the stop string included, and the stop string found."""
    scanner = StopScanner(StopStrings(stops), include_stop=True)
    text = "".join(map(scanner.feed, pieces))
    return text + scanner.flush(), scanner.matched


@given(stops=STOPS, text=TEXTS, places=st.lists(st.integers(0, 1000), max_size=8))
@example(stops=("ab", "b"), text="aab", places=[])
@example(stops=("abaab",), text="ababaab", places=[4])
def test_the_stop_string_is_the_end_of_the_text_however_it_is_cut(
    stops: tuple[str, ...], text: str, places: list[int]
) -> None:
    without, matched = reference(stops, text)

    assert run(stops, cut(text, places)) == (without + (matched or ""), matched)


@given(stops=STOPS, text=TEXTS)
def test_what_is_passed_on_is_always_a_beginning_of_the_text(stops: tuple[str, ...], text: str) -> None:
    scanner = StopScanner(StopStrings(stops), include_stop=True)
    passed = ""
    for letter in text:
        passed += scanner.feed(letter)
        assert text.startswith(passed)
    assert text.startswith(passed + scanner.flush())


def test_nothing_follows_an_included_stop_string() -> None:
    scanner = StopScanner(StopStrings(("stop",)), include_stop=True)

    assert scanner.feed("go st") == "go "
    assert scanner.feed("op go") == "stop"
    assert scanner.feed("on and on") == ""
    assert scanner.flush() == ""
