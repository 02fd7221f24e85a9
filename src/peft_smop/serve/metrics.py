"""What is counted, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from peft_smop.serve.batching import Batch


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "smop_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "smop_request_seconds", "Time of a request", ["route"], registry=registry
        )
        self._rows = Counter("smop_rows", "Rows computed", registry=registry)
        self._batch_rows = Histogram(
            "smop_batch_rows",
            "Rows of a batch",
            buckets=[1, 2, 4, 8, 16, 32, 64, 128],
            registry=registry,
        )
        self._batch_adapters = Histogram(
            "smop_batch_adapters",
            "Different adapters of a batch",
            buckets=[1, 2, 4, 8, 16, 32, 64],
            registry=registry,
        )
        self._batch_seconds = Histogram("smop_batch_seconds", "Time of a batch", registry=registry)
        self._waiting = Gauge("smop_waiting_rows", "Rows that wait", registry=registry)
        self._adapters = Gauge("smop_adapters", "Adapters that are loaded", registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is one of the app's own, never what a client wrote."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, batch: Batch) -> None:
        """Count a batch."""
        self._rows.inc(batch.rows)
        self._batch_rows.observe(batch.rows)
        self._batch_adapters.observe(batch.adapters)
        self._batch_seconds.observe(batch.seconds)

    def text(self, *, waiting: int, adapters: int) -> bytes:
        """All of it, as Prometheus reads it."""
        self._waiting.set(waiting)
        self._adapters.set(adapters)
        return generate_latest(self._registry)
