"""What a worker's health checks add up to: a few in a row must agree before its state changes.

Threads: the engine thread's.
"""

DOWN = 3
UP = 2


class Health:
    """After DOWN failed checks in a row `problem` says what is wrong; after UP good ones it is empty again."""

    def __init__(self) -> None:
        self.problem = ""
        self._agreeing = 0

    def note(self, problem: str) -> None:
        """What a check found; empty when nothing."""
        if bool(problem) == bool(self.problem):
            self._agreeing = 0
            return
        self._agreeing += 1
        if self._agreeing >= (DOWN if problem else UP):
            self.problem = problem
            self._agreeing = 0
