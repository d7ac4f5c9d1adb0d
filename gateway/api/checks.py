"""Answers held against the schemas that their requests gave."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.metrics import STRUCTURED_OUTPUTS, Cells
from gateway.parsers.message import Message
from gateway.schemas import Validator


@dataclass(frozen=True)
class Checks:
    """`content` judges an answer without calls, `arguments` those of calls by the tool's name. What does not fit is an
    error where the client was strict: always for arguments, for the content if it `is_strict`."""

    content: Validator | None = None
    is_strict: bool = False
    arguments: Mapping[str, Validator] = field(default_factory=dict)

    def fault(self, message: Message, finish_reason: str, model: str, cells: Cells) -> str | None:
        """What the client has to be told; counts every outcome."""
        faults = [fault for fault in self._judged(message, finish_reason, model, cells) if fault]
        return faults[0] if faults else None

    def _judged(self, message: Message, finish_reason: str, model: str, cells: Cells) -> list[str | None]:
        was_cut = finish_reason == "length"
        result = []
        if self.content is not None and not message.calls:
            fault = None if was_cut else self.content.fault(message.content)
            self._count(was_cut, fault, model, cells)
            result.append(f"the answer does not fit its schema: {fault}" if fault and self.is_strict else None)
        for call in message.calls:
            validator = self.arguments.get(call.name)
            if validator is not None:
                fault = validator.fault(call.arguments)
                self._count(False, fault, model, cells)
                result.append(f"the arguments of {call.name} do not fit their schema: {fault}" if fault else None)
        return result

    def _count(self, was_cut: bool, fault: str | None, model: str, cells: Cells) -> None:
        outcome = "cut" if was_cut else "invalid" if fault else "valid"
        cells.add(STRUCTURED_OUTPUTS, (model, outcome))
