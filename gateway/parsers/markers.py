"""Finding markers in text that comes in pieces."""

import re
from collections.abc import Iterable


class Markers:
    """A set of markers. None may be the beginning of another, else the cuts would decide which one is found."""

    __slots__ = ("_search", "may_begin", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        for text in self.texts:
            longer = [other for other in self.texts if other != text and other.startswith(text)]
            if longer or not text:
                raise ValueError(f"the marker {text!r} is the beginning of {longer[:1]}")
        whole = "|".join(map(re.escape, self.texts))
        begun = "|".join(filter(None, map(_begun, self.texts)))
        self._search = re.compile(f"({whole or '(?!)'})" + (rf"|(?:{begun})\Z" if begun else "")).search
        self.may_begin = self._search
        """Finds a marker or the beginning of one at the end; None when there is neither."""

    def search(self, text: str, at: int) -> tuple[int, str]:
        """(where certain text ends, the marker there). Without a marker, "": what is behind may still become one."""
        match = self._search(text, at)
        if match is None:
            return len(text), ""
        return match.start(), match[1] or ""


def _begun(marker: str) -> str:
    """A pattern for all proper beginnings of `marker`."""
    pattern = ""
    for character in reversed(marker[:-1]):
        pattern = re.escape(character) + (f"(?:{pattern})?" if pattern else "")
    return pattern
