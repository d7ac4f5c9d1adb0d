"""Coroutines side by side."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any


async def together[Result](work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of all of them, at once; the first that fails ends the others and is raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
