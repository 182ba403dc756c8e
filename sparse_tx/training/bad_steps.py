"""Which steps are not taken: those whose loss or gradient would harm the weights."""

from math import isfinite
from typing import Any

from sparse_tx.config import TrainingConfig

# Steps whose losses make up the running mean, and steps before there is one to judge by.
_HORIZON = 100
# A loss that hardly varies, as that of a large batch, may rise by this share per deviation.
_LEAST_DEVIATION = 0.05


class BadSteps:
    """Judges each step, and counts those that are skipped.

    A step is bad if its loss or the norm of its gradient is not finite, or if its loss is a spike:
    more than ``config.spike`` standard deviations above the running mean of the losses of the
    steps that were taken. Mean and deviation are exponential, over about a hundred steps; during
    the first hundred nothing is a spike. The deviation counts as at least a twentieth of the mean.
    A skipped step leaves both as they were.

    Attributes:
        skipped: steps of the run that were not taken.
        in_a_row: bad ones among them since the last step that was taken.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.skipped = self.in_a_row = 0
        self._taken = 0
        self._mean = self._variance = 0.0

    @property
    def limit(self) -> float:
        """The loss above which a step is a spike, in bits per byte; infinite where nothing is."""
        if self._taken < _HORIZON or self.config.spike is None:
            return float("inf")
        deviation = max(self._variance**0.5, _LEAST_DEVIATION * self._mean)
        return self._mean + self.config.spike * deviation

    def fault_of_loss(self, bpb: float) -> str | None:
        """What is wrong with a step of this loss, in bits per byte; None if nothing is."""
        if not isfinite(bpb):
            return f"its loss is {bpb:.4g}"
        if bpb > self.limit:
            return (
                f"its loss, {bpb:.4g} bits per byte, is a spike above {self.limit:.4g}, which is"
                f" the running mean of {self._mean:.4g} and {self.config.spike:g} deviations"
            )
        return None

    def fault_of_gradient(self, norm: float) -> str | None:
        """What is wrong with a step whose gradient has this norm; None if nothing is."""
        return None if isfinite(norm) else f"the norm of its gradient is {norm:.4g}"

    def take(self, bpb: float) -> None:
        """Count a step that was taken, with its loss in bits per byte."""
        self.in_a_row = 0
        self._taken += 1
        share = 1 / min(self._taken, _HORIZON)
        change = bpb - self._mean
        self._mean += share * change
        self._variance = (1 - share) * (self._variance + share * change**2)

    def skip(self, *, bad: bool = True) -> None:
        """Count a step that was not taken; one that is not bad does not bring the end nearer."""
        self.skipped += 1
        self.in_a_row += bad

    @property
    def too_many(self) -> bool:
        """Whether so many steps in a row were bad that the run has to stop."""
        return self.in_a_row >= self.config.max_bad_steps

    def state_dict(self) -> dict[str, Any]:
        """The counts, and what the losses to come are judged by."""
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "taken": self._taken,
            "mean": self._mean,
            "variance": self._variance,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the one that gave ``state`` stood."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self._taken, self._mean, self._variance = state["taken"], state["mean"], state["variance"]
