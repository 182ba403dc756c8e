"""``sparse-tx evaluate``: bits per byte of a text under stated protocols."""

from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from time import perf_counter
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparse_tx.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    read_manifest,
    weights_sha256,
)
from sparse_tx.commands.checkpoint_flags import add_checkpoint
from sparse_tx.commands.console import silence_stdout
from sparse_tx.commands.json_file import check_json_file, write_json
from sparse_tx.commands.preparing import with_usable_cache
from sparse_tx.commands.scored_text import ScoredText, encoded_text, tokenized_text
from sparse_tx.commands.scoring_display import ScoringDisplay
from sparse_tx.commands.shell import CommandParser, choose_device, run_command
from sparse_tx.commands.tables import table_lines
from sparse_tx.config import DataConfig, ModelConfig
from sparse_tx.data import shape_in_words
from sparse_tx.errors import UserError
from sparse_tx.evaluation import (
    Evaluation,
    LanguageModel,
    TrainedModel,
    WindowPlan,
    check_windows_of_images,
    evaluate,
    load_hugging_face,
    plan_windows,
)
from sparse_tx.profiler.provenance import provenance
from sparse_tx.profiler.report.words import flops_text

DESCRIPTION = """Score a whole text with a trained model, in bits per byte: every byte once, the end
included. --min_context 0 takes windows that do not overlap, whose first tokens have little context;
N has windows overlap so that every token after the first window has at least N tokens of the text
before it in its own, which costs seq_len / (seq_len - N) times as much. Several may be asked for in
one pass. --hf scores a Hugging Face causal language model on disk under the same protocols."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 2 after a mistake in what was given, 130 after Ctrl-C."""
    return run_command(_evaluate, argv)


def _parser() -> CommandParser:
    parser = CommandParser(prog="sparse-tx evaluate", description=DESCRIPTION)
    add = parser.add_argument
    add_checkpoint(parser, required=False)
    add("--hf", type=str, help="Instead of a checkpoint: the folder of a Hugging Face model.")
    add("--data", type=str, help="Source of the text (that of the run).")
    add(
        "--split",
        type=Literal["valid", "test", "all"],
        default="valid",
        help="Which part of it; all is the whole source, as one text.",
    )
    add(
        "--shares",
        type=str,
        help="Percent of its bytes for training, validation and test (those of the run; 90,5,5).",
    )
    add(
        "--min_context",
        type=tuple[int, ...],
        default=(0,),
        help="Tokens that a scored token has before it, such as 0 or 0,2048,3072.",
    )
    add("--max_bytes", type=int, help="Score only so many bytes at the beginning (all).")
    add("--seq_len", type=int, help="Tokens of a window, if fewer than the model's.")
    add("--json", type=str, help="File to write the figures to.")
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="Where to compute.")
    add("--engine", type=str, help="Attention engine (that of the run); auto takes the fastest.")
    return parser


@dataclass(frozen=True)
class _Subject:
    """A model beside the text that it is scored on.

    Attributes:
        model: the model.
        text: the text in its tokens.
        config: what its FLOPs are counted by; None where they are not counted.
        title: what it is, for a person.
        identity: the same for the JSON file.
        image_shape: H, W, C where a window is an image; empty elsewhere.
    """

    model: LanguageModel
    text: ScoredText
    config: ModelConfig | None
    title: str
    identity: dict[str, Any]
    image_shape: tuple[int, ...] = ()


def _evaluate(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    _check(args)
    console = Console(stderr=True)
    subject = (_trained if args.hf is None else _foreign)(args, console)
    model, text = subject.model, subject.text
    plan = plan_windows(text.n_scored, model.seq_len, args.min_context)
    flops = None if subject.config is None else plan.useful_flops(subject.config)
    _say(f"model      {subject.title}")
    _say(f"text       {text.title}")
    _say(f"work       {_work(plan, flops)}")
    began = perf_counter()
    with ScoringDisplay(console) as show:
        found = evaluate(model, text.tokens, text.token_bytes, plan, on_progress=show.on_progress)
    seconds = perf_counter() - began
    _say(_tables(found))
    if subject.image_shape:
        _say(_dimensions_in_words(subject.image_shape))
    if args.json is not None:
        cost = {
            "windows": len(plan.starts),
            "tokens_through_model": plan.tokens_run,
            "useful_flops": flops,
            "seconds": seconds,
        }
        write_json(args.json, _figures(subject, found, cost))
        _say(f"wrote      {args.json}")
    return 0


def _check(args) -> None:
    """Refuse what cannot be done, before a model is read."""
    if (args.checkpoint is None) == (args.hf is None):
        given = "neither is" if args.hf is None else "both are"
        raise UserError(
            "--checkpoint names a model of sparse_tx and --hf a Hugging Face model; give one"
            f" ({given} given)"
        )
    if args.split == "all" and args.shares is not None:
        raise UserError(
            f"--shares is {args.shares}, and --split all takes the whole text; leave --shares out"
        )
    if args.hf is not None:
        for name, value, default in (
            ("engine", args.engine, None),
            ("which", args.which, "latest"),
        ):
            if value != default:
                raise UserError(f"--{name} goes with --checkpoint; leave it out with --hf")
        if args.data is None:
            raise UserError("--hf brings no text; name one with --data, such as --data stdlib")
    for name in ("max_bytes", "seq_len"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")
    if args.json is not None:
        check_json_file(args.json)


def _trained(args, console: Console) -> _Subject:
    """The model of a checkpoint, and the text in its tokens."""
    device = choose_device(args.device)
    path = find_checkpoint(args.checkpoint, args.which)
    gpt, tokenizer, config = load_checkpoint(path, device=device, engine=args.engine)
    model = TrainedModel(gpt, args.seq_len)
    plan_windows(1, model.seq_len, args.min_context)  # a mistake in these is said at once
    if config.data.image_shape:
        check_windows_of_images(config.data.image_shape, model.seq_len, args.min_context)
    text = tokenized_text(
        console,
        _data(args, config.data),
        args.split,
        tokenizer,
        max_bytes=args.max_bytes,
    )
    step, (engine, reason) = read_manifest(path).step, gpt.engine()
    n_parameters = gpt.n_parameters()
    return _Subject(
        model=model,
        text=text,
        config=config.model,
        title=(
            f"{path}, step {step:,}, {n_parameters:,} parameters, {config.model.pattern} by engine"
            f" {engine} ({reason})"
        ),
        identity={
            "kind": "sparse_tx",
            "path": str(path),
            "step": step,
            "parameters": n_parameters,
            "weights_sha256": weights_sha256(path),
            "seq_len": model.seq_len,
            "pattern": config.model.pattern,
            "engine": engine,
            "tokenizer": tokenizer.fingerprint,
        },
        image_shape=config.data.image_shape,
    )


def _foreign(args, console: Console) -> _Subject:
    """A Hugging Face model, and the text in its tokens."""
    device = choose_device(args.device)
    _quieten_transformers()
    with console.status(f"loading {args.hf}"):
        model = load_hugging_face(args.hf, device=device, seq_len=args.seq_len)
    plan_windows(1, model.seq_len, args.min_context)
    text = encoded_text(
        console,
        _data(args, DataConfig()),
        args.split,
        model.encode,
        max_bytes=args.max_bytes,
        skips_first=model.start_token is None,
    )
    name = type(model.model).__name__
    return _Subject(
        model=model,
        text=text,
        config=None,
        title=f"{model.folder}, {name}, {model.n_parameters:,} parameters",
        identity={
            "kind": "hugging_face",
            "path": str(model.folder),
            "step": None,
            "parameters": model.n_parameters,
            "weights_sha256": model.weights_sha256(),
            "seq_len": model.seq_len,
            "architecture": name,
        },
    )


def _quieten_transformers() -> None:
    """Keep its progress bars and its notes off the terminal: what is wrong is raised."""
    with suppress(ImportError):
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _data(args, default: DataConfig) -> DataConfig:
    """What is read: the run's data, or what the flags say instead."""
    shares = default.split
    if args.shares is not None:
        try:
            shares = tuple(float(share) for share in args.shares.split(","))
        except ValueError:
            raise UserError(
                f"--shares is '{args.shares}'; give three numbers in per cent, such as 90,5,5"
            ) from None
    source = default.data if args.data is None else args.data
    return replace(with_usable_cache(default), data=source, split=shares)


def _figures(subject: _Subject, found: Evaluation, cost: dict[str, Any]) -> dict[str, Any]:
    first = found.scores[0]
    of_images = {"bits_per_dimension": first.bpb} if subject.image_shape else {}
    return {
        "bpb": first.bpb,
        **of_images,
        "bytes": first.bytes,
        "protocol": first.protocol,
        "protocols": [
            {
                "min_context": score.windows.min_context,
                "bpb": score.bpb,
                "bytes": score.bytes,
                "tokens": score.tokens,
                "windows": score.windows.n_windows,
                "protocol": score.protocol,
            }
            for score in found.scores
        ],
        "curve": [
            {
                "tokens_before_first": places.first,
                "tokens_before_last": places.last,
                "bpb": places.bpb,
                "bytes": places.bytes,
                "tokens": places.tokens,
            }
            for places in found.curve
        ],
        "model": subject.identity,
        "data": subject.text.identity,
        "cost": cost,
        "provenance": provenance("transformers", "tokenizers"),
    }


# --- What a person sees -------------------------------------------------------------------------


def _say(text: str) -> None:
    """Print a text; whether it is read is no matter, as there may be a file to write."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence_stdout()


def _work(plan: WindowPlan, flops: int | None) -> str:
    words = (
        f"{len(plan.starts):,} windows of up to {plan.seq_len:,} tokens: {plan.tokens_run:,} tokens"
        f" through the model, {plan.tokens_run / plan.n_tokens:,.2f} for each that is scored"
    )
    return words if flops is None else f"{words}; {flops_text(flops)}, useful ones"


def _dimensions_in_words(shape: tuple[int, ...]) -> str:
    return (
        "Bits per dimension are bits per byte here: each byte is one of the"
        f" {prod(shape):,} dimensions of an image of {shape_in_words(shape)}, and each window one"
        " image."
    )


def _tables(found: Evaluation) -> str:
    """The figures, the protocols in words, and the loss by place."""
    scores = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("min context", "bits per byte", "bytes", "tokens", "windows"):
        scores.add_column(column, justify="right", no_wrap=True)
    for score in found.scores:
        counts = (score.bytes, score.tokens, score.windows.n_windows)
        scores.add_row(
            f"{score.windows.min_context:,}",
            f"{score.bpb:.4f}",
            *(f"{count:,}" for count in counts),
        )
    curve = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("tokens before", "bits per byte", "bytes"):
        curve.add_column(column, justify="right", no_wrap=True)
    for places in found.curve:
        first, last = places.first, places.last
        curve.add_row(
            f"{first:,}" if first == last else f"{first:,} to {last:,}",
            "-" if places.bpb is None else f"{places.bpb:.4f}",
            f"{places.bytes:,}",
        )
    protocols = [
        f"min context {score.windows.min_context:,}: {score.protocol}" for score in found.scores
    ]
    return "\n".join(
        [
            *table_lines(scores),
            *protocols,
            "",
            "By tokens of the text that a token has before it in its window, over all windows of"
            f" min context {found.scores[0].windows.min_context:,}:",
            *table_lines(curve),
        ]
    )
