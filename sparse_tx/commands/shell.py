"""What all commands share: how flags are read, and how mistakes are reported."""

import re
import sys
from collections.abc import Callable
from difflib import get_close_matches

import torch
from jsonargparse import ArgumentParser, set_parsing_settings

from sparse_tx.errors import UserError

# Field descriptions stand below the fields of the config classes, and serve as --help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

USER_MISTAKE = 2
INTERRUPTED = 130


class CommandParser(ArgumentParser):
    """A jsonargparse parser that answers a mistake with one sentence and exit status 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, exit_on_error=True, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Print the mistake, for an unknown flag with the nearest valid one, and exit."""
        flags = [option for option in self._option_string_actions if option.startswith("--")]
        unknown = re.search(r"(?:[Uu]nrecognized arguments:|Key) '?(--)?([\w.]+)", message)
        if unknown:
            flag = "--" + unknown[2]
            near = get_close_matches(flag, flags, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the flags are {', '.join(flags)}"
            message = f"unknown flag {flag}: {hint}"
        print(f"error: {_one_sentence(message)} (see --help)", file=sys.stderr)
        self.exit(USER_MISTAKE)


def _one_sentence(message: str) -> str:
    return " ".join(line.strip(" -") for line in message.splitlines() if line.strip())


def choose_device(name: str) -> torch.device:
    """The device that a ``--device`` flag names: auto takes a GPU where there is one.

    Raises:
        UserError: CUDA is asked for where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch finds no CUDA device here; use --device cpu")
    return torch.device(name)


def run_command(main: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Run a command's body and return its exit status.

    A ``UserError`` becomes one line on stderr and status 2, Ctrl-C status 130; any other exception
    is a defect and keeps its traceback.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
