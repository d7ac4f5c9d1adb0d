"""Tables of figures, and the middle of repeated runs."""

from collections.abc import Callable, Sequence
from statistics import median


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown: names, in the first column, to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(_line(cells, widths) for cells in (header, rule, *rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join((cells[0].ljust(len(first)), *others))} |\n"


def middle[Run](runs: Sequence[Run], read: Callable[[Run], float], digits: int = 1) -> str:
    """The median."""
    return f"{median(map(read, runs)):.{digits}f}"


def spread[Run](runs: Sequence[Run], read: Callable[[Run], float], digits: int = 1) -> str:
    """The median, the least and the most."""
    values = sorted(map(read, runs))
    return f"{median(values):.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})"
