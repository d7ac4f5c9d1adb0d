"""The classes of requests that wait."""

PRIORITIES = {"high": 16, "normal": 4, "low": 1}
"""The shares of freed places that classes get while all of them wait: a low one is slow, and never starves."""
DEFAULT = "normal"
RANKS = {name: rank for rank, name in enumerate(PRIORITIES)}


def no_better_than(own: str, asked: str) -> str:
    """The class that was asked for, unless it is better than one's own."""
    return max(own, asked, key=RANKS.__getitem__)
