"""The metrics of a service, for Prometheus."""

import functools

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from srgnn_jax.serve.served import Identity
from srgnn_jax.serve.service import Service

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 5)
SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """Counts of one service; they reveal nothing of a session's contents."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        counter = functools.partial(Counter, registry=self.registry)
        gauge = functools.partial(Gauge, registry=self.registry)
        histogram = functools.partial(Histogram, registry=self.registry)
        requests = counter("srgnn_requests", "Requests by status.", ["status"])
        # Looking up a label takes longer than counting.
        self._of_status = functools.cache(requests.labels)
        self._seconds = histogram(
            "srgnn_request_seconds",
            "Seconds until a request is answered.",
            buckets=SECONDS,
        )
        self._batch = histogram(
            "srgnn_batch_sessions", "Sessions per batch.", buckets=SIZES
        )
        self._batch_seconds = histogram(
            "srgnn_batch_seconds", "Seconds per batch.", buckets=SECONDS
        )
        self._fallbacks = counter("srgnn_fallbacks", "Sessions without a known item.")
        self._unknown = counter("srgnn_unknown_ids", "Ids not in the vocabulary.")
        waiting = gauge("srgnn_waiting_sessions", "Waiting sessions.")
        waiting.set_function(lambda: service.batcher.waiting)
        ready = gauge("srgnn_ready", "Whether requests are answered.")
        ready.set_function(lambda: service.is_ready)
        labels = ["fingerprint", "step"]
        self._model = gauge("srgnn_model", "The model in use.", labels)
        self._reloads = counter(
            "srgnn_reloads", "Models loaded or refused.", ["result"]
        )
        self._use(service.served.identity)
        service.batcher.on_batch = self._of_batch

    def _use(self, identity: Identity) -> None:
        self._model.clear()
        self._model.labels(**identity).set(1)

    def reload(self, identity: Identity | None) -> None:
        """Counts a reload and records the model in use; None: it was refused."""
        self._reloads.labels("loaded" if identity else "refused").inc()
        if identity:
            self._use(identity)

    def request(self, status: int, seconds: float) -> None:
        """Counts a request."""
        self._of_status(status).inc()
        self._seconds.observe(seconds)

    def sessions(self, fallbacks: int, unknown: int) -> None:
        """Counts a request's fallbacks and unknown ids."""
        if fallbacks:
            self._fallbacks.inc(fallbacks)
        if unknown:
            self._unknown.inc(unknown)

    def _of_batch(self, size: int, seconds: float) -> None:
        self._batch.observe(size)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
