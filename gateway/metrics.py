"""Counters and histograms that cost their writer nothing to share, and their Prometheus text.

Threads: every thread that counts owns one `Cells` and is the only one to write it; `Registry.exposition` reads all of
them from whichever loop serves /metrics and adds them up. A read may miss the increment of this very moment, no more.
`Registry.cells` guards the list of cells with a lock, once per thread.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """`buckets` (upper bounds, seconds) makes it a histogram; `kind` is Prometheus's."""

    name: str
    kind: str
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()


LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Cells:
    """One thread's counters. Only that thread calls `add` and `observe`."""

    __slots__ = ("counts", "histograms")

    def __init__(self) -> None:
        self.counts: dict[tuple[Metric, Labels], float] = {}
        self.histograms: dict[tuple[Metric, Labels], list[float]] = {}

    def add(self, metric: Metric, labels: Labels = (), amount: float = 1.0) -> None:
        key = (metric, labels)
        self.counts[key] = self.counts.get(key, 0.0) + amount

    def observe(self, metric: Metric, labels: Labels, seconds: float) -> None:
        """Histogram cells: one count per bucket, one for +Inf, then the sum."""
        key = (metric, labels)
        histogram = self.histograms.get(key)
        if histogram is None:
            histogram = self.histograms[key] = [0.0] * (len(metric.buckets) + 2)
        histogram[bisect_left(metric.buckets, seconds)] += 1
        histogram[-1] += seconds


Gauge = tuple[Metric, Callable[[], Iterable[tuple[Labels, float]]]]
"""A metric read at the moment of the scrape: the callable gives (label values, value) pairs."""


class Registry:
    """All cells of the process, and the gauges that are read rather than counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cells: list[Cells] = []
        self._gauges: list[Gauge] = []

    def cells(self) -> Cells:
        """New cells for the calling thread to own; they live as long as the process, so that no count is lost."""
        cells = Cells()
        with self._lock:
            self._cells.append(cells)
        return cells

    def gauge(self, metric: Metric, read: Callable[[], Iterable[tuple[Labels, float]]]) -> None:
        with self._lock:
            self._gauges.append((metric, read))

    def exposition(self) -> str:
        """Prometheus text format, version 0.0.4."""
        with self._lock:
            all_cells, gauges = list(self._cells), list(self._gauges)
        lines: dict[Metric, list[str]] = {}
        for (metric, labels), value in sorted(_sum_counts(all_cells).items(), key=_by_name):
            lines.setdefault(metric, []).append(f"{metric.name}{_braces(metric.labels, labels)} {_number(value)}")
        for metric, read in gauges:
            lines.setdefault(metric, []).extend(
                f"{metric.name}{_braces(metric.labels, labels)} {_number(value)}" for labels, value in read()
            )
        for (metric, labels), histogram in sorted(_sum_histograms(all_cells).items(), key=_by_name):
            lines.setdefault(metric, []).extend(_histogram_lines(metric, labels, histogram))
        return "".join(
            f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n" + "\n".join(series) + "\n"
            for metric, series in lines.items()
            if series
        )


def _by_name(item: tuple[tuple[Metric, Labels], object]) -> tuple[str, Labels]:
    (metric, labels), _ = item
    return metric.name, labels


def _sum_counts(all_cells: list[Cells]) -> dict[tuple[Metric, Labels], float]:
    total: dict[tuple[Metric, Labels], float] = {}
    for cells in all_cells:
        for key, value in cells.counts.copy().items():
            total[key] = total.get(key, 0.0) + value
    return total


def _sum_histograms(all_cells: list[Cells]) -> dict[tuple[Metric, Labels], list[float]]:
    total: dict[tuple[Metric, Labels], list[float]] = {}
    for cells in all_cells:
        for key, histogram in cells.histograms.copy().items():
            total[key] = [a + b for a, b in zip(total.get(key, [0.0] * len(histogram)), histogram, strict=True)]
    return total


def _histogram_lines(metric: Metric, labels: Labels, histogram: list[float]) -> list[str]:
    lines, running = [], 0.0
    for bound, count in zip([*map(str, metric.buckets), "+Inf"], histogram[:-1], strict=True):
        running += count
        braces = _braces((*metric.labels, "le"), (*labels, bound))
        lines.append(f"{metric.name}_bucket{braces} {_number(running)}")
    braces = _braces(metric.labels, labels)
    lines.append(f"{metric.name}_sum{braces} {_number(histogram[-1])}")
    lines.append(f"{metric.name}_count{braces} {_number(running)}")
    return lines


def _braces(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True)) + "}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


REQUESTS = Metric(
    "gateway_requests_total", "counter", "Requests answered, by model and HTTP status.", ("model", "status")
)
PROMPT_TOKENS = Metric("gateway_prompt_tokens_total", "counter", "Prompt tokens of answered requests.", ("model",))
COMPLETION_TOKENS = Metric("gateway_completion_tokens_total", "counter", "Tokens generated.", ("model",))
CACHED_TOKENS = Metric(
    "gateway_cached_tokens_total", "counter", "Prompt tokens an engine had in its cache.", ("model",)
)
FIRST_TOKEN = Metric(
    "gateway_time_to_first_token_seconds",
    "histogram",
    "From the request's head to its first token.",
    ("model",),
    LATENCY_BUCKETS,
)
INTER_TOKEN = Metric(
    "gateway_inter_token_seconds",
    "histogram",
    "Between the tokens of an answer, one mean for each request.",
    ("model",),
    LATENCY_BUCKETS,
)
DURATION = Metric(
    "gateway_request_seconds",
    "histogram",
    "From the request's head to the end of its answer.",
    ("model",),
    LATENCY_BUCKETS,
)
STAGE = Metric(
    "gateway_stage_seconds",
    "histogram",
    "What a request waited for: admission (a place), queue (a pool thread), render, tokenize (lookup: the part of it "
    "in the cache), images, route (a worker), engine (its first token).",
    ("model", "stage"),
    LATENCY_BUCKETS,
)
TOKEN_CACHE_LOOKUPS = Metric(
    "gateway_token_cache_lookups_total",
    "counter",
    "Look-ups of whole prompts, and of segments of those that were not known; the outcome is hit or miss.",
    ("model", "level", "outcome"),
)
TOKEN_CACHE_TOKENS = Metric(
    "gateway_token_cache_tokens_total", "counter", "Prompt tokens that the token cache knew.", ("model",)
)
TOKEN_CACHE_BYTES = Metric(
    "gateway_token_cache_bytes", "gauge", "Memory that the token cache's texts and ids take.", ("level",)
)
TOKEN_CACHE_EVICTIONS = Metric(
    "gateway_token_cache_evictions_total", "counter", "Texts that the token cache gave up for others.", ("level",)
)
IMAGES = Metric(
    "gateway_images_total",
    "counter",
    "Images of prompts, by what the image cache knew of them: hit, miss, or off.",
    ("model", "outcome"),
)
IMAGE_BYTES = Metric("gateway_image_bytes_total", "counter", "Bytes of the images' files.", ("model",))
IMAGES_REJECTED = Metric(
    "gateway_images_rejected_total",
    "counter",
    "Images refused: url (no such), address (not allowed), fetch, timeout, format, broken, too_large, shape.",
    ("model", "reason"),
)
IMAGE_SECONDS = Metric(
    "gateway_image_seconds",
    "histogram",
    "What an image takes: fetch, read (base64, hash), load (decoding), preprocess, pack (for engines).",
    ("model", "step"),
    LATENCY_BUCKETS,
)
IMAGE_CACHE_BYTES = Metric("gateway_image_cache_bytes", "gauge", "Memory that preprocessed images take.")
IMAGE_CACHE_ENTRIES = Metric("gateway_image_cache_entries", "gauge", "Preprocessed images in memory.")
RETRIES = Metric(
    "gateway_retries_total", "counter", "Requests sent to another worker before their first token.", ("model",)
)
RETRIES_REFUSED = Metric(
    "gateway_retries_refused_total",
    "counter",
    "Requests that failed before their first token and were not sent again: the retry budget was used up.",
    ("model",),
)
WORKER_ANSWERS = Metric(
    "gateway_worker_answers_total",
    "counter",
    "Answers by how they ended on the worker: stop, length, rejected (the request was at fault), error (the engine "
    "was), deadline, aborted (by the client or the gateway), lost (with the worker).",
    ("worker", "end"),
)
WORKER_BREAKER = Metric(
    "gateway_worker_breaker",
    "gauge",
    "1 for the state that the worker's circuit breaker is in: closed, open or half_open.",
    ("worker", "state"),
)
WORKER_BREAKER_OPENED = Metric(
    "gateway_worker_breaker_opened_total", "counter", "How often the worker's circuit breaker opened.", ("worker",)
)
WIRE_FAULTS = Metric(
    "gateway_wire_faults_total",
    "counter",
    "What an engine sent that made no sense, by worker and kind.",
    ("worker", "kind"),
)
TOOL_CALLS = Metric("gateway_tool_calls_total", "counter", "Tool calls read, by parser.", ("model", "parser"))
NO_TOOL_CALLS = Metric(
    "gateway_malformed_tool_calls_total",
    "counter",
    "What began like a tool call and became text: malformed, cut off, or of a tool that was not declared.",
    ("model", "parser"),
)
STRUCTURED_OUTPUTS = Metric(
    "gateway_structured_outputs_total",
    "counter",
    "Answers and tool arguments held against their JSON schema: valid, invalid, or cut and so not judged.",
    ("model", "outcome"),
)
GC_PAUSES = Metric("gateway_gc_pauses_total", "counter", "Garbage collections, which stop every thread.")
GC_SECONDS = Metric("gateway_gc_seconds_total", "counter", "Time spent in garbage collections.")
STALLED = Metric("gateway_stalled_streams", "gauge", "Streams without progress for longer than --stall-seconds.")
WORKER_STATE = Metric(
    "gateway_worker_state",
    "gauge",
    "1 for the state that the worker is in: starting, ready, unhealthy or draining.",
    ("worker", "model", "state"),
)
WORKER_SPEED = Metric(
    "gateway_worker_tokens_per_second", "gauge", "Tokens generated over the last second, as it reports.", ("worker",)
)
WORKER_KV = Metric("gateway_worker_kv_use", "gauge", "Share of its KV cache in use, as it reports.", ("worker",))
LOOP_LAG = Metric("gateway_loop_lag_seconds", "gauge", "How late an event loop was when it was last asked.", ("loop",))
POOL_THREADS = Metric("gateway_pool_threads", "gauge", "Threads of the pool.", ("pool",))
WORKER_IN_FLIGHT = Metric("gateway_worker_in_flight", "gauge", "Requests this gateway has on the worker.", ("worker",))
WORKER_RUNNING = Metric("gateway_worker_running", "gauge", "Requests running, as the worker reports.", ("worker",))
WORKER_WAITING = Metric("gateway_worker_waiting", "gauge", "Requests waiting, as the worker reports.", ("worker",))
CACHED_BLOCKS = Metric(
    "gateway_cached_blocks",
    "gauge",
    "Different KV blocks that workers have cached, as far as the router knows.",
    ("model",),
)
POOL_DEPTH = Metric("gateway_pool_queue_depth", "gauge", "Jobs waiting for a thread of the pool.", ("pool",))
ADMITTED = Metric("gateway_admitted_requests", "gauge", "Places that are taken, where --max-concurrency limits them.")
WAITING = Metric(
    "gateway_waiting_requests", "gauge", "Requests that wait for a place, by priority class.", ("priority",)
)
ADMISSION_WAIT = Metric(
    "gateway_admission_wait_seconds",
    "histogram",
    "What admitted requests waited for a place, by priority class.",
    ("priority",),
    LATENCY_BUCKETS,
)
REFUSED = Metric(
    "gateway_refused_total",
    "counter",
    "Requests refused for a missing key, for a limit, or because nobody could answer, by the error's code.",
    ("reason",),
)
BODY_BYTES = Metric("gateway_body_bytes", "gauge", "Bytes of request bodies in memory.")
KEY_REQUESTS = Metric(
    "gateway_key_requests_total", "counter", "Requests made with an API key, by its name.", ("key", "status")
)
KEY_TOKENS = Metric(
    "gateway_key_tokens_total", "counter", "Tokens of prompts and answers that an API key used.", ("key",)
)
KEY_ACTIVE = Metric(
    "gateway_key_active_requests", "gauge", "Requests at a time of an API key that has limits.", ("key",)
)
ACTIVE_REQUESTS = Metric("gateway_active_requests", "gauge", "Requests being answered.", ("loop",))

METRICS = tuple(value for value in tuple(globals().values()) if isinstance(value, Metric))

MARKDOWN_HEAD = """# Metrics

Made from `gateway/metrics.py` by `make docs`. `GET /metrics` answers in Prometheus' text format. Labels take their
values from the configuration (models, workers, threads) and from fixed sets: the number of series is bounded.

| metric | kind | labels | what it says |
|---|---|---|---|"""


def as_markdown() -> str:
    """docs/metrics.md."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.help} |".replace("|  |", "| |")
        for metric in METRICS
    ]
    return "\n".join([MARKDOWN_HEAD, *rows, ""])
