"""The sample command: continue a prompt with a trained model."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter
from typing import Literal

import torch

from sparse_tx.checkpoint import Which, find_checkpoint, load_checkpoint, write_atomically
from sparse_tx.commands.shell import CommandParser, called_as, choose_device, run_command
from sparse_tx.config import SamplingConfig
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import Utf8Stream, generate

DESCRIPTION = """Continue a prompt with a trained model. One sample is written to the terminal as it
is made, several are made at once and written one after another. The prompt comes first; bytes that
are not UTF-8 are shown as U+FFFD."""

PAST_THE_CONTEXT = """A text may grow longer than the model's context (seq_len): whenever the
context is full, its oldest half is dropped and the model goes on with the rest."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 after a mistake in what was given."""
    return run_command(_sample, argv)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=called_as("sample.py", "sample"), description=DESCRIPTION, epilog=PAST_THE_CONTEXT
    )
    add = parser.add_argument
    add("--checkpoint", type=str, required=True, help="A run directory, or one checkpoint of it.")
    add(
        "--which", type=Which, default="latest", help="Of a run: its latest checkpoint or its best."
    )
    add("--prompt", type=str, default=None, help="The text to continue; by default there is none.")
    add("--prompt_file", type=str, default=None, help="File whose bytes to continue; - for stdin.")
    add("--length", type=int, default=500, help="Tokens to generate.")
    parser.add_class_arguments(SamplingConfig)
    add(
        "--seed", type=int, default=0, help="Of the first sample; sample n is that of seed + n - 1."
    )
    add("--num_samples", type=int, default=1, help="Samples to make.")
    add(
        "--out",
        type=str,
        default=None,
        help="Write prompt and continuation, as bytes, to this file instead of the terminal;"
        " several samples get -1, -2 and so on before the file's extension.",
    )
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="Where to compute.")
    add(
        "--engine",
        type=str,
        default=None,
        help="Attention engine; by default that of the run. auto takes the fastest that can run.",
    )
    return parser


def _sample(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    settings = SamplingConfig(**{f.name: args[f.name] for f in fields(SamplingConfig)})
    for name in ("length", "num_samples"):
        if args[name] < 1:
            raise UserError(f"{name} is {args[name]}; it must be 1 or more")
    device = choose_device(args.device)
    outputs = _outputs(args.out, args.num_samples)
    path = find_checkpoint(args.checkpoint, args.which)
    prompt = _prompt(args.prompt, args.prompt_file)
    model, tokenizer, config = load_checkpoint(path, device=device, engine=args.engine)
    tokens = tokenizer.encode(prompt).astype("int64")
    steps = generate(
        model,
        tokens,
        length=args.length,
        settings=settings,
        seed=args.seed,
        num_samples=args.num_samples,
    )
    _note(f"{path}, {device}, seed {args.seed}")
    if 1 + len(tokens) + args.length > config.model.seq_len:
        _note(
            f"prompt and continuation have {len(tokens) + args.length:,} tokens, more than the"
            f" context of {config.model.seq_len:,}; its oldest half is dropped when it is full"
        )
    with suppress(AttributeError):  # what stands for stdout need not be a terminal's stream
        sys.stdout.reconfigure(errors="replace")  # a character that the encoding lacks becomes "?"
    began = perf_counter()
    try:
        if outputs:
            _write(outputs, prompt, _all_samples(steps, tokenizer, args.length))
        elif args.num_samples == 1:
            _stream(prompt, steps, tokenizer)
        else:
            _print(prompt, _all_samples(steps, tokenizer, args.length), args.seed)
    except OSError as error:
        # Python flushes stdout once more at exit: to nowhere now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # whoever read has seen enough
        raise UserError(f"standard output cannot be written: {error.strerror}") from error
    made = args.length * args.num_samples
    _note(f"{made:,} tokens, {made / (perf_counter() - began):,.1f} tokens/s")
    return 0


def _prompt(text: str | None, file: str | None) -> bytes:
    if text is not None and file is not None:
        raise UserError("both --prompt and --prompt_file are given; give one of them")
    if text is not None:
        return os.fsencode(text)  # the bytes of the command line, UTF-8 or not
    if file is None:
        return b""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"the prompt file '{file}' cannot be read: {error.strerror}") from error


def _outputs(out: str | None, num_samples: int) -> list[Path]:
    """The files to write, after a trial: better refused now than after the samples are made."""
    if out is None:
        return []
    path = Path(out)
    paths = [path]
    if num_samples > 1:
        paths = [path.with_name(f"{path.stem}-{n + 1}{path.suffix}") for n in range(num_samples)]
    for path in paths:
        if path.exists() and not path.is_file():
            raise UserError(f"the output '{path}' exists and is not a regular file")
    try:
        with TemporaryFile(dir=path.resolve().parent):
            return paths
    except OSError as error:
        raise UserError(f"the output '{out}' cannot be written: {error.strerror}") from error


def _all_samples(steps: Iterator[torch.Tensor], tokenizer: Tokenizer, length: int) -> list[bytes]:
    made = torch.stack(list(_with_progress(steps, length)), dim=1)  # (N, length)
    return [tokenizer.decode(sample.numpy()) for sample in made]


def _with_progress(steps: Iterator[torch.Tensor], length: int) -> Iterator[torch.Tensor]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    yield from track(steps, "sampling", total=length, console=console, disable=hidden)


def _write(outputs: list[Path], prompt: bytes, samples: list[bytes]) -> None:
    for path, sample in zip(outputs, samples, strict=True):
        try:
            write_atomically(path, prompt + sample)
        except OSError as error:
            raise UserError(f"the output '{path}' cannot be written: {error.strerror}") from error
        _note(f"wrote {path}")


def _stream(prompt: bytes, steps: Iterator[torch.Tensor], tokenizer: Tokenizer) -> None:
    stream = Utf8Stream()
    _show(stream.feed(prompt))
    for tokens in steps:
        _show(stream.feed(tokenizer.decode(tokens.numpy())))
    _show(stream.finish() + "\n")


def _print(prompt: bytes, samples: list[bytes], seed: int) -> None:
    for n, sample in enumerate(samples):
        text = (prompt + sample).decode("utf-8", errors="replace")
        _show(f"--- sample {n + 1} of {len(samples)} (seed {seed + n}) ---\n{text}\n")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    print(text, file=sys.stderr)
