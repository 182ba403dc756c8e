"""How the next token is drawn from the model's distribution."""

from dataclasses import dataclass

from sparse_tx.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Filters apply in the order repetition_penalty, temperature, top_k, top_p, min_p.

    Each sees what is left.
    """

    temperature: float = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: int | None = None
    """Draw from the k most probable tokens only."""
    top_p: float | None = None
    """Draw from the fewest tokens that together have this probability."""
    min_p: float | None = None
    """Draw from tokens with at least this share of the most probable one's probability."""
    repetition_penalty: float = 1.0
    """Divides the logit of a token that the text holds already, or multiplies it where it is
    negative: above 1 against repetition, below 1 for it."""
    repetition_window: int | None = None
    """Of prompt and continuation, the last tokens that the penalty looks at; null for all. A text
    of bytes soon holds every common one, so that only a window tells them apart."""

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 or more, and finite")
        for name in ("top_k", "repetition_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}; it must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0 and finite"
                " (1 for none)"
            )
