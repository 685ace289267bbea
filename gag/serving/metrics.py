"""What the server counts, under the names that vLLM's dashboards read, and GAG's own beside them."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gag.serving.owner import Owner
from gag.serving.told import Told

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Metrics:
    """Counters and histograms of one server.

    Args:
        prefix: of all names.
        owner: whose load is shown.
    """

    def __init__(self, prefix: str, owner: Owner):
        self._registry, self._owner = CollectorRegistry(), owner
        labels = ["model_name"]

        def histogram(name: str, told: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"{prefix}:{name}", told, labels, buckets=buckets, registry=self._registry)

        def counter(name: str, told: str, named: list[str] = labels) -> Counter:
            return Counter(f"{prefix}:{name}", told, named, registry=self._registry)

        def gauge(name: str, told: str) -> Gauge:
            return Gauge(f"{prefix}:{name}", told, labels, registry=self._registry)

        self._whole = histogram("e2e_request_latency_seconds", "From a request to the end of its answer.")
        self._first = histogram("time_to_first_token_seconds", "From a request to its answer's first token.")
        self._between = histogram("inter_token_latency_seconds", "Between two tokens of an answer.")
        self._queue = histogram("request_queue_time_seconds", "Before a question is routed.")
        self._read = histogram("request_prefill_time_seconds", "Routing and reading, before the answer.")
        self._answer = histogram("request_decode_time_seconds", "The answer.")
        self._prompt = histogram("request_prompt_tokens", "Tokens and vectors that the base reads.", TOKENS)
        self._written = histogram("request_generation_tokens", "Tokens that the base writes.", TOKENS)
        self._longest = histogram("request_max_num_generation_tokens", "The longest of n answers.", TOKENS)
        self._prompts = counter("prompt_tokens", "Tokens and vectors that the base read.")
        self._writtens = counter("generation_tokens", "Tokens that the base wrote.")
        self._done = counter("request_success", "Answers that ended.", [*labels, "finished_reason"])
        self._running = gauge("num_requests_running", "Questions on their way.")
        self._waiting = gauge("num_requests_waiting", "Questions that wait.")
        self._cache = gauge("kv_cache_usage_perc", "Rows of the base that are taken, as a share.")
        self._routes = counter("route", "Questions by where they went, and why.", ["domain", "reason"])
        self._expert = Histogram(
            f"{prefix}:expert_seconds",
            "Reading an expert.",
            ["domain"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._hits = counter("vector_cache_hits", "Questions whose knowledge was at hand.", [])
        self._misses = counter("vector_cache_misses", "Questions for which an expert wrote.", [])
        self._refused = counter("request_refused", "Requests that were refused.", ["status"])
        self._counted = (0, 0)  # of hits and misses

    def refused(self, status: int) -> None:
        """Count a request that was refused."""
        self._refused.labels(status=str(status)).inc()

    def ended(self, told: Told, seconds: dict[str, float], began: float) -> None:
        """Count a question that was answered, or not; `began` is of time.monotonic."""
        model, route, whole = told.model, told.route, time.monotonic() - began
        if route:
            self._routes.labels(domain=route.domain, reason=_kind(route.reason)).inc()
        if told.error or not told.over:
            self._done.labels(model_name=model, finished_reason="error" if told.error else "abort").inc()
            return
        for finish in told.finishes:
            self._done.labels(model_name=model, finished_reason=finish).inc()
        self._whole.labels(model).observe(whole)
        if told.first_token:
            self._first.labels(model).observe(told.first_token - began)
            if max(told.counts) > 1:
                step = seconds.get("answer", 0.0) / max(told.counts)
                self._between.labels(model).observe(step)
        self._queue.labels(model).observe(max(0.0, seconds.get("wait", 0.0)))
        self._read.labels(model).observe(max(0.0, seconds.get("route", 0.0) + seconds.get("read", 0.0)))
        self._answer.labels(model).observe(max(0.0, seconds.get("answer", 0.0)))
        if told.vectors and route:
            self._expert.labels(domain=route.domain).observe(max(0.0, seconds.get("read", 0.0)))
        self._prompt.labels(model).observe(told.prompt_tokens)
        self._written.labels(model).observe(sum(told.counts))
        self._longest.labels(model).observe(max(told.counts))
        self._prompts.labels(model).inc(told.prompt_tokens)
        self._writtens.labels(model).inc(sum(told.counts))

    def page(self) -> bytes:
        """Write what Prometheus reads."""
        running, waiting = self._owner.load
        answering, rows = self._owner.answering, self._owner.gag.decoding.batch_size
        for gauge, value in (
            (self._running, running),
            (self._waiting, waiting),
            (self._cache, min(1.0, answering.saying / rows)),
        ):
            gauge.labels("gag").set(value)
        counts = answering.hits, answering.misses
        for counter, now, before in zip((self._hits, self._misses), counts, self._counted, strict=True):
            counter.inc(max(0, now - before))
        self._counted = counts
        return generate_latest(self._registry)


def _kind(reason: str) -> str:
    """Return a reason without its numbers: one that a counter can have as a label."""
    return "below the margin" if reason.startswith("the best specialist lies above") else reason
