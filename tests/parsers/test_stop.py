"""StopScanner against a reference that sees the whole text at once."""

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.parsers.stop import StopScanner, StopStrings

# Few letters, so that stop strings overlap with themselves, each other and the text.
TEXTS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4).map(tuple)


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None]:
    """The text passed on and the stop string found."""
    scanner = StopScanner(StopStrings(stops))
    text = "".join(map(scanner.feed, pieces))
    return text + scanner.flush(), scanner.matched


def reference(stops: tuple[str, ...], text: str) -> tuple[str, str | None]:
    """Letter by letter: the text ends where it first ends in a stop string, the longest of these."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def cut(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in zip(borders, borders[1:], strict=False)]


@given(stops=STOPS, text=TEXTS, places=st.lists(st.integers(0, 1000), max_size=8))
@example(stops=("ab", "b"), text="aab", places=[])
@example(stops=("abaab",), text="ababaab", places=[4])
def test_the_result_is_the_references_however_the_text_is_cut(
    stops: tuple[str, ...], text: str, places: list[int]
) -> None:
    assert run(stops, cut(text, places)) == reference(stops, text)


@given(stops=STOPS, text=TEXTS)
def test_one_letter_at_a_time_is_as_good_as_all_at_once(stops: tuple[str, ...], text: str) -> None:
    assert run(stops, list(text)) == run(stops, [text])


@given(stops=STOPS, text=TEXTS)
def test_no_more_is_held_back_than_may_begin_a_stop_string(stops: tuple[str, ...], text: str) -> None:
    scanner = StopScanner(StopStrings(stops))
    passed = "".join(map(scanner.feed, text))
    held = text[len(passed) :]

    assert text.startswith(passed)
    if scanner.matched is None:
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_without_stop_strings_text_passes_untouched() -> None:
    assert run((), ["a", "", "bc"]) == ("abc", None)


def test_after_a_match_everything_is_dropped() -> None:
    scanner = StopScanner(StopStrings(("stop",)))

    assert scanner.feed("go stop go") == "go "
    assert scanner.feed("on and on") == ""
    assert scanner.flush() == ""
    assert scanner.matched == "stop"


def test_thousands_of_stop_strings_are_found_like_a_few() -> None:
    stops = tuple("a" * length + "b" for length in range(1, 120)) + tuple(f"<{number}>" for number in range(3000))

    assert run(stops, ["aaa", "aaac<29", "99", ">b"]) == ("aaaaaac", "<2999>")
    assert run(stops, ["a" * 200, "a", "bc"]) == ("a" * 82, "a" * 119 + "b")
