"""What the server tells Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from vla_jax.serving.safety import REASONS

PROTOCOLS = ("openpi", "rest", "grpc", "page")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One server's, in a registry of its own."""

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.seconds = Histogram(
            "vla_request_seconds",
            "From a message's arrival to its answer",
            ["protocol"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "vla_model_seconds", "One call of the model", buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "vla_queue_seconds", "Waiting for the model", buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "vla_batch_size",
            "Requests in one call of the model",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.actions = Counter("vla_actions", "Valid answers", ["protocol"], registry=registry)
        self.holds = Counter(
            "vla_holds", "Answers to hold the position", ["reason"], registry=registry
        )
        self.errors = Counter(
            "vla_errors", "Messages that were not understood", ["protocol"], registry=registry
        )
        self.clipped = Counter("vla_clipped", "Actions changed", ["limit"], registry=registry)
        self.queue = Gauge("vla_queue", "Requests that wait for the model", registry=registry)
        self.sessions = Gauge("vla_sessions", "Robots", registry=registry)
        self.connections = Gauge("vla_connections", "Open websockets", registry=registry)
        self.ready = Gauge("vla_ready", "1: warmed up and not draining", registry=registry)
        # Alerts want a zero rather than nothing.
        for protocol in PROTOCOLS:
            self.actions.labels(protocol)
            self.errors.labels(protocol)
        for reason in REASONS:
            self.holds.labels(reason)
        for limit in ("bounds", "change", "workspace"):
            self.clipped.labels(limit)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
