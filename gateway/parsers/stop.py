"""Stop strings, found wherever the pieces of the text are cut."""

from collections import deque

ROOT = 0


class StopStrings:
    """Some stop strings as an automaton (Aho and Corasick 1975), shared by all answers of a request and never changed.

    Making it takes about a microsecond a character. States are numbers; a state stands for the longest end of the text
    that begins a stop string.
    """

    __slots__ = ("_ends", "_fallback", "_first", "_next", "depth")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._first = tuple({stop[0] for stop in stops})
        self.depth = [0]
        self._next: list[dict[str, int]] = [{}]
        self._ends: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._fallback = [ROOT] * len(self._next)
        self._link()

    def can_begin_in(self, text: str) -> bool:
        """Whether the text has a character that a stop string begins with."""
        for character in self._first:  # not `isdisjoint`: on 3.13t it locks the text, which all threads may have
            if character in text:
                return True
        return False

    def step(self, state: int, character: str) -> int:
        """The state behind one more character."""
        while True:
            following = self._next[state].get(character)
            if following is not None:
                return following
            if state == ROOT:
                return ROOT
            state = self._fallback[state]

    def found(self, state: int) -> str | None:
        """The stop string that is complete in a state, the longest of several."""
        return self._ends[state]

    def _add(self, stop: str) -> None:
        state = ROOT
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = self._next[state][character] = len(self._next)
                self._next.append({})
                self._ends.append(None)
                self.depth.append(self.depth[state] + 1)
            state = following
        self._ends[state] = stop

    def _link(self) -> None:
        """Where each state falls back to, breadth first: the longest proper end of it that is a state too."""
        states = deque(self._next[ROOT].values())
        while states:
            state = states.popleft()
            for character, following in self._next[state].items():
                fallback = self._fallback[following] = self.step(self._fallback[state], character)
                if self._ends[following] is None:
                    self._ends[following] = self._ends[fallback]
                states.append(following)


class StopScanner:
    """Passes text on up to the first stop string, or including it if asked; all after it is dropped.

    Of several, the one that is complete first wins, and of those the one that began first, however the text is cut.
    """

    __slots__ = ("_held", "_include_stop", "_state", "_stops", "matched")

    def __init__(self, stops: StopStrings, include_stop: bool = False) -> None:
        self._stops = stops
        self._include_stop = include_stop
        self._state = ROOT
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that cannot belong to a stop string any more."""
        if self._state == ROOT and self.matched is None and not self._stops.can_begin_in(text):
            return text
        if self.matched is not None:
            return ""
        stops, state = self._stops, self._state
        for position, character in enumerate(text):
            state = stops.step(state, character)
            if (stop := stops.found(state)) is not None:
                return self._end(stop, self._held + text[: position + 1])
        self._state = state
        text = self._held + text
        certain = len(text) - stops.depth[state]
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back in case a stop string was beginning."""
        held, self._held, self._state = self._held, "", ROOT
        return held

    def _end(self, stop: str, text: str) -> str:
        self.matched, self._held = stop, ""
        return text if self._include_stop else text[: -len(stop)]
