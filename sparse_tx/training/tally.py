"""What happened since the last line of the log."""

from dataclasses import asdict, dataclass
from math import log


@dataclass
class Tally:
    """Sums over the steps that were taken since the last line: skipped ones are left out.

    Attributes:
        nats: total loss.
        bytes: of text that it was taken over.
        grad_norm: the largest norm of a gradient, before it was clipped.
    """

    nats: float = 0.0
    bytes: int = 0
    grad_norm: float = 0.0

    def add(self, nats: float, n_bytes: int, grad_norm: float) -> None:
        """Take in a step."""
        self.nats += nats
        self.bytes += n_bytes
        self.grad_norm = max(self.grad_norm, grad_norm)

    def figures(self) -> dict[str, float | None]:
        """``train_bpb`` and ``grad_norm``; None where no step was taken."""
        if not self.bytes:
            return {"train_bpb": None, "grad_norm": None}
        return {"train_bpb": self.nats / log(2) / self.bytes, "grad_norm": self.grad_norm}

    def state_dict(self) -> dict[str, float]:
        """The sums, for a checkpoint between two lines."""
        return asdict(self)
