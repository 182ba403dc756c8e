"""What compress and decompress share: their flags, files, and how they show that they are at it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import Progress

from sparse_tx.checkpoint import find_checkpoint, load_checkpoint
from sparse_tx.commands.checkpoint_flags import add_checkpoint
from sparse_tx.commands.output_file import check_output, write_output
from sparse_tx.commands.shell import CommandParser, choose_device, note
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation.native import why_not_native
from sparse_tx.model import GPT

EXTENSION = ".stx"


def make_parser(name: str, description: str, out: str) -> CommandParser:
    """The parser of one of the two commands; ``out`` says where its result goes by default."""
    parser = CommandParser(prog=f"sparse-tx {name}", description=description)
    add = parser.add_argument
    add("file", type=str, help=f"The file to {name}; - for stdin.")
    add_checkpoint(parser)
    add("--out", type=str, help=f"Where the result goes: {out} by default; - for stdout.")
    add("--overwrite", action="store_true", help="Replace the result if it is there already.")
    add("--device", type=Literal["cpu", "cuda"], default="cpu", help="Where to compute.")
    return parser


def read_file(name: str) -> bytes:
    """The bytes of a file, or of stdin.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"the file '{name}' cannot be read: {error.strerror}") from error


def choose_output(out: str, overwrite: bool) -> str:
    """``out`` itself, after a trial: better refused now than after the work is done.

    Raises:
        UserError: it is there already, is no file, or cannot be written.
    """
    if out == "-":
        return out
    path = Path(out)
    if path.is_file() and not overwrite:
        raise UserError(f"the output '{out}' exists; give another --out, or --overwrite")
    check_output(path)
    return out


def give_output(out: str, data: bytes) -> None:
    """Write the result, to a file whole or not at all."""
    if out != "-":
        write_output(Path(out), data)
        return
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def load_model(args: Namespace) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a checkpoint, set up to predict the same at every run."""
    path = find_checkpoint(args.checkpoint, args.which)
    # The engine that it was trained with need not run here, and does not matter.
    model, tokenizer, _ = load_checkpoint(path, device=choose_device(args.device), engine="auto")
    if args.device == "cpu" and (reason := why_not_native(model)) is not None:
        # Torch's sums may depend on the number of threads; those of the native step do not.
        torch.set_num_threads(1)
        note(f"steps are torch's, on one thread: {reason}")
    return model, tokenizer


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that is moved by tokens done and tokens in all."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)
