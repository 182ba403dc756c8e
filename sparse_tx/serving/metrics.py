"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one server; several in a process do not share any.

    Attributes:
        prompt_tokens: tokens of prompts that were read.
        generated_tokens: tokens that were drawn.
        scored_tokens: tokens of texts whose surprise was asked for, and of echoed prompts.
        left: requests whose client left before the end.
        first_token: seconds from a request to its first token.
    """

    def __init__(self):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

        def named(kind, name: str, what: str, **options):
            return kind(f"sparse_tx_{name}", what, registry=self._registry, **options)

        self._requests = named(
            Counter, "requests", "Answers, by path and status", labelnames=("path", "status")
        )
        self._seconds = named(
            Histogram,
            "request_seconds",
            "From a request to the end of its answer",
            labelnames=("path",),
            buckets=_SECONDS,
        )
        self.prompt_tokens = named(Counter, "prompt_tokens", "Tokens of prompts read")
        self.generated_tokens = named(Counter, "generated_tokens", "Tokens generated")
        self.scored_tokens = named(Counter, "scored_tokens", "Tokens of given texts scored")
        self.left = named(Counter, "clients_left", "Requests whose client left before the end")
        self.first_token = named(
            Histogram,
            "first_token_seconds",
            "From a request to its first token",
            buckets=_SECONDS,
        )
        self._turns = named(
            Histogram,
            "turn_seconds",
            "One step of all texts that are made, with what else is done between two",
            buckets=_SECONDS,
        )
        self._growing = named(Gauge, "texts_growing", "Texts that are being made")
        self._waiting = named(Gauge, "texts_waiting", "Texts that wait for a slot")

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer; ``path`` is one of the server's own."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def turn(self, seconds: float, growing: int, waiting: int) -> None:
        """Count a step, and say how many texts are being made and wait after it."""
        self._turns.observe(seconds)
        self._growing.set(growing)
        self._waiting.set(waiting)

    def exposition(self) -> bytes:
        """All figures, in Prometheus's text format."""
        return generate_latest(self._registry)
