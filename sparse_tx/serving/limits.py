"""What one server takes on, so that no client can take its memory or keep all others waiting."""

from dataclasses import dataclass

from sparse_tx.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Whatever is beyond them is refused in a sentence."""

    max_concurrent: int = 32
    """Texts that are made at the same time; memory for their keys and values is set aside."""
    max_waiting: int = 128
    """Further texts that may wait for their turn; the next are refused with status 429."""
    max_prompt_bytes: int = 65_536
    """Bytes of all prompts of a request together, or of a text whose surprise is asked for."""
    max_tokens_limit: int = 4_096
    """The most tokens that a request may ask for in each of its texts."""

    def __post_init__(self):
        for name, least in (
            ("max_concurrent", 1),
            ("max_waiting", 0),
            ("max_prompt_bytes", 1),
            ("max_tokens_limit", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{name} is {value}; it must be {least} or more")

    @property
    def max_texts(self) -> int:
        """The most texts of a request: those that an idle server makes or lets wait."""
        return self.max_concurrent + self.max_waiting

    @property
    def max_body_bytes(self) -> int:
        """The longest body that is read.

        JSON may take 16 bytes for one of a prompt, as it does for token ids in an indented list.
        """
        return 16 * self.max_prompt_bytes + 65_536

    @property
    def room(self) -> int:
        """Tokens of the longest text, prompt included: none has less than a byte."""
        return self.max_prompt_bytes + self.max_tokens_limit
