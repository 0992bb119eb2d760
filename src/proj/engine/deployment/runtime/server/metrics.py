"""Counts and times of requests in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .pool import Pool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What `/metrics` shows."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "predict_requests", "Requests to /predict.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "predict_seconds",
            "Seconds from the request to its answer.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        for name, text, read in (
            ("workers_ready", "Processes that can answer.", lambda: pool.ready),
            ("worker_restarts", "Processes that were started again.", lambda: pool.restarts),
            ("requests_waiting", "Requests that wait.", lambda: len(pool.waiting)),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)

    def observe(self, status: int, seconds: float) -> None:
        """Count a request to /predict."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self.registry)
