"""How a run spends the minutes it is given."""

import time

from sparse_tx.config import TrainingConfig

# What is put aside of max_minutes for the end, beyond what was measured of its parts.
_CLOSING_SECONDS = 3.0
# The share of max_minutes that the last evaluation gets at most, unless more is left anyhow.
_CLOSING_SHARE = 0.25


class Clock:
    """What a run has taken, and when training has to stop for all of it to end in time.

    Args:
        recipe: how long the run may take, and how much it evaluates.
        valid_tokens: length of the validation split.
        started: ``time.monotonic()`` at the start of the command.

    Attributes:
        before: seconds that the run took before it was resumed.
        evaluation_speed: tokens that were scored in a second; 0 as long as it is not known.
        step_seconds, sample_seconds, save_seconds: what the last step, sample and checkpoint took.
    """

    def __init__(self, recipe: TrainingConfig, valid_tokens: int, started: float):
        self._recipe, self._valid_tokens, self._started = recipe, valid_tokens, started
        self.before = self.evaluation_speed = self._progress = 0.0
        self.step_seconds = self.sample_seconds = self.save_seconds = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, those before it was resumed included."""
        return self.before + time.monotonic() - self._started

    def progress(self, tokens: int) -> float:
        """The share of its time that training has had, ``tokens`` of it done."""
        # The time needed for the end is estimated anew now and then; nothing goes back for that.
        self._progress = max(self._progress, self.elapsed / self._training_seconds(tokens))
        return self._progress

    def is_over(self, tokens: int) -> bool:
        """Whether there is no time for another step."""
        return self.elapsed + self.step_seconds >= self._training_seconds(tokens)

    def has_time_to_evaluate(self, tokens: int) -> bool:
        """Whether an evaluation during the run leaves time to train on."""
        if self._recipe.max_minutes is None:
            return True
        seconds = self._scored_bytes() / self._scoring_speed(tokens) + self.sample_seconds
        return self.elapsed + seconds < self._training_seconds(tokens)

    def scoring_deadline(self) -> float:
        """When the last evaluation has to end, by ``time.monotonic()``."""
        if self._recipe.max_minutes is None:
            return float("inf")
        limit = 60 * self._recipe.max_minutes
        left = limit - self.elapsed - self._closing_seconds()
        return time.monotonic() + max(_CLOSING_SHARE * limit, left)

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on with."""
        return {
            "elapsed_s": self.elapsed,
            "evaluation_speed": self.evaluation_speed,
            "sample_seconds": self.sample_seconds,
            "save_seconds": self.save_seconds,
            "progress": self._progress,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a state, which may hold other things too."""
        self.before, self.evaluation_speed = state["elapsed_s"], state["evaluation_speed"]
        self.sample_seconds = state["sample_seconds"]
        # Checkpoints of earlier versions have neither.
        self.save_seconds = state.get("save_seconds", 0.0)
        self._progress = state.get("progress", 0.0)

    def _training_seconds(self, tokens: int) -> float:
        """Seconds from the start at which training has to stop for the run to end in time."""
        if self._recipe.max_minutes is None:
            return float("inf")
        limit = 60 * self._recipe.max_minutes
        last = min(self._recipe.final_eval_bytes or self._valid_tokens, self._valid_tokens)
        first = self._scored_bytes()
        scored = last if last >= first else last + first  # a longer one goes on where it ended
        scoring = min(1.1 * scored / self._scoring_speed(tokens), _CLOSING_SHARE * limit)
        # However long the closing is estimated, it may not take the run away altogether.
        return max(limit - scoring - self._closing_seconds(), 0.1 * limit)

    def _closing_seconds(self) -> float:
        """Seconds that the end takes beside its evaluation."""
        return _CLOSING_SECONDS + 1.2 * (self.sample_seconds + self.save_seconds)

    def _scored_bytes(self) -> int:
        """Bytes of an evaluation during the run."""
        return min(self._recipe.eval_bytes or self._valid_tokens, self._valid_tokens)

    def _scoring_speed(self, tokens: int) -> float:
        """Tokens that are scored in a second, or infinity where nothing is known yet."""
        # Before the first evaluation: a forward pass is a third of a training step.
        return self.evaluation_speed or 3 * tokens / max(self.elapsed, 1e-9) or float("inf")
