"""``sparse-tx profile``: what sequence lengths and patterns cost, predicted and measured."""

import sys
from dataclasses import fields, replace
from math import isfinite
from typing import Literal

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sparse_tx.accounting import count_parameters
from sparse_tx.checkpoint import read_checkpoint
from sparse_tx.commands import profile_maps
from sparse_tx.commands.reports import report_console, report_folder
from sparse_tx.commands.shell import INTERRUPTED, CommandParser, choose_device, run_command
from sparse_tx.config import ModelConfig, RunConfig, TrainingConfig, preset_names, preset_text
from sparse_tx.errors import UserError, nearest
from sparse_tx.profiler.equal_cost import find_reaches
from sparse_tx.profiler.fit import parse_memory
from sparse_tx.profiler.laboratory import Laboratory, Watcher
from sparse_tx.profiler.log import MeasurementLog
from sparse_tx.profiler.patterns_by_length import at_length, parse_lengths, parse_patterns
from sparse_tx.profiler.records import WORKS, Measurement, Profile, Setting, Work
from sparse_tx.profiler.report import tables, write_report
from sparse_tx.profiler.room import find_fits
from sparse_tx.profiler.settings import engine_of
from sparse_tx.profiler.sweep import Question, answer

DESCRIPTION = """Say what sequence lengths and patterns cost: FLOPs and memory from exact counts,
times from a short calibration on this machine, and with --measure all of it measured too."""

_PRESET = "cpu"
# Without --seq_lens: so many times the model's own length.
_LENGTHS = (1, 4, 16, 64)
# More in one step are no batch of any machine, and take minutes to count.
_MOST_TOKENS = 1 << 34
_RECOMPUTE = {"as-preset": None, "no": (False,), "yes": (True,), "both": (False, True)}
# Settings of a model that have flags of their own here, or that change no cost.
_NOT_FLAGS = {"pattern", "seq_len", "recompute", "engine", "init"}
_LOG = "measurements.jsonl"


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 2 after a mistake in what was given, 130 after Ctrl-C."""
    return run_command(_profile, argv)


def _parser() -> CommandParser:
    parser = CommandParser(prog="sparse-tx profile", description=DESCRIPTION)
    add = parser.add_argument
    add("--preset", type=str, help=f"The model: one of {', '.join(preset_names())} ({_PRESET}).")
    add("--checkpoint", type=str, help="The model of a run directory or checkpoint instead.")
    add(
        profile_maps.FLAG,
        type=str,
        help="Of modules for feature maps instead, such as 97x97x512 (more by --help --maps).",
    )
    add(
        "--seq_lens",
        type=str,
        help="Such as 1024,64k or 1024..1M*4 (1, 4, 16 and 64 times the model's).",
    )
    add(
        "--patterns",
        type=str,
        help="Such as 'dense;local:128,strided:128'; the word sqrt is the root of the length, as in"
        " 'local:sqrt,strided:sqrt' (dense and the model's own).",
    )
    add(
        "--work",
        type=str,
        default="train",
        help="What is done once, one or more of: attention (of one layer, forward and backward),"
        " forward (the loss), train (a step), prefill (a prompt), decode (one further token).",
    )
    add(
        "--recompute",
        type=Literal[tuple(_RECOMPUTE)],
        default="as-preset",
        help="Whether training computes blocks again in the backward pass instead of keeping them.",
    )
    add("--batch_size", type=int, help="Sequences at a time (as the preset).")
    add("--engine", type=str, default="auto", help="Attention engine: auto, views, cpu, ...")
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="Where to compute.")
    add(
        "--precision",
        type=Literal["fp32", "bf16", "fp16"],
        help="bf16 and fp16: for GPUs (as the preset).",
    )
    add("--measure", action="store_true", help="Also measure, in fresh processes.")
    add("--rounds", type=int, default=3, help="Timed rounds of each measurement.")
    add("--limit_s", type=float, default=60.0, help="Seconds a process of a measurement may take.")
    add("--flops_per_s", type=float, help="Predict times at this rate, such as 1e11, not by trial.")
    add("--tokens", type=float, help="Also the cost of training on so many tokens, such as 9e7.")
    add("--fit", action="store_true", help="The longest sequence and largest batch for --memory.")
    add("--memory", type=str, help="Such as 24GB, for the whole process.")
    add("--reach", type=int, help="Lengths at the cost that dense attention has at this length.")
    add("--out", type=str, help="Folder for HTML page, PNG, CSV, JSON; measurements go on there.")
    parser.add_class_arguments(ModelConfig, skip=_NOT_FLAGS)
    return parser


def _profile(argv: list[str]) -> int:
    if profile_maps.asks_for_maps(argv):
        return profile_maps.run(argv)
    args = _parse(argv)
    _check_numbers(args)
    title, model, training = _model(args)
    device = choose_device(args.device).type
    lengths = _lengths(args, model)
    _check_size(model, training, lengths)
    default = f"dense;{model.pattern}"
    labels = parse_patterns(default if args.patterns is None else args.patterns, lengths=lengths)
    if args.reach is not None:
        at_length("dense", args.reach)
    if args.reach is not None and set(labels) == {"dense"}:
        raise UserError(
            f"--reach {args.reach} compares patterns with dense attention, and --patterns names"
            " only dense; name another one too, such as 'local:128,strided:128'"
        )
    memory, works = _memory(args), _works(args.work)
    if args.tokens is not None and "train" not in works:
        raise UserError("--tokens asks what training costs; add train to --work, or leave it out")
    # With heads in groups, blocks are recomputed whatever else is asked.
    grouped = model.head_chunk is not None
    recompute = (True,) if grouped else _RECOMPUTE[args.recompute] or (model.recompute,)
    settings = tuple(
        Setting(
            work=work,
            label=label,
            model=replace(model, pattern=at_length(label, T), seq_len=T, recompute=again),
            training=training,
            device=device,
        )
        for work in works
        for label in labels
        for again in (recompute if work == "train" else (False,))
        for T in lengths
    )
    for setting in settings:
        engine_of(setting)  # one that cannot run is an error before anything is measured
    question = Question(
        title=title,
        settings=settings,
        measured=args.measure,
        flops_per_s=args.flops_per_s,
        training_tokens=args.tokens and max(1, round(args.tokens)),
    )
    log = MeasurementLog(report_folder(args.out) / _LOG) if args.out else None
    show = _Display()
    laboratory = Laboratory(log, show, rounds=args.rounds, limit_s=args.limit_s)
    first = {setting.label: setting for setting in reversed(settings)}
    try:
        with show:
            profile = answer(question, laboratory)
            if args.reach is not None:
                attention = [_attention_alone(first[label]) for label in labels]
                reaches = find_reaches(attention, args.reach, laboratory, measured=args.measure)
                profile = replace(profile, reaches=reaches)
            if memory is not None:
                kinds = _kinds_to_fit(first, labels)
                profile = replace(profile, fits=find_fits(kinds, memory, laboratory))
    except KeyboardInterrupt:
        if log is None:
            then = "give --out to keep measurements"
        elif log.path.exists():
            then = f"what was measured is kept in {log.path}: the same command goes on from there"
        else:
            then = "nothing was measured yet"
        print(f"stopped; {then}", file=sys.stderr)
        return INTERRUPTED
    _report(profile, args.out)
    return 0


def _attention_alone(setting: Setting) -> Setting:
    """The attention of a model at any length: it knows of no table of positions."""
    model = setting.model
    if model.most_positions is not None:
        model = replace(model, position="none", position_shape=())
    return replace(setting, work="attention", model=model)


def _check_numbers(args) -> None:
    for name in ("rounds", "limit_s", "flops_per_s", "reach", "tokens"):
        value = getattr(args, name)
        if value is not None and not (value > 0 and isfinite(value)):
            raise UserError(f"--{name} is {value}; it must be a finite number, more than 0")


def _check_size(model: ModelConfig, training: TrainingConfig, lengths: tuple[int, ...]) -> None:
    """Refuse lengths that the model's grid of positions has no cells for, and endless batches."""
    longest, cells = max(lengths), model.most_positions
    if cells is not None and longest > cells:
        raise UserError(
            f"--seq_lens goes to {longest:,} tokens, and this model has learned positions for"
            f" {cells:,} alone (position_shape); give shorter lengths, or add --position rope"
        )
    if training.batch_size * longest > _MOST_TOKENS:
        raise UserError(
            f"--batch_size {training.batch_size} at {longest:,} tokens is more than"
            f" {_MOST_TOKENS:,} tokens at a time; give a smaller batch or shorter lengths"
        )


def _parse(argv: list[str]):
    parser = _parser()
    args = parser.parse_args(argv)
    for name in ("preset", "checkpoint", "patterns", "out"):
        if (value := getattr(args, name)) is not None and not value.strip():
            raise UserError(f"--{name} is {value!r}; name one, or leave the flag out")
    # Only then is it known whose model the other flags change.
    if args.preset is not None and args.checkpoint is not None:
        raise UserError(
            f"--preset {args.preset} and --checkpoint {args.checkpoint} name two models; give one"
        )
    base = _base(args)
    parser.set_defaults({name: getattr(base.model, name) for name in _model_flags()})
    args = parser.parse_args(argv)
    args.base = base
    return args


def _base(args) -> RunConfig:
    if args.checkpoint is not None:
        return read_checkpoint(args.checkpoint).config
    return RunConfig.from_flat(yaml.safe_load(preset_text(args.preset or _PRESET)))


def _model_flags() -> list[str]:
    return [field.name for field in fields(ModelConfig) if field.name not in _NOT_FLAGS]


def _model(args) -> tuple[str, ModelConfig, TrainingConfig]:
    """The title of the profile, the model and how it is trained."""
    chosen = {name: getattr(args, name) for name in _model_flags()}
    if args.seq_lens is not None and args.position_shape != args.base.model.position_shape:
        chosen["seq_len"] = max(parse_lengths(args.seq_lens))  # what the shape is to hold
    model = replace(args.base.model, engine=args.engine, **chosen)
    training = args.base.training
    for name in ("batch_size", "precision"):
        if getattr(args, name) is not None:
            training = replace(training, **{name: getattr(args, name)})
    name = (
        f"checkpoint {args.checkpoint}" if args.checkpoint else f"preset {args.preset or _PRESET}"
    )
    return (
        f"{name}: {count_parameters(model).total:,} parameters, {model.n_layer} layers, width"
        f" {model.n_embd}, {model.n_head} heads{_grouping(model)}, batch size"
        f" {training.batch_size}",
        model,
        training,
    )


def _grouping(model: ModelConfig) -> str:
    """How heads are grouped and blocks stored, for the title; empty if they are not."""
    if model.head_chunk is None:
        return ""
    stored = ", blocks stored in bf16" if model.stored_precision == "bf16" else ""
    return f" taken {model.head_chunk} at a time{stored}"


def _lengths(args, model: ModelConfig) -> tuple[int, ...]:
    if args.seq_lens is not None:
        return parse_lengths(args.seq_lens)
    if args.fit or args.reach is not None:
        return (model.seq_len,)
    cells, longest = model.most_positions, max(_LENGTHS) * model.seq_len
    if cells is not None and longest > cells:  # downwards from what fits instead
        return tuple(sorted({max(1, model.seq_len // n) for n in _LENGTHS}))
    return tuple(n * model.seq_len for n in _LENGTHS)


def _works(text: str) -> tuple[Work, ...]:
    found = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    for work in found:
        if work not in WORKS:
            raise UserError(
                f"--work '{work}' is unknown: {nearest(work, WORKS)}it is one or more of"
                f" {', '.join(WORKS)}"
            )
    if not found:
        raise UserError(f"--work is empty; name one or more of {', '.join(WORKS)}")
    return found


def _memory(args) -> int | None:
    """The room that ``--fit`` asks about; None without it."""
    if args.fit != (args.memory is not None):
        raise UserError("--fit and --memory go together: for example --fit --memory 24GB")
    return parse_memory(args.memory) if args.fit else None


def _kinds_to_fit(first: dict[str, Setting], labels: tuple[str, ...]) -> list[Setting]:
    """Of each pattern: training without (if it can) and with recomputation; reading a prompt."""
    kinds = []
    for label in labels:
        setting = first[label]
        for work, again in (("train", False), ("train", True), ("prefill", False)):
            if work == "train" and setting.model.head_chunk is not None and not again:
                continue  # there is no such training
            model = replace(setting.model, recompute=again)
            kinds.append(replace(setting, work=work, model=model))
    return kinds


# --- What a person sees -------------------------------------------------------------------------


def _report(profile: Profile, out: str | None) -> None:
    console = report_console()
    for part in tables(profile):
        console.print(part)
    if out is not None:
        for path in write_report(profile, out).values():
            console.print(str(path), markup=False, soft_wrap=True)


class _Display(Watcher):
    """A bar on the terminal's stderr while measurements run."""

    def __init__(self):
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=Console(stderr=True),
        )
        self.task = None

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *exception):
        self.progress.stop()

    def on_plan(self, what: str, n_points: int) -> None:
        if n_points:
            self.task = self.progress.add_task(what, total=n_points, now="")

    def on_point(self, setting: Setting) -> None:
        again = ", recomputed" if setting.model.recompute else ""
        now = f"{setting.work} {setting.label} at {setting.model.seq_len:,}{again}"
        self.progress.update(self.task, now=now)

    def on_done(self, setting: Setting, measurement: Measurement) -> None:
        self.progress.update(self.task, advance=1, now="")


if __name__ == "__main__":
    sys.exit(main())
