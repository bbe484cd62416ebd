"""GET /metrics: what the server did, for Prometheus. Numbers only, no text of any request."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgelm.runtime.chat_model import RouteDecision, Usage
from edgelm.runtime.model_pool import ModelPool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts of one server.

    Args:
        pool: whose state now is told beside what was counted.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._registry = CollectorRegistry()
        labels = ("model",)
        self._prompt = Counter("edgelm_prompt_tokens", "Tokens of prompts", labels, registry=self._registry)
        self._cached = Counter("edgelm_cached_tokens", "Tokens of prompts that had been computed before", labels, registry=self._registry)
        self._generated = Counter("edgelm_generated_tokens", "Tokens of answers", labels, registry=self._registry)
        self._answers = Counter("edgelm_requests", "Requests that were answered to the end", labels, registry=self._registry)
        self._first = Histogram(
            "edgelm_time_to_first_token_seconds", "From asking to the first token", labels, buckets=_SECONDS, registry=self._registry
        )
        self._each = Histogram(
            "edgelm_time_per_token_seconds", "Between tokens, the mean of each request", labels, buckets=_SECONDS, registry=self._registry
        )
        routes = ("model", "route", "reason")
        self._routes = Counter("edgelm_routed", "Answers of a router, by who gave them and why", routes, registry=self._registry)
        self._cloud = Counter("edgelm_cloud_tokens", "Tokens of cloud endpoints, as told", ("model", "kind"), registry=self._registry)
        self._cost = Counter("edgelm_cloud_cost", "Money for cloud endpoints, in their currency", labels, registry=self._registry)
        self._faults = Counter("edgelm_cloud_faults", "Answers for which the cloud was asked in vain", labels, registry=self._registry)
        self._redacted = Counter("edgelm_redacted", "Values replaced before they left", ("model", "kind"), registry=self._registry)
        self._registry.register(_Now(pool))

    def note(self, model: str, usage: Usage) -> None:
        """A request was answered."""
        self._answers.labels(model).inc()
        self._prompt.labels(model).inc(usage.n_prompt)
        self._cached.labels(model).inc(usage.n_cached)
        self._generated.labels(model).inc(usage.n_generated)
        self._first.labels(model).observe(usage.prefill_s)
        if usage.n_generated > 1:
            self._each.labels(model).observe(usage.decode_s / (usage.n_generated - 1))

    def note_route(self, model: str, decision: RouteDecision) -> None:
        """A router has answered."""
        self._routes.labels(model, decision.route, decision.reason).inc()
        self._cloud.labels(model, "input").inc(decision.cloud_input)
        self._cloud.labels(model, "output").inc(decision.cloud_output)
        self._cost.labels(model).inc(float(decision.cost))
        self._faults.labels(model).inc(decision.fault is not None)
        for kind, n in decision.redacted.items():
            self._redacted.labels(model, kind).inc(n)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Now(Collector):
    """The state of the models when it is asked for."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        families = {
            "n_active": GaugeMetricFamily("edgelm_generations_active", "Answers being computed", labels=("model",)),
            "n_waiting": GaugeMetricFamily("edgelm_generations_waiting", "Answers that wait for a place", labels=("model",)),
            "n_cached_tokens": GaugeMetricFamily("edgelm_prefix_cache_tokens", "Tokens in the prefix cache", labels=("model",)),
        }
        for name, model in self._pool.loaded().items():
            for attribute, family in families.items():
                family.add_metric((name,), getattr(model.scheduler, attribute))
        loaded = GaugeMetricFamily("edgelm_models_loaded", "Models in memory")
        loaded.add_metric((), len(self._pool.loaded()))
        yield from (*families.values(), loaded)
