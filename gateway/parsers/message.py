"""What an answer's pieces add up to."""

from dataclasses import dataclass

from gateway.types import CallDelta, Content, Piece, Text


@dataclass(slots=True)
class Call:
    """A complete tool call; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


class Message:
    """One answer as a whole. Calls that broke are content: their markup stands where they did."""

    __slots__ = ("_arguments", "_calls", "_content", "_reasoning", "calls")

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, Call] = {}
        self._arguments: dict[int, list[str]] = {}
        self.calls: list[Call] = []

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def add_event(self, event: Text) -> None:
        if event.pieces:
            for piece in event.pieces:
                self.add(piece)
        elif event.text:
            self._content.append(event.text)

    def add(self, piece: Piece) -> None:
        if isinstance(piece, CallDelta):
            self._add_call(piece)
        elif isinstance(piece, Content):
            self._content.append(piece.text)
        else:
            self._reasoning.append(piece.text)

    def _add_call(self, piece: CallDelta) -> None:
        if piece.name:
            self._calls[piece.number] = Call(piece.id, piece.name, "")
            self._arguments[piece.number] = []
        elif piece.is_complete:
            call = self._calls.pop(piece.number)
            call.arguments = "".join(self._arguments.pop(piece.number))
            self.calls.append(call)
        elif piece.broken:
            self._content.append(piece.broken)
        else:
            self._arguments[piece.number].append(piece.arguments)
