"""The sample command: continue prompts with a trained model."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sparse_tx.checkpoint import find_checkpoint, load_checkpoint
from sparse_tx.commands.checkpoint_flags import add_checkpoint
from sparse_tx.commands.console import silence_stdout
from sparse_tx.commands.json_lines import (
    Job,
    Lines,
    Pieces,
    make_jobs,
    parse_prompts,
    write_texts,
)
from sparse_tx.commands.output_file import check_output, write_output
from sparse_tx.commands.sample_images import (
    ImageMaker,
    check_flags_of_images,
    check_run_of_images,
    is_picture,
)
from sparse_tx.commands.sampling_meter import Meter, note_length, whole_texts
from sparse_tx.commands.shell import (
    INTERRUPTED,
    CommandParser,
    called_as,
    choose_device,
    note,
    run_command,
)
from sparse_tx.config import SamplingConfig
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import TextRequest, Utf8Stream, generate_texts
from sparse_tx.generation.compression import model_hash

DESCRIPTION = """Continue a prompt with a trained model. One sample is written to the terminal as it
is made, several are made at once and written one after another. The prompt comes first; bytes that
are not UTF-8 are shown as U+FFFD. With --prompts, many prompts are continued, and the texts come as
JSON Lines. A model of images writes a picture, --out FILE.png; with --complete, of halves that it
completes."""

MORE = """A text may grow longer than the model's context (seq_len): whenever the context is full,
its oldest half is dropped and the model goes on with the rest. A line of --prompts is an object
such as {"prompt": "Once", "id": "a", "length": 100, "stop": ["\\n\\n"], "seed": 1, "temperature":
0.8}, of which only prompt is needed, text or a list of token ids; settings that it does not have
are those of the flags, and its seed is --seed plus num_samples for every prompt before it. A line
of the output is an object with id (that of the prompt, or the number of its line), sample (from 0),
seed, finish_reason (length or stop), text (without the prompt), bytes (in base64, where they are
not UTF-8), tokens (their ids) and logprobs (with --logprobs)."""

UNLIMITED = "unlimited"
_LENGTH = "500"
_BATCH_SIZE = 8


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 2 after a mistake in what was given, 130 after Ctrl-C."""
    return run_command(_sample, argv)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=called_as("sample.py", "sample"), description=DESCRIPTION, epilog=MORE
    )
    add = parser.add_argument
    add_checkpoint(parser)
    add("--prompt", type=str, default=None, help="The text to continue; by default there is none.")
    add("--prompt_file", type=str, default=None, help="File whose bytes to continue; - for stdin.")
    add(
        "--prompts",
        type=str,
        default=None,
        help="File of many prompts, a JSON object a line (see below); - for stdin.",
    )
    add(
        "--length",
        type=str,
        default=None,
        help=f"Tokens to generate ({_LENGTH}); {UNLIMITED}: until Ctrl-C or a stop string, on the"
        " terminal.",
    )
    add(
        "--complete",
        type=str,
        default=None,
        help="Of a model of images: complete images whose upper half is given, those of a split of"
        " the run's data (valid, test) or of an image file, a folder or an array (.npy).",
    )
    # Without a type, text is taken as it is; argparse makes the list.
    add(
        "--stop",
        action="append",
        metavar="TEXT",
        help="End a text right before the first of this that is generated; may be given several"
        " times.",
    )
    parser.add_class_arguments(SamplingConfig)
    add(
        "--seed", type=int, default=0, help="Of the first sample; sample n is that of seed + n - 1."
    )
    add("--num_samples", type=int, default=1, help="Samples to make (of each prompt).")
    add(
        "--out",
        type=str,
        default=None,
        help="Write prompt and continuation, as bytes, to this file instead of the terminal;"
        " several samples get -1, -2 and so on before the file's extension. JSON Lines go to one"
        " file, each once it is made; images to one picture, a .png file.",
    )
    add("--jsonl", action="store_true", help="Write JSON Lines, also without --prompts.")
    add(
        "--logprobs",
        type=int,
        default=None,
        help="In JSON Lines, give for each token its natural log-probability and those of so many"
        " most probable ones, by the model alone: before penalty, temperature and other filters.",
    )
    add(
        "--batch_size",
        type=int,
        default=None,
        help=f"Texts of JSON Lines that are made at once ({_BATCH_SIZE}).",
    )
    add("--resume", action="store_true", help="Go on after the JSON Lines that --out holds.")
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
    common = TextRequest(
        length=_length(_LENGTH if args.length is None else args.length),
        settings=SamplingConfig(**{f.name: args[f.name] for f in fields(SamplingConfig)}),
        seed=args.seed,
        stop=tuple(map(os.fsencode, args.stop or ())),
        logprobs=args.logprobs,
    )
    as_lines = args.jsonl or args.prompts is not None
    as_picture = not as_lines and is_picture(args.out)
    _check(args, common, as_lines, as_picture)
    device = choose_device(args.device)
    outputs = _outputs(args.out, 1 if as_lines or as_picture else args.num_samples)
    path = find_checkpoint(args.checkpoint, args.which)
    source = _read_source(args)
    model, tokenizer, config = load_checkpoint(path, device=device, engine=args.engine)
    check_run_of_images(path, config.data, args.out, as_lines=as_lines)
    if as_picture:
        origin = f"{path}, {device}, seed {args.seed}"
        maker = ImageMaker(model, tokenizer, config.data, common, origin)
        maker.write(outputs[0], args.num_samples, args.complete)
        return 0
    if args.prompts is not None:
        name = "standard input" if args.prompts == "-" else f"'{args.prompts}'"
        jobs = parse_prompts(source, name, tokenizer, common, args.num_samples)
    else:
        tokens = tokenizer.encode(source).astype("int64")
        jobs = make_jobs(replace(common, prompt=tokens), 1, args.num_samples)
    requests = [job.request for job in jobs]
    for request in requests:
        request.check_vocabulary(tokenizer.vocab_size)
    lines = None
    if as_lines:
        name = model_hash(model, tokenizer).hex()
        jobs = [replace(job, model=name) for job in jobs]
        lines = Lines(outputs[0] if outputs else None, jobs, resume=args.resume)
    note(f"{path}, {device}, seed {args.seed}")
    note_length(requests, config.model.seq_len)
    with suppress(AttributeError):  # what stands for stdout need not be a terminal's stream
        sys.stdout.reconfigure(errors="replace")  # a character that the encoding lacks becomes "?"
    try:
        if lines is not None:
            return _write_lines(model, tokenizer, jobs, lines, args.batch_size or _BATCH_SIZE)
        pieces = generate_texts(model, tokenizer, requests)
        if len(requests) == 1 and not outputs:
            return _stream(source, pieces, requests)
        with Meter(requests) as meter:
            samples = whole_texts(meter.watch(pieces, requests), len(requests))
        if outputs:
            _write(outputs, source, samples)
        else:
            _print(source, samples, args.seed)
        note(meter.summary())
        return 0
    except OSError as error:
        silence_stdout()  # Python flushes it once more at exit
        if isinstance(error, BrokenPipeError):
            return 0  # whoever read has seen enough
        raise UserError(f"standard output cannot be written: {error.strerror}") from error


# --- What is given ------------------------------------------------------------------------------


def _length(text: str) -> int | None:
    if text == UNLIMITED:
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"--length is '{text}'; it must be a whole number of tokens, or {UNLIMITED}"
        ) from None


def _check(args: Any, common: TextRequest, as_lines: bool, as_picture: bool) -> None:
    """Refuse what does not go together."""
    for name in ("num_samples", "batch_size"):
        if args[name] is not None and args[name] < 1:
            raise UserError(f"{name} is {args[name]}; it must be 1 or more")
    given = [f"--{name}" for name in ("prompt", "prompt_file", "prompts") if args[name] is not None]
    if len(given) > 1:
        raise UserError(f"both {given[0]} and {given[1]} are given; give one of them")
    if common.length is None and (as_lines or args.out is not None or args.num_samples > 1):
        raise UserError(
            f"--length {UNLIMITED} is for one text on the terminal or in a pipe; give a number of"
            " tokens for several texts, for files and for JSON Lines"
        )
    for name in ("logprobs", "batch_size", "resume"):
        if not as_lines and args[name] is not None and args[name] is not False:
            raise UserError(f"--{name} is for JSON Lines; add --jsonl, or give --prompts")
    if args.resume and args.out is None:
        raise UserError("--resume goes on with a file; name it with --out")
    check_flags_of_images(args, as_picture)


def _read_source(args: Any) -> bytes:
    """The prompt, or the lines of many."""
    if args.prompt is not None:
        return os.fsencode(args.prompt)  # the bytes of the command line, UTF-8 or not
    file, what = args.prompt_file, "the prompt file"
    if args.prompts is not None:
        file, what = args.prompts, "the file of prompts"
    if file is None:
        return b""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{what} '{file}' cannot be read: {error.strerror}") from error


def _outputs(out: str | None, num_samples: int) -> list[Path]:
    """The files to write, after a trial: better refused now than after the samples are made."""
    if out is None:
        return []
    path = Path(out)
    paths = [path]
    if num_samples > 1 and path.name:
        paths = [path.with_name(f"{path.stem}-{n + 1}{path.suffix}") for n in range(num_samples)]
    for path in paths:
        check_output(path)
    return paths


# --- What is made -------------------------------------------------------------------------------


def _write_lines(
    model: nn.Module, tokenizer: Tokenizer, jobs: list[Job], lines: Lines, batch_size: int
) -> int:
    """Make texts and write them as JSON Lines; returns the exit status."""
    where = f"in {lines.path}" if lines.path else "written"
    if lines.written:
        note(f"{lines.written:,} of {len(jobs):,} texts are {where} already")
    left = [job.request for job in jobs[lines.written :]]
    if not left:
        return 0
    mixed = lines.path is None and sys.stdout.isatty()  # lines and a bar would share the terminal
    status = 0
    try:
        with Meter(left, hidden=mixed) as meter:
            write_texts(model, tokenizer, jobs, lines, batch_size=batch_size, watch=meter.watch)
    except KeyboardInterrupt:
        note("interrupted")
        status = INTERRUPTED
    finally:
        if lines.written or status:
            resumable = lines.path is not None and lines.written < len(jobs)
            then = "; --resume goes on after them" if resumable else ""
            note(f"{lines.written:,} of {len(jobs):,} texts are {where}{then}")
    note(meter.summary())
    return status


def _stream(prompt: bytes, pieces: Pieces, requests: Sequence[TextRequest]) -> int:
    """Show one text as it is made; returns the exit status."""
    stream, status = Utf8Stream(), 0
    _show(stream.feed(prompt))
    with Meter(requests, hidden=True) as meter:
        try:
            for _, piece in meter.watch(pieces, requests):
                _show(stream.feed(piece.data))
        except KeyboardInterrupt:
            status = INTERRUPTED
    _show(stream.finish() + "\n")
    if status == INTERRUPTED:
        note("interrupted")
    note(meter.summary())
    return status


def _write(outputs: list[Path], prompt: bytes, samples: list[bytes]) -> None:
    for path, sample in zip(outputs, samples, strict=True):
        write_output(path, prompt + sample)
        note(f"wrote {path}")


def _print(prompt: bytes, samples: list[bytes], seed: int) -> None:
    for n, sample in enumerate(samples):
        text = (prompt + sample).decode("utf-8", errors="replace")
        _show(f"--- sample {n + 1} of {len(samples)} (seed {seed + n}) ---\n{text}\n")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
