"""Where a prompt has the model think: the markers of reasoning blocks, and which of them a prompt leaves open."""

from typing import NamedTuple


class Markers(NamedTuple):
    """Around a reasoning block."""

    opening: str
    closing: str


MARKERS = (
    Markers("<think>", "</think>"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("[THINK]", "[/THINK]"),
    Markers("◁think▷", "◁/think▷"),
    Markers("<|channel|>analysis<|message|>", "<|end|>"),
    Markers("<|channel>thought\n", "<channel|>"),
)
"""DeepSeek, Qwen, GLM, Kimi, MiniMax, Nemotron …; Seed-OSS; Command-A; Magistral; Kimi-VL; gpt-oss; Gemma 4."""


def open_marker(text: str) -> str | None:
    """The opening marker that comes last in `text` and has no closing one after it."""
    last, found = -1, None
    for opening, closing in MARKERS:
        place = text.rfind(opening)
        if place > last:
            last, found = place, opening if text.find(closing, place) < 0 else None
    return found


def without_reasoning(text: str) -> str:
    """`text` up to its first marker, opening or closing."""
    places = [place for markers in MARKERS for marker in markers if (place := text.find(marker)) >= 0]
    return text[: min(places)] if places else text
