"""Numbers for Prometheus: what the engine holds right now, and what was done since the start."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from minicpm.engine.service import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_BETWEEN_TOKENS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_TOTAL_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)


class Metrics:
    """All of them; routes and answers count, /metrics reads."""

    def __init__(self, engine: Engine):
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it would add a second line for each metric
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(engine))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"minicpm_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"minicpm_{name}", text, buckets=buckets, registry=registry)

        self._responses = counter("http_responses", "Responses by route and status.", "path", "status")
        self.first_token_s = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST_TOKEN_S
        )
        self.between_tokens_s = histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _BETWEEN_TOKENS_S
        )
        self.answer_s = histogram("answer_seconds", "From a request's arrival to the end of its answer.", _TOTAL_S)

    def count_response(self, path: str, status: int) -> None:
        self._responses.labels(path if path in _PATHS else "other", str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


# One label per requested path would let clients grow the metrics without bound.
_PATHS = frozenset(
    {
        "/", "/health", "/metrics", "/tokenize", "/detokenize",
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses",
        "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/tags", "/api/show", "/api/ps",
        "/api/version",
    }
)  # fmt: skip


class _EngineCollector(Collector):
    """Reads the engine's figures when Prometheus scrapes."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        now = self._engine.statistics()
        yield GaugeMetricFamily("minicpm_requests_running", "Answers that are being written.", now.running)
        yield GaugeMetricFamily("minicpm_requests_waiting", "Answers that wait for others.", now.waiting)
        free = now.cache_tokens - now.cache_held_tokens - now.cache_idle_tokens
        cache = GaugeMetricFamily(
            "minicpm_kv_cache_tokens",
            "Keys and values: held by answers, idle from earlier texts, free.",
            labels=["state"],
        )
        for state, tokens in (("held", now.cache_held_tokens), ("idle", now.cache_idle_tokens), ("free", free)):
            cache.add_metric([state], tokens)
        yield cache
        answers = CounterMetricFamily("minicpm_answers", "Answers by what ended them.", labels=["outcome"])
        for outcome, count in now.outcomes.items():
            answers.add_metric([outcome], count)
        yield answers
        for name, text, value in (
            ("completion_tokens", "Tokens written.", now.generated_tokens),
            ("prompt_tokens", "Tokens of prompts.", now.prompt_tokens),
            ("cached_prompt_tokens", "Those of them that were not computed again.", now.cached_prompt_tokens),
            ("drafted_tokens", "Tokens guessed ahead by prompt lookup.", now.drafted_tokens),
            ("accepted_tokens", "Guessed tokens that were right.", now.accepted_tokens),
            ("preemptions", "Answers that gave their memory back and waited again.", now.preemptions),
            ("steps", "Steps of the engine.", now.steps),
            ("step_seconds", "Time it computed.", now.step_seconds),
        ):
            yield CounterMetricFamily(f"minicpm_{name}", text, value)
