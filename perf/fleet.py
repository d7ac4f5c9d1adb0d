"""A fleet in simulated time: the simulator's schedulers as executors, the gateway's router before them, no clock.

Everything is the real thing except time and the network: policies, leases, the block index and the executors'
scheduling and prefix caches. Equal options give equal figures.
"""

import heapq
import itertools
import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import mean

from engine_adapters.base import EngineInfo, Load, Submission
from engine_adapters.simulator.rank import Capacity
from engine_adapters.simulator.run import Plan
from engine_adapters.simulator.scheduler import Costs, Scheduler
from gateway.routing import Lease, Policies, Query, Router, Worker, WorkerAddress, WorkerState

REPORT_SECONDS = 0.02
QUIET_SECONDS = 1.0
"""A gateway without tokens or KV events in a frame gets one this often."""
VOCABULARY = 32000
CONTEXT_LENGTH = 32768
PATIENCE_SECONDS = 60.0
"""How long after the last arrival answers are waited for."""


@dataclass(frozen=True)
class Setting:
    """What is simulated. Lengths are means in tokens; `rate` is new conversations a second."""

    executors: int = 8
    gateways: int = 1
    rate: float = 7.0
    seconds: float = 60.0
    warm_seconds: float = 20.0
    system_prompts: int = 48
    system_tokens: int = 800
    turns: float = 6.0
    message_tokens: int = 300
    answer_tokens: int = 150
    think_seconds: float = 8.0
    kv_tokens: int = 131072
    block_size: int = 16
    tells_blocks: bool = True
    seed: int = 1


@dataclass
class Conversation:
    """`left` turns are to come; `token_ids` is all that was said. What comes does not depend on what happens."""

    number: int
    random: random.Random
    left: int
    token_ids: "array[int]"


@dataclass
class Request:
    """One turn, from its arrival on; moments are simulated seconds."""

    conversation: Conversation
    arrived: float
    prompt: bytes
    answer: tuple[int, ...]
    lease: Lease | None = None
    first_token: float = 0.0
    cached_tokens: int = 0


@dataclass
class Executor:
    scheduler: Scheduler[int]
    busy_until: float | None = None
    busy_seconds: float = 0.0
    reported: list[float] = field(default_factory=list)
    """When each gateway last heard of its load."""


@dataclass(frozen=True)
class Outcome:
    """Of the requests that arrived after the warm-up and were answered."""

    requests: int
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    hit_rate: float
    spread: float
    """The busiest executor's busy time, in means."""
    unanswered: int


class Simulation:
    def __init__(self, setting: Setting, policy: str) -> None:
        self.setting = setting
        self.now = 0.0
        self._random = random.Random(setting.seed)
        random.seed(setting.seed)  # the policies'
        self._order = itertools.count()
        self._events: list[tuple[float, int, int, object]] = []
        self._conversations = 0
        self._requests: dict[int, Request] = {}
        self._answers: dict[str, tuple[int, ...]] = {}
        self.done: list[Request] = []
        self._executors = [self._new_executor() for _ in range(setting.executors)]
        self._routers = [Router(Policies([policy]), lambda: self.now) for _ in range(setting.gateways)]
        self._workers = [self._add_workers(router) for router in self._routers]
        self._prompts = [tokens(self._random, setting.system_tokens) for _ in range(setting.system_prompts)]

    def run(self) -> Outcome:
        for moment in self._arrivals():
            self._at(moment, -1, None)
        while self._events:
            self.now, _, executor, request = heapq.heappop(self._events)
            if self.now > self.setting.seconds + PATIENCE_SECONDS:
                break  # it may never catch up
            if executor >= 0:
                self._end_step(executor)
            else:
                self._arrive(request if isinstance(request, Request) else self._new_conversation())
        return self._outcome()

    def check_idle(self) -> None:
        """That all leases came back whose answers did."""
        in_flight = sum(router.in_flight(worker) for router in self._routers for worker in router.snapshot())
        assert in_flight == len(self._requests)

    # --- what comes -------------------------------------------------------------------------------------------------

    def _arrivals(self) -> Iterator[float]:
        moment = 0.0
        while (moment := moment + self._random.expovariate(self.setting.rate)) < self.setting.seconds:
            yield moment

    def _new_conversation(self) -> Request:
        number = self._conversations
        self._conversations += 1
        dice = random.Random(self.setting.seed * 1_000_003 + number)
        turns = 1 + min(30, int(dice.expovariate(1 / max(1e-9, self.setting.turns - 1))))
        opening = dice.choice(self._prompts) if self._prompts else array("I")
        return self._next_turn(Conversation(number, dice, turns, array("I", opening)))

    def _next_turn(self, conversation: Conversation) -> Request:
        conversation.left -= 1
        dice = conversation.random
        conversation.token_ids += tokens(dice, length(dice, self.setting.message_tokens))
        answer = tuple(tokens(dice, length(dice, self.setting.answer_tokens)))
        return Request(conversation, self.now, conversation.token_ids.tobytes(), answer)

    # --- the gateway's part -----------------------------------------------------------------------------------------

    def _arrive(self, request: Request) -> None:
        request.arrived = self.now
        gateway = request.conversation.random.randrange(self.setting.gateways)
        key = str(request.conversation.number)
        lease = request.lease = self._routers[gateway].lease("m", set(), Query(request.prompt, routing_key=key))
        lease.sent()
        executor = self._workers[gateway].index(lease.worker)
        number = next(self._order) * self.setting.gateways + gateway
        self._requests[number] = request
        submission = Submission(str(number), request.prompt, len(request.answer), ignore_eos=True)
        self._answers[submission.request_id] = request.answer
        refusal = self._executors[executor].scheduler.submit([number], replace(submission, dp_rank=lease.dp_rank))
        assert refusal is None, refusal
        if self._executors[executor].busy_until is None:
            self._begin_step(executor)

    def _deliver(self, executor: int, frame_for: set[int]) -> None:
        """What a frame says of the executor, to the gateways that get one."""
        one = self._executors[executor]
        events = one.scheduler.take_kv_events()
        load = self._load(one)
        for gateway, router in enumerate(self._routers):
            worker = self._workers[gateway][executor]
            if self.setting.tells_blocks and events:
                assert not router.note_kv_events(worker, events, is_first=False)
            wait = REPORT_SECONDS if gateway in frame_for or (events and self.setting.tells_blocks) else QUIET_SECONDS
            if self.now - one.reported[gateway] >= wait:
                one.reported[gateway] = self.now
                router.report(worker, load)

    def _finish(self, request: Request, cached_tokens: int) -> None:
        assert request.lease is not None
        request.cached_tokens = cached_tokens
        request.lease.ended(cached_tokens)
        request.lease.release()
        self.done.append(request)
        conversation = request.conversation
        conversation.token_ids += array("I", request.answer)
        if conversation.left and len(conversation.token_ids) < CONTEXT_LENGTH / 2:
            pause = conversation.random.expovariate(1 / self.setting.think_seconds)
            self._at(self.now + pause, -1, self._next_turn(conversation))

    # --- the executors' part ----------------------------------------------------------------------------------------

    def _begin_step(self, executor: int) -> None:
        one = self._executors[executor]
        end = one.busy_until = one.scheduler.begin_step(self.now)
        if end is not None:
            one.busy_seconds += end - self.now
            self._at(end, executor, None)

    def _end_step(self, executor: int) -> None:
        outputs = self._executors[executor].scheduler.end_step()
        self._deliver(executor, {number % self.setting.gateways for number, _, _ in outputs})
        for number, token_ids, finish in outputs:
            request = self._requests[number]
            if token_ids and not request.first_token:
                request.first_token = self.now
                assert request.lease is not None
                request.lease.begin()
            if finish is not None:
                self._finish(self._requests.pop(number), finish.cached_tokens)
        self._begin_step(executor)

    def _new_executor(self) -> Executor:
        setting = self.setting
        capacity = Capacity(kv_tokens=setting.kv_tokens, block_size=setting.block_size, context_length=CONTEXT_LENGTH)
        scheduler: Scheduler[int] = Scheduler(self._plan, Costs(), capacity, frozenset())
        return Executor(scheduler, reported=[-1.0] * setting.gateways)

    def _plan(self, submission: Submission, index: int) -> Plan:
        return Plan([(token_id,) for token_id in self._answers.pop(submission.request_id)])

    def _load(self, executor: Executor) -> Load:
        (rank,) = executor.scheduler.ranks
        load = rank.load
        return Load(load.running, load.waiting, load.kv_tokens_used, load.kv_tokens_total)

    def _add_workers(self, router: Router) -> list[Worker]:
        features = frozenset({"kv_events"} if self.setting.tells_blocks else ())
        info = EngineInfo(
            "simulator", "1", "m", VOCABULARY, CONTEXT_LENGTH, 256, b"", (), self.setting.block_size, 1, features
        )
        workers = []
        for number in range(self.setting.executors):
            worker = Worker(f"w{number}", WorkerAddress("step", f"w{number}", 1), None)
            router.add(worker)
            router.publish(worker, WorkerState("ready", model="m", info=info))
            workers.append(worker)
        return workers

    def _at(self, moment: float, executor: int, request: Request | None) -> None:
        heapq.heappush(self._events, (moment, next(self._order), executor, request))

    def _outcome(self) -> Outcome:
        counted = [request for request in self.done if request.arrived >= self.setting.warm_seconds]
        waits = sorted(request.first_token - request.arrived for request in counted)
        busy = [executor.busy_seconds for executor in self._executors]
        prompt_tokens = sum(len(request.prompt) // 4 for request in counted)
        return Outcome(
            requests=len(counted),
            ttft_mean=mean(waits),
            ttft_p50=waits[len(waits) // 2],
            ttft_p99=waits[math.ceil(len(waits) * 0.99) - 1],
            hit_rate=sum(request.cached_tokens for request in counted) / prompt_tokens,
            spread=max(busy) / mean(busy),
            unanswered=len(self._requests),
        )


def tokens(dice: random.Random, count: int) -> "array[int]":
    return array("I", dice.choices(range(VOCABULARY), k=count))


def length(dice: random.Random, average: int) -> int:
    """Log-normal: most are short, some are long."""
    return max(1, int(average * dice.lognormvariate(-0.32, 0.8)))
