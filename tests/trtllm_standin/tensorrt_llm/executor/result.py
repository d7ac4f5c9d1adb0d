"""A request's results, as they come out of the executor's queue one response at a time."""

import asyncio
import collections
import weakref
from dataclasses import dataclass, field
from typing import Any, Self

from tensorrt_llm.params import IS_NEW, RequestError, SamplingParams


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    disaggregated_params: Any = None
    last_length: int = 0

    @property
    def token_ids_diff(self) -> list[int]:
        """Wrong whenever another sequence's response came last."""
        return self.token_ids[self.last_length :]


@dataclass(slots=True)
class Response:
    """What one step of the engine says of one sequence."""

    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    is_final: bool = False
    finish_reason: str = ""
    stop_reason: int | None = None
    error: str = ""
    prompt_logprobs: list[Any] | None = None
    disaggregated_params: Any = None
    cached_tokens: int = 0


class AsyncQueue:
    """Filled by the engine's thread, which then has the loop told once for all queues it filled."""

    def __init__(self) -> None:
        self.items: collections.deque[Any] = collections.deque()
        self.event = asyncio.Event()
        self.readers = 0

    async def get(self, seconds: float | None = None) -> Any:
        self.readers += 1
        assert self.readers == 1, "this queue has one reader"
        try:
            while not self.items:
                self.event.clear()
                async with asyncio.timeout(seconds):
                    await self.event.wait()
            return self.items.popleft()
        finally:
            self.readers -= 1


class GenerationResult:
    def __init__(self, request_id: int, params: SamplingParams, prompt: list[int], executor: Any) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt
        self.sampling_params = params
        self.aqueue = AsyncQueue()
        self.cached_tokens = 0
        self.disaggregated_params: Any = None
        if IS_NEW:
            self.error: str | None = None
        self._outputs = [CompletionOutput(index) for index in range(params.n)]
        self._executor = weakref.ref(executor)
        self._aborted = self._done = False

    @property
    def outputs(self) -> list[CompletionOutput]:
        return self._outputs[: self.sampling_params.n]

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        executor = self._executor()
        assert executor is not None
        executor.abort_request(self.request_id)
        self._aborted = True

    def aborted(self) -> bool:
        return self._aborted

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Self:
        if self._done:
            raise StopAsyncIteration
        await self._aresult_step()
        return self

    async def _aresult_step(self) -> None:
        self._handle_response(await self.aqueue.get())

    def _handle_response(self, response: Response) -> None:
        if response.error:
            self._done = True
            if not IS_NEW:
                raise RequestError(response.error)
            self.error = response.error
            return
        self._done = response.is_final
        self.cached_tokens = response.cached_tokens
        output = self._outputs[response.index]
        output.last_length = len(output.token_ids)
        output.token_ids.extend(response.token_ids)
        output.logprobs += response.logprobs
        output.disaggregated_params = response.disaggregated_params or self.disaggregated_params
        if response.prompt_logprobs is not None:
            output.prompt_logprobs = response.prompt_logprobs
        if response.finish_reason == "cancelled":
            output.finish_reason = "cancelled"
        elif self._done:
            output.finish_reason, output.stop_reason = response.finish_reason, response.stop_reason
            if response.stop_reason is not None:
                output.token_ids = output.token_ids[:-1]


class IterationResult:
    """What is in a queue of reports, until nothing comes for `timeout` seconds."""

    def __init__(self, queue: AsyncQueue, timeout: float) -> None:
        self._queue = queue
        self._timeout = timeout
        self._done = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._done:
            raise StopAsyncIteration
        try:
            return await self._queue.get(self._timeout)
        except TimeoutError:
            self._done = True
            raise StopAsyncIteration from None
