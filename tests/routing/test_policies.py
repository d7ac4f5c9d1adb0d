"""Each policy: who gets a request, given the fleet; and how one is chosen for a model or role."""

import threading
from array import array
from collections import Counter

import pytest

from engine_adapters.base import KvStored, Load, RankLoad
from gateway.config import as_markdown
from gateway.routing import POLICIES, Lease, Policies, PolicyError, Query, Router, Worker, WorkerState
from gateway.routing.candidate import REQUEST_TOKENS
from gateway.routing.fleet import SAMPLE, Lengths, Stickies
from gateway.routing.router import PREDICTED_BLOCK_SIZE
from tests.routing.workers import BLOCK_SIZE, add, fleet_of, info, lease, prompt

LONG = prompt(*range(1000))


def router_of(policy: str, *names: str, **changes: object) -> Router:
    router = Router(Policies([policy]))
    for name in names:
        add(router, name, **changes)
    return router


def who(router: Router, count: int, token_ids: bytes = LONG, key: str = "") -> Counter[str]:
    """Who gets `count` requests that all go on."""
    return Counter(lease(router, token_ids, key).worker.name for _ in range(count))


def one_after_the_other(router: Router, count: int, token_ids: bytes = LONG, key: str = "") -> Counter[str]:
    """Who gets requests that end before the next comes."""
    names = []
    for _ in range(count):
        held = lease(router, token_ids, key)
        names.append(held.worker.name)
        held.sent()
        held.begin()
        held.release()
    return Counter(names)


def stored(router: Router, worker: Worker, token_ids: bytes, dp_rank: int = 0) -> None:
    """The worker's rank says that it has cached a prompt."""
    blocks = len(token_ids) // 4 // BLOCK_SIZE
    event = KvStored(0, tuple(range(1, blocks + 1)), token_ids[: 4 * BLOCK_SIZE * blocks], dp_rank=dp_rank)
    assert router.note_kv_events(worker, [event], is_first=False) == 0


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("workers", [1, 2, 30])
def test_every_policy_serves_fleets_of_any_size_and_gives_all_back(name: str, workers: int) -> None:
    router = router_of(name, *map(str, range(workers)), dp_size=2)
    held = [lease(router, prompt(*range(number)), f"key {number}") for number in range(1, 100)]
    assert fleet_of(router).memory.tally.in_flight == len(held)

    for number, each in enumerate(held):
        if number % 2:
            each.begin()
        each.release()

    for candidate in fleet_of(router).candidates:
        assert (candidate.in_flight, candidate.answers, candidate.reading, candidate.load) == (0, 0, 0, 0)
    assert fleet_of(router).memory.tally.in_flight == 0


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_passes_over_who_was_tried_and_who_is_not_ready(name: str) -> None:
    router = router_of(name, "tried", "lost", "good")
    tried, lost, _ = router.snapshot()
    router.publish(lost, WorkerState("unhealthy"))

    assert {lease(router, key=f"key {number}", tried={tried}).worker.name for number in range(20)} == {"good"}
    assert lease(router, tried=set(router.snapshot())).worker.name in ("tried", "good")


def test_round_robin() -> None:
    router = router_of("round_robin", *"abc")

    assert [lease(router).worker.name for _ in range(6)] == [*"abcabc"]


def test_at_random() -> None:
    counts = who(router_of("random", *"abcd"), 400)

    assert len(counts) == 4 and min(counts.values()) > 50


def test_power_of_two_avoids_who_has_more_to_do() -> None:
    router = router_of("power_of_two", *"abc")
    (busy, *_) = router.snapshot()
    router.report(busy, Load(running=10_000))

    counts = who(router, 60)
    assert set(counts) == {"b", "c"} and min(counts.values()) >= 20, "each imbalance is half as likely as the last"


def test_least_load_respects_weights_and_what_engines_report() -> None:
    router = Router(Policies(["least_load"]))
    strong, weak = add(router, "strong", weight=3), add(router, "weak")
    assert who(router, 40) == {"strong": 30, "weak": 10}

    router.report(weak, Load(running=10, kv_tokens_used=999, kv_tokens_total=1000))
    assert who(router, 20) == {"strong": 20}
    router.report(strong, Load(waiting=500))
    assert who(router, 20) == {"weak": 20}


def test_least_load_chooses_among_ranks() -> None:
    router = router_of("least_load", "a", dp_size=3)
    (worker,) = router.snapshot()
    router.report(worker, Load(ranks=(RankLoad(running=9), RankLoad(waiting=9), RankLoad())))

    assert lease(router).dp_rank == 2


def test_cache_aware_goes_where_the_prompt_is_and_to_the_same_rank() -> None:
    router = router_of("cache_aware", *"abc", dp_size=2)
    _, holder, _ = router.snapshot()
    stored(router, holder, LONG, dp_rank=1)

    held = lease(router, LONG)

    assert (held.worker, held.dp_rank) == (holder, 1)
    fleet = fleet_of(router)
    reading = {candidate.name: candidate.reading for candidate in fleet.candidates if candidate.reading}
    assert reading == {"b#1": BLOCK_SIZE}, "the last token must be read, and with it its block"


def test_cache_aware_prefers_who_has_more_of_it() -> None:
    router = router_of("cache_aware", *"abcd")
    some, more, _, _ = router.snapshot()
    stored(router, some, LONG[:400])
    stored(router, more, LONG[:3000])

    assert one_after_the_other(router, 5) == {"b": 5}


@pytest.mark.parametrize("cached", [200, 400, 800])
def test_a_cached_token_is_worth_a_token_that_waits(cached: int) -> None:
    router = router_of("cache_aware", *"ab")
    holder, _ = router.snapshot()
    stored(router, holder, LONG[: 4 * cached])

    def is_kept(running: int) -> bool:
        router.report(holder, Load(running=running))
        held = lease(router, LONG)
        held.release()
        return held.worker is holder

    kept = [running for running in range(20) if is_kept(running)]
    assert kept == [*range(int(cached // REQUEST_TOKENS) + 1)], "more to do outweighs it only when it is more"


def test_a_prompt_that_all_share_does_not_bring_all_to_one() -> None:
    router = router_of("cache_aware", *"abcd")
    holder, *_ = router.snapshot()
    stored(router, holder, LONG)
    ends = [prompt(*range(start, start + 1000)) for start in range(10_000, 50_000, 1000)]
    counts = Counter(lease(router, LONG + end).worker.name for end in ends)

    assert len(counts) == 4 and max(counts.values()) <= 20


def test_cache_aware_without_anything_cached_is_least_load() -> None:
    router = router_of("cache_aware", *"abc")

    names = [lease(router, prompt(*range(1000 * n, 1000 * n + 100))).worker.name for n in range(9)]

    assert Counter(names) == {"a": 3, "b": 3, "c": 3}


def test_cache_aware_predicts_where_engines_do_not_tell() -> None:
    router = router_of("cache_aware", *"abcd", features=frozenset())

    assert list(one_after_the_other(router, 8).values()) == [8]


def test_engines_that_tell_and_such_that_do_not_are_compared_by_tokens() -> None:
    router = router_of("cache_aware", "told")
    (told,) = router.snapshot()
    untold = add(router, "untold", features=frozenset())
    held = router.lease("demo", {told}, Query(LONG))
    held.sent()
    held.release()
    reusable = (len(LONG) // 4 - 1) // PREDICTED_BLOCK_SIZE * PREDICTED_BLOCK_SIZE

    for stored_tokens, better in ((reusable - BLOCK_SIZE, untold), (reusable + BLOCK_SIZE, told)):
        stored(router, told, LONG[: 4 * stored_tokens])
        query = Query(LONG)
        held = router.lease("demo", set(), query)
        held.release()
        assert (held.worker, query.cached_tokens) == (better, max(reusable, stored_tokens))


def test_predictions_are_corrected_by_what_was_cached() -> None:
    now = [0.0]
    router = Router(Policies(), lambda: now[0])
    worker = add(router, "a", features=frozenset())
    (candidate,) = router.candidates(worker)
    cache = router.cache_of(candidate)
    assert cache is not None

    def answered(cached_tokens: int) -> None:
        now[0] += 10
        held = lease(router, LONG)
        held.sent()
        held.begin()
        held.ended(cached_tokens)
        held.release()

    router.report(worker, Load(kv_tokens_total=1000 * PREDICTED_BLOCK_SIZE))
    assert cache.blocks.capacity == 1000, "no more than the engine has room for"
    answered(0)
    answered(len(LONG) // 4 - BLOCK_SIZE)
    assert cache.blocks.capacity == 1000, "the last block is never taken from a cache"
    answered(0)
    assert cache.blocks.capacity < 250, "it caches less than was believed"


def test_prompts_under_another_salt_or_lora_have_nothing_in_common() -> None:
    router = router_of("cache_aware", *"ab", features=frozenset())
    first = router.lease("demo", set(), Query(LONG, (0, "")))
    first.sent()
    first.begin()

    for apart, is_same in (((0, ""), True), ((0, "salt"), False), ((7, ""), False)):
        query = Query(LONG, apart)
        router.lease("demo", set(), query).release()
        assert (query.cached_tokens > 0) is is_same


def test_a_large_group_of_holders_is_sampled() -> None:
    router = router_of("cache_aware", *map(str, range(100)))
    for worker in router.snapshot():
        stored(router, worker, LONG)
    fleet = fleet_of(router)

    seen = set()
    for _ in range(100):
        some = [*fleet.some(fleet.available)]
        assert len({each.slot for each in some}) == SAMPLE
        seen |= set(some)
    assert len(seen) == 100


@pytest.mark.parametrize("policy", ["prefix_hash", "consistent_hashing", "sticky"])
def test_equal_keys_go_to_the_same_worker_and_different_ones_spread(policy: str) -> None:
    router = router_of(policy, *map(str, range(10)))
    homes = {}
    for number in range(200):
        token_ids, key = prompt(*range(number, number + 300)), f"key {number}"
        (homes[number],) = one_after_the_other(router, 3, token_ids, key)

    counts = Counter(homes.values())
    assert len(counts) == 10 and max(counts.values()) < 60


@pytest.mark.parametrize("policy", ["prefix_hash", "consistent_hashing"])
def test_few_keys_move_when_a_worker_comes_or_goes_and_gateways_agree(policy: str) -> None:
    def homes(router: Router) -> dict[int, str]:
        result = {}
        for number in range(200):
            held = lease(router, prompt(*range(number, number + 300)), f"key {number}")
            result[number] = held.worker.name
            held.release()
        return result

    one, other = (router_of(policy, *names) for names in ("abcdefgh", "hgfedcba"))
    before = homes(one)
    assert homes(other) == before

    lost = next(worker for worker in one.snapshot() if worker.name == "c")
    one.publish(lost, WorkerState("unhealthy"))
    after = homes(one)
    assert all(after[number] == home for number, home in before.items() if home != "c")
    add(one, "i")
    moved = [number for number, home in homes(one).items() if home != after[number]]
    assert all(homes(one)[number] == "i" for number in moved)


@pytest.mark.parametrize("policy", ["prefix_hash", "consistent_hashing"])
def test_hashing_is_bounded_by_load(policy: str) -> None:
    router = router_of(policy, *"abcd")

    counts = who(router, 100, LONG, "the one key")

    assert max(counts.values()) <= 1.25 * 100 / 4 + 2


def test_consistent_hashing_gives_more_keys_to_more_weight() -> None:
    router = Router(Policies(["consistent_hashing"]))
    add(router, "heavy", weight=3)
    add(router, "light")

    homes = Counter[str]()
    for number in range(400):
        homes += one_after_the_other(router, 1, key=f"key {number}")
    assert homes["heavy"] > 1.8 * homes["light"]


def test_sticky_assigns_to_the_least_loaded_and_moves_only_when_it_must() -> None:
    router = router_of("sticky", *"abc")
    first = lease(router, key="mine").worker
    assert lease(router, key="yours").worker is not first
    assert who(router, 5, key="mine") == {first.name: 5}, "though it is loaded"

    router.publish(first, WorkerState("unhealthy"))
    second = lease(router, key="mine").worker
    assert second is not first
    router.publish(first, WorkerState("ready", model="demo", info=info()))
    assert lease(router, key="mine").worker is second


def test_sticky_keys_are_forgotten_when_idle_and_when_too_many() -> None:
    stickies = Stickies(idle_seconds=10, most=3)
    one, other = fleet_of(router_of("sticky", *"ab")).candidates
    both = {one.slot: one, other.slot: other}

    assert stickies.home("a", one, both, now=0) is one
    assert stickies.home("a", other, both, now=9) is one
    assert stickies.home("a", other, both, now=20) is other
    for number in range(10):
        stickies.home(f"key {number}", one, both, now=20)
    assert len(stickies) == 3
    assert stickies.home("a", one, both, now=20) is one


def test_buckets_keep_short_prompts_from_long_ones() -> None:
    router = router_of("bucket", *"abcdefgh")
    names: dict[int, set[str]] = {100: set(), 10_000: set()}
    for number in range(400):
        length = 10_000 if number % 10 == 0 else 100
        held = lease(router, bytes(4 * length))
        held.release()
        if number > 200:
            names[length].add(held.worker.name)

    assert names[100].isdisjoint(names[10_000])
    assert len(names[100]) == 1 and len(names[10_000]) == 7, "by the tokens, not the number, of prompts"


def test_equal_lengths_share_all_workers() -> None:
    assert len(who(router_of("bucket", *"abcdefgh"), 80)) == 8


def test_lengths_follow_what_comes() -> None:
    lengths = Lengths()
    for length in [10] * 1000 + [20] * 1000:
        lengths.note(length)

    assert lengths.share(10) == (0, 0)
    assert lengths.share(20) == (0, 1)
    assert lengths.share(30) == (1, 1)


def test_passthrough_takes_the_first_that_is_ready() -> None:
    router = router_of("passthrough", *"abc")
    assert who(router, 5) == {"a": 5}

    router.publish(next(iter(router.snapshot())), WorkerState("unhealthy"))
    assert who(router, 5) == {"b": 5}


# --- which policy ---------------------------------------------------------------------------------------------------


def test_the_policy_of_least_scope_counts() -> None:
    policies = Policies(
        ["round_robin", "org/m=least_load", "org/m/prefill=bucket", "/decode=power_of_two"], ["org/m", "other"]
    )

    assert policies.name_for("other") == policies.name_for("other", "prefill") == "round_robin"
    assert policies.name_for("org/m") == policies.name_for("org/m", "decode") == "least_load"
    assert policies.name_for("org/m", "prefill") == "bucket"
    assert policies.name_for("other", "decode") == "power_of_two"
    assert Policies().name_for("any") == "cache_aware"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["fastest"], "there is no 'fastest'; there is cache_aware, least_load"),
        (["modle=random"], "no model 'modle' is served; there is m"),
        (["random", "least_load"], "there is one for 'all models' already"),
        (["m=random", "m=random"], "there is one for 'm' already"),
        (["m="], "there is no ''"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: list[str], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        Policies(options, ["m"])


def test_the_documentation_names_every_policy() -> None:
    assert all(name in as_markdown() for name in POLICIES)


def test_roles_have_policies_and_counts_of_their_own() -> None:
    router = Router(Policies(["demo/prefill=passthrough", "demo/decode=round_robin"]))
    for role in ("prefill", "decode"):
        for number in range(2):
            add(router, f"{role} {number}", role=role)

    assert {lease(router, role="prefill").worker.name for _ in range(4)} == {"prefill 0"}
    assert {lease(router, role="decode").worker.name for _ in range(4)} == {"decode 0", "decode 1"}


# --- races ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_threads_that_hammer_it_lose_nothing(name: str) -> None:
    router = router_of(name, *"abcd", dp_size=2, features=frozenset())
    workers = [*router.snapshot()]
    unsent: list[Lease] = []
    is_over = threading.Event()
    failures: list[BaseException] = []

    def hammer(number: int) -> None:
        try:
            for round_ in range(150):
                token_ids = array("I", range(number, number + 4 * (round_ % 9 + 1))).tobytes()
                held = [lease(router, token_ids, f"key {round_ % 7}") for _ in range(3)]
                unsent.extend(held)
                for each in held[1:]:
                    each.begin()
                for each in held:
                    each.release()
        except BaseException as error:
            failures.append(error)

    def engine_thread() -> None:
        round_ = 0
        while not is_over.is_set():
            round_ += 1
            while unsent:
                sent = unsent.pop()
                sent.sent()
                sent.ended(0)
            worker = workers[round_ % 3]
            state = WorkerState("unhealthy") if round_ % 2 else WorkerState("ready", model="demo", info=info(dp_size=2))
            router.publish(worker, state)
            router.report(worker, Load(running=round_ % 9, kv_tokens_total=4096))

    engine = threading.Thread(target=engine_thread)
    threads = [threading.Thread(target=hammer, args=(1000 * number,)) for number in range(4)]
    for thread in (engine, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    engine.join()

    assert not failures
    for worker in workers:
        router.publish(worker, WorkerState("ready", model="demo", info=info(dp_size=2)))
        router.report(worker, Load())
    fleet = fleet_of(router)
    assert len(fleet.candidates) == 8 and fleet.memory.tally.in_flight == 0
    for candidate in fleet.candidates:
        assert (candidate.in_flight, candidate.answers, candidate.reading, candidate.load) == (0, 0, 0, 0)
