"""``sparse-tx audit``: proof that a model sees what its patterns allow, and nothing else."""

import sys
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sparse_tx.checkpoint import find_checkpoint, load_checkpoint
from sparse_tx.commands.checkpoint_flags import add_checkpoint
from sparse_tx.commands.json_file import check_json_file, write_json
from sparse_tx.commands.shell import CommandParser, choose_device, run_command
from sparse_tx.commands.tables import table_lines
from sparse_tx.config import RunConfig, preset_names, preset_text
from sparse_tx.errors import UserError
from sparse_tx.evaluation.audit import (
    Audit,
    DecodingPath,
    audit,
    choose_engines,
    choose_lengths,
    draw_weights_if_untrained,
)
from sparse_tx.generation import CachedDecoder, NativeDecoder, RecomputeDecoder
from sparse_tx.generation.native import why_not_native
from sparse_tx.masks.cells import counted, numbered
from sparse_tx.model import GPT
from sparse_tx.model.precision import dtype_of

DESCRIPTION = """Prove that nothing from the future leaks into a model, and that everything its
patterns allow is read: every pair of positions by every head and engine, then through all layers
together, then by every way of decoding. Tokens are replaced one at a time and bits compared, and
gradients taken. Exit status 1, with the pair of positions at fault, where something does not
hold."""

EPILOG = """Positions count from 0, which is the start symbol's. A new model of a preset gets random
weights, because through its zeros nothing passes; a trained one is audited as it is. Lengths are
chosen so that it stays quick and meets the edges of patterns and tiles; --seq_len chooses the
longest one."""

HOLDS, DOES_NOT = 0, 1

# Every way of decoding that a model may be used by.
DECODERS = (
    DecodingPath("recompute", lambda model, room: RecomputeDecoder(model)),
    DecodingPath("cached", CachedDecoder),
    DecodingPath("native", NativeDecoder, why_not_native),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 1 where something does not hold, 2 after a mistake."""
    return run_command(_main, argv)


def _parser() -> CommandParser:
    parser = CommandParser(prog="sparse-tx audit", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add_checkpoint(parser, required=False)
    add("--preset", type=str, help=f"A new model instead: one of {', '.join(preset_names())}.")
    add("--pattern", type=str, help="Another pattern for the model, such as fixed:128:32.")
    add("--seq_len", type=int, help="The longest length to look at (chosen by the pattern).")
    add(
        "--engines",
        type=str,
        default="all",
        help="all that can run here, auto for the one that it takes, or names such as views,cpu.",
    )
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="Where to compute.")
    add("--seed", type=int, default=0, help="Of the weights of a new model.")
    add(
        "--thorough",
        action="store_true",
        help="Every position of the whole model, however large it is and however long that takes.",
    )
    add("--json", type=str, help="File to write all of it to.")
    return parser


@dataclass(frozen=True)
class _Subject:
    """The model to audit, where it comes from, and what it computes in when it is trained."""

    model: GPT
    origin: dict[str, Any]
    dtype: torch.dtype


def _main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    _check(args)
    device = choose_device(args.device)
    subject = _load(args, device)
    model, config = subject.model, subject.model.config
    engines, absent = choose_engines(model, args.engines)
    lengths = choose_lengths(config.stack, config.seq_len, args.seq_len)
    zero = draw_weights_if_untrained(model, args.seed)
    with _Display() as display:
        result = audit(
            model,
            engines=engines,
            lengths=lengths,
            decoders=DECODERS,
            dtypes=tuple(dict.fromkeys((torch.float32, subject.dtype))),
            thorough=args.thorough,
            on_step=display.on_step,
        )
    result.notes[:0] = [f"engine '{name}': {reason}" for name, reason in absent.items()]
    figures = _figures(subject, device, zero, result)
    if args.json is not None:
        write_json(args.json, figures)
    print(_report(subject, device, zero, result))
    if args.json is not None:
        print(f"wrote {args.json}", file=sys.stderr)
    return HOLDS if result.holds else DOES_NOT


def _check(args: Any) -> None:
    if (args.checkpoint is None) == (args.preset is None):
        given = "both are" if args.checkpoint is not None else "neither is"
        raise UserError(
            f"give --checkpoint for a trained model or --preset for a new one; {given} given"
        )
    if not 0 <= args.seed < 2**63:
        raise UserError(f"seed is {args.seed}; it must be from 0 to 2^63 - 1")
    if args.json is not None:
        check_json_file(args.json)


def _load(args: Any, device: torch.device) -> _Subject:
    if args.checkpoint is not None:
        path = find_checkpoint(args.checkpoint, args.which)
        # Engines are chosen later: that of the run may be one for another device.
        model, _, config = load_checkpoint(
            path, device=device, engine="views", pattern=args.pattern
        )
        return _Subject(model, {"checkpoint": str(path)}, dtype_of(config.training.precision))
    config = RunConfig.from_flat(yaml.safe_load(preset_text(args.preset)))
    if args.pattern is not None:
        config = replace(config, model=replace(config.model, pattern=args.pattern))
    torch.manual_seed(args.seed)
    origin = {"preset": args.preset, "seed": args.seed}
    return _Subject(GPT(config.model).to(device), origin, dtype_of(config.training.precision))


class _Display:
    """A bar on the terminal's stderr meanwhile."""

    def __init__(self):
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("auditing"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("auditing", total=None, now="")

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *exception):
        self.progress.stop()

    def on_step(self, done: int, total: int, label: str) -> None:
        self.progress.update(self.task, completed=done, total=total, now=label)


def _figures(
    subject: _Subject, device: torch.device, zero: str | None, result: Audit
) -> dict[str, Any]:
    config = subject.model.config
    return {
        **subject.origin,
        "pattern": config.pattern,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "seq_len": config.seq_len,
        "device": str(device),
        "drawn_because_zero": zero,
        "holds": result.holds,
        **asdict(result),
        "faults": [{**asdict(fault), "sentence": str(fault)} for fault in result.faults],
    }


def _report(subject: _Subject, device: torch.device, zero: str | None, result: Audit) -> str:
    config, lengths = subject.model.config, result.lengths
    origin = subject.origin.get("checkpoint") or f"preset {subject.origin['preset']}"
    weights = "as trained" if "checkpoint" in subject.origin else "as initialised"
    if zero is not None:
        weights = f"drawn at random, because those of {zero} are zero, and nothing passes"
    shorter = ", ".join(f"{length:,}" for length in lengths.shorter)
    lines = [
        f"model    {origin}: {config.pattern}, {counted(config.n_layer, 'layer')},"
        f" {counted(config.n_head, 'head')}, on {device}",
        f"weights  {weights}",
        f"lengths  {lengths.longest:,}" + (f"; for heads also {shorter}" if shorter else ""),
        "",
        *filter(None, _tables(result)),
        *(f"not shown: {note}" for note in result.notes),
    ]
    if any(
        min(proof.flips, proof.queries or proof.flips) < proof.seq_len for proof in result.models
    ):
        lines.append(
            "not shown: positions of the whole model that are not in the table's figures;"
            " --thorough takes all"
        )
    if lengths.unreached:
        sizes = " and ".join(f"{size:,}" for size in lengths.unreached)
        lines.append(
            f"not shown: what is beyond {sizes} tokens, sizes in the pattern that no length here"
            " gets past; --seq_len N looks at longer texts"
        )
    if result.holds:
        lines.append("holds: nothing leaks, and all that is allowed is read")
    return "\n".join([*lines, *(f"{fault.kind}: {fault}" for fault in result.faults)])


def _tables(result: Audit) -> list[str]:
    """What was proven, in as many tables as there are rounds."""
    heads = [
        (
            _numbers(proof.layers),
            _numbers(proof.heads),
            proof.pattern,
            f"{proof.allowed:,}",
            f"{proof.forbidden:,}",
            ", ".join(proof.engines) or "none",
        )
        for proof in result.heads
    ]
    models = [
        (
            proof.engine,
            f"{proof.flips:,} of {proof.seq_len:,}",
            f"{proof.queries:,} of {proof.seq_len:,}",
            f"{proof.reached:,}" if proof.finds_gaps and proof.queries else "not shown",
            f"{proof.unreached:,}" if proof.queries else "not shown",
        )
        for proof in result.models
    ]
    decoders = [
        (
            proof.decoder,
            proof.engine,
            proof.dtype,
            ", ".join(f"{prompt:,}" for prompt in sorted(proof.prefixes)),
            f"{proof.logits:,}",
            f"{proof.error:.1e}",
            f"{proof.rounding:.1e}",
        )
        for proof in result.decoders
    ]
    return [
        _table("layers, heads, pattern, >pairs allowed, >pairs forbidden, engines", heads),
        _table(
            "whole model, >tokens flipped, >logits differentiated, >inputs reached, >not reached",
            models,
        ),
        _table("decoder, engine, type, prompts, >equal logits, >off by, >rounding", decoders),
    ]


def _table(columns: str, rows: list[tuple[str, ...]]) -> str:
    """A table as text, and an empty line; the names of columns of numbers begin with ``>``."""
    if not rows:
        return ""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns.split(", "):
        justify = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return "\n".join([*filter(None, table_lines(table)), ""])


def _numbers(numbers: tuple[int, ...]) -> str:
    return numbered("", list(numbers)).lstrip("s ")


if __name__ == "__main__":
    sys.exit(main())
