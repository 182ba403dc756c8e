"""What a user can mend, and how to say so."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """What the caller gave cannot be used; the message names the value, the limit and the way out.

    Commands print the message alone and exit with status 2. Every other exception is a defect of
    sparse_tx and keeps its traceback.
    """


class UserTypeError(UserError, TypeError):
    """An argument is of a type that cannot be used: a ``TypeError`` to those who look for one."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'? "`` for the known word most like this one; empty if none is."""
    near = get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'? " if near else ""
