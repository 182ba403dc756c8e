"""What all commands share: how flags are read, and how mistakes are reported."""

import errno
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import get_origin

import torch
from jsonargparse import ArgumentParser, set_parsing_settings

from sparse_tx.commands.console import silence_stdout
from sparse_tx.errors import UserError, nearest

# Field descriptions stand below the fields of the config classes, and serve as --help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

USER_MISTAKE = 2
INTERRUPTED = 130
TERMINATED = 143


class CommandParser(ArgumentParser):
    """A jsonargparse parser that answers a mistake with one sentence and exit status 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, exit_on_error=True, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Print the mistake, for an unknown flag with the nearest valid one, and exit."""
        flags = [option for option in self._option_string_actions if option.startswith("--")]
        if unknown := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
            flag = unknown[1].split("=")[0]
            if flag.startswith("-"):
                hint = nearest(flag, flags) or f"the flags are {', '.join(flags)}"
                message = f"unknown flag {flag}: {hint.strip()}"
            else:
                message = f"unexpected argument '{unknown[1]}': settings are given as --NAME VALUE"
        elif mistyped := _MISTYPED.search(message) or _MISTYPED_UNION.search(message):
            name, expected, given = mistyped.groups()
            words = self._example(name) or _in_words(expected)
            message = f"--{name} is '{given.strip()}'; it must be {words}"
        elif chosen := _NO_CHOICE.search(message):
            name, given, known = chosen[1], chosen[2], re.findall(r"[\w-]+", chosen[3])
            message = f"{name} '{given}' is unknown: {nearest(given, known)}it is one of " + (
                ", ".join(known)
            )
        print(f"error: {_one_sentence(message)} (see --help)", file=sys.stderr)
        self.exit(USER_MISTAKE)

    def parse_args(self, args: list[str] | None = None, *others, **named):
        """Parse; flags of several numbers may have them between commas, with or without brackets.

        The brackets are what YAML wants.
        """
        args = list(sys.argv[1:] if args is None else args)
        for at, arg in enumerate(args):
            flag, equals, value = arg.partition("=")
            if not self._is_tuple(flag.removeprefix("--")):
                continue
            if equals:
                args[at] = f"{flag}={_bracketed(value)}"
            elif at + 1 < len(args) and not args[at + 1].startswith("--"):
                args[at + 1] = _bracketed(args[at + 1])
        return super().parse_args(args, *others, **named)

    def _is_tuple(self, name: str) -> bool:
        action = self._option_string_actions.get(f"--{name}")
        return get_origin(getattr(action, "_typehint", None)) is tuple

    def _example(self, name: str) -> str | None:
        """How a flag of several numbers is written; None for other flags."""
        if not self._is_tuple(name):
            return None
        example = self._option_string_actions[f"--{name}"].default or (64, 64)
        return "numbers between commas, such as " + ",".join(map(str, example))


def _bracketed(value: str) -> str:
    return value if value.strip().startswith(("[", "(")) else f"[{value}]"


# What jsonargparse says of a value of the wrong type, which names Python's classes.
_MISTYPED = re.compile(r'Parser key "(\w+)":.*?Expected a (.+?)\. Got value: (.*)', re.DOTALL)

_MISTYPED_UNION = re.compile(
    r'Parser key "(\w+)":\s+Does not validate against any of the Union subtypes\s+'
    r"Subtypes: \[(.*?)\]\s.*Given value: (.*)",
    re.DOTALL,
)
_NO_CHOICE = re.compile(r"argument (\w+): invalid choice: '([^']*)' \(choose from (.*)\)")


def _in_words(expected: str) -> str:
    """What a type is called where no Python is spoken."""
    if "Literal" in expected:
        return "one of " + ", ".join(re.findall(r"'([^']*)'", expected))
    names = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    names["NoneType"] = "null"
    found = [words for name, words in names.items() if re.search(rf"\b{name}\b", expected)]
    return " or ".join(found) or f"of type {expected}"


def _one_sentence(message: str) -> str:
    return " ".join(
        line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()
    )


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


def note(text: str) -> None:
    """Say something to whoever called, not to whoever reads stdout."""
    print(text, file=sys.stderr)


def called_as(script: str, command: str) -> str:
    """How this process's user calls a command: by the script of a clone, or as installed."""
    return f"python {script}" if Path(sys.argv[0]).suffix == ".py" else f"sparse-tx {command}"


# Of a path that was given: there is no right to it, or no such name.
_NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


class _Terminated(BaseException):
    """SIGTERM has come."""


@contextmanager
def _clean_end_by_sigterm() -> Iterator[None]:
    """Have SIGTERM unwind what runs, so that nothing half-made is left, instead of killing it."""

    def terminate(signum, frame):
        raise _Terminated

    if current_thread() is not main_thread():  # as only the main one may ask for signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_command(main: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Run a command's body and return its exit status.

    A ``UserError`` becomes one line on stderr and status 2, and so do a full disk and a path that
    nobody may enter; Ctrl-C status 130, and SIGTERM 143. Any other exception is a defect and keeps
    its traceback.
    """
    log = logging.getLogger("sparse_tx")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
    try:
        with _clean_end_by_sigterm():
            status = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except _Terminated:
        print("terminated", file=sys.stderr)
        return TERMINATED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_MISTAKE
    except BrokenPipeError:
        silence_stdout()
        return 0
    except OSError as error:
        if error.errno in _NO_ENTRY and error.filename:
            print(f"error: '{error.filename}': {error.strerror}; name another", file=sys.stderr)
            return USER_MISTAKE
        if error.errno != errno.ENOSPC:
            raise
        silence_stdout()  # what is still to be printed might fail again at the end
        what = f"'{error.filename}'" if error.filename else "the output"
        print(f"error: {what} cannot be written: {error.strerror}; free some", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
