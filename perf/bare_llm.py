"""The floor of an executor over TensorRT-LLM's LLM API: reads every result with `async for` and does nothing with it.

`python -m perf.bare_llm STREAMS TOKENS` prints the CPU time of this process per token, in microseconds, from when every
stream has some tokens until the first one has them all.
"""

import asyncio
import sys
import time
from typing import Any

from tensorrt_llm import LLM, SamplingParams

from perf.samples import WARM_TOKENS


async def follow(result: Any, counts: list[int], index: int) -> None:
    async for _ in result:
        counts[index] += 1


async def read_stats(llm: Any) -> None:
    async for _ in llm.get_stats_async(timeout=60):
        pass


async def measure(streams: int, tokens: int) -> float:
    llm = LLM(model="bare", enable_iter_perf_stats=True)
    reading = asyncio.ensure_future(read_stats(llm))
    counts = [0] * streams
    params = [
        SamplingParams(end_id=0, max_tokens=tokens, temperature=1.0, ignore_eos=True, detokenize=False)
        for _ in range(streams)
    ]
    results = [llm.generate_async({"prompt_token_ids": [5, 6, 7]}, each, streaming=True) for each in params]
    tasks = [asyncio.ensure_future(follow(result, counts, index)) for index, result in enumerate(results)]
    while min(counts) < WARM_TOKENS:  # noqa: ASYNC110 - an event would cost something for every token
        await asyncio.sleep(0.01)
    started, before = time.process_time_ns(), sum(counts)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    reading.cancel()
    return (time.process_time_ns() - started) / 1000 / (sum(counts) - before)


if __name__ == "__main__":
    sys.stdout.write(f"{asyncio.run(measure(int(sys.argv[1]), int(sys.argv[2])))}\n")
