"""The gateway's own figures for Prometheus; labels are bounded by configuration.

Models, sites, data classes and outcomes are closed sets: nothing a client writes becomes a label.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
NOWHERE = "none"
_TTFT_BUCKETS_S = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)


class GatewayMetrics:
    """Counters of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tidegate_requests",
            "Requests finished, by what became of them.",
            ["model", "site", "data_class", "outcome"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "tidegate_tokens",
            "Tokens read (prompt) and written (completion).",
            ["model", "site", "kind"],
            registry=self.registry,
        )
        self.ttft_s = Histogram(
            "tidegate_ttft_seconds",
            "Seconds from a request's arrival to its first byte, waiting included.",
            ["model", "site"],
            buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )
        self.retries = Counter(
            "tidegate_retries",
            "Requests sent again because a replica failed before its first byte.",
            ["model"],
            registry=self.registry,
        )
        self.waiting = Gauge(
            "tidegate_waiting",
            "Requests waiting for a slot.",
            ["model", "data_class"],
            registry=self.registry,
        )
        self.streams = Gauge(
            "tidegate_streams",
            "Slots held.",
            ["model", "pool"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        """All figures in Prometheus' text form."""
        return generate_latest(self.registry)
