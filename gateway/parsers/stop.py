"""Stop strings, found wherever the pieces of the text are cut."""


class StopScanner:
    """Passes text on up to the first stop string, or including it if asked; all after it is dropped.

    Of several, the one that is complete first wins, and of those the one that began first, however the text is cut.
    """

    __slots__ = ("_held", "_include_stop", "_longest", "_stops", "matched")

    def __init__(self, stops: tuple[str, ...], include_stop: bool = False) -> None:
        self._stops = stops
        self._include_stop = include_stop
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that cannot belong to a stop string any more."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            end, start = match
            self.matched = next(stop for stop in self._stops if text[start:end] == stop)
            self._held = ""
            return text[: end if self._include_stop else start]
        certain = len(text) - self._held_back(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back in case a stop string was beginning."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        """(end, start) of the match that ends first."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found, default=None)

    def _held_back(self, text: str) -> int:
        """How many characters at the end of `text` may be the start of a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
