"""The train command: from a corpus to a run directory."""

import signal
import sys
import time
from argparse import ArgumentError, ArgumentParser, Namespace
from contextlib import contextmanager
from dataclasses import replace
from math import log
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml
from jsonargparse import ActionConfigFile
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from sparse_tx.checkpoint import (
    Checkpoint,
    find_checkpoint,
    positions_in_words,
    read_checkpoint,
    transplant_weights,
    transplanted,
)
from sparse_tx.commands.preparing import prepare_with_status
from sparse_tx.commands.run_folder import (
    check_is_no_checkpoint,
    check_is_no_file,
    holds_run,
    prepare_folder,
)
from sparse_tx.commands.shell import (
    INTERRUPTED,
    CommandParser,
    called_as,
    choose_device,
    run_command,
    silence_stdout,
)
from sparse_tx.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    preset_names,
    preset_text,
)
from sparse_tx.data import Corpus
from sparse_tx.errors import UserError
from sparse_tx.evaluation import Score
from sparse_tx.profiler.step_room import require_room_for_step
from sparse_tx.training import Reporter, Trainer

DESCRIPTION = """Train a model: by default the preset cpu, on the Python sources of this machine,
for ten minutes. Settings are taken from defaults, --preset, --config and flags, the later the
stronger."""

_PRESET, _OUT = "cpu", "out"
# Flags that are no settings of the run.
_OWN_FLAGS = ("preset", "config", "out", "resume", "overwrite", "ignore_memory")
# What a resumed run may do otherwise than before, without becoming another run.
_FREE_ON_RESUME = {
    "max_steps",
    "max_minutes",
    "lr",
    "matrix_lr",
    "table_lr",
    "warmup_steps",
    "clip",
    "spike",
    "max_bad_steps",
    "data",  # its content is compared, whatever it is called
    "eval_every",
    "save_every",
    "log_every",
    "keep_last",
    "sample_length",
    "final_eval_bytes",
    "device",
    "cache_dir",
    "engine",
    "recompute",
    "chunk",
    "head_chunk",
    "stored_precision",
}
# Without a terminal, a line of progress is printed this often.
_SECONDS_BETWEEN_LINES = 15


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 2 after a mistake in what was given, 130 after Ctrl-C."""
    return run_command(_train, argv)


def _parser() -> CommandParser:
    parser = CommandParser(prog=called_as("train_lm.py", "train"), description=DESCRIPTION)
    add = parser.add_argument
    add("--preset", type=str, default=_PRESET, help=f"One of {', '.join(preset_names())}.")
    add("--config", action=ActionConfigFile, help="YAML file of settings, named as the flags.")
    add("--out", type=str, default=_OUT, help="Run directory: metrics, events, checkpoints.")
    add("--resume", action="store_true", help="Continue the run in --out with its settings.")
    add("--overwrite", action="store_true", help="Throw away the run in --out.")
    add("--ignore_memory", action="store_true", help="Begin even if memory is known not to do.")
    for part in (DataConfig, ModelConfig, TrainingConfig):
        parser.add_class_arguments(part)
    return parser


def _parse(argv: list[str]) -> tuple[RunConfig, Any, Checkpoint | None]:
    """Read the settings by their precedence.

    Returns:
        the settings, the flags that are none, and under ``--resume`` the checkpoint whose settings
        took the preset's place. Those of ``--init_from`` do so too, unless a preset is given.
    """
    given = _scout(argv)
    checkpoint = None
    if given.resume:
        if given.preset is not None:
            raise UserError("--resume goes on with the run's own settings; leave --preset out")
        if given.init_from is not None:
            raise UserError(
                "--resume and --init_from exclude each other: go on with the run in --out, or begin"
                " a new one from trained weights?"
            )
        check_is_no_checkpoint(Path(given.out))
        checkpoint = read_checkpoint(find_checkpoint(given.out), with_training_state=True)
        base = yaml.safe_dump(checkpoint.config.to_flat(), sort_keys=False)
    elif given.init_from is not None and given.preset is None:
        settings = read_checkpoint(given.init_from).config.to_flat()
        # The trained grid is kept all the same, and fits a longer text too.
        base = yaml.safe_dump(settings | {"position_shape": []}, sort_keys=False)
    else:
        base = preset_text(_PRESET if given.preset is None else given.preset)
    # jsonargparse takes files in the order of the command line, so that the base goes first and
    # the user's files, wherever they stand, go before all flags.
    files, flags = _files_and_flags(argv)
    with NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(base)
        file.flush()
        args = _parser().parse_args([f"--config={file.name}", *files, *flags])
    settings = args.as_dict()
    own = {name: settings.pop(name) for name in _OWN_FLAGS}
    return RunConfig.from_flat(settings), own, checkpoint


def _scout(argv: list[str]) -> Namespace:
    """The flags that decide which settings are read first: preset, out, init_from, resume.

    What cannot be read here is left to the real parser, which says so.
    """
    scout = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scout.add_argument("--preset")
    scout.add_argument("--out", default=_OUT)
    scout.add_argument("--init_from")
    scout.add_argument("--resume", action="store_true")
    try:
        return scout.parse_known_args(argv)[0]
    except ArgumentError:
        return scout.parse_args([])


def _files_and_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    files, flags, rest = [], [], iter(argv)
    for arg in rest:
        if arg == "--config" or arg.startswith("--config="):
            file = next(rest, "") if arg == "--config" else arg.removeprefix("--config=")
            _check_config_file(Path(file))
            files.append(f"--config={file}")
        else:
            flags.append(arg)
    return files, flags


def _check_config_file(path: Path) -> None:
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(
            f"--config {path} {what}; give a YAML file of settings, such as the config.yaml of a"
            " run, or take settings by their name with --preset"
        )
    if not path.is_file():
        return  # a pipe can be read only once
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--config {path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None


def _train(argv: list[str]) -> int:
    started = time.monotonic()
    config, own, checkpoint = _parse(argv)
    run_dir = Path(own["out"])
    device = choose_device(config.training.device)
    _check_folder(run_dir, own)
    source = None
    if checkpoint is not None:
        _check_same_run(checkpoint.config, config)
    elif config.training.init_from is not None:
        source = read_checkpoint(config.training.init_from)
        config = _taking_over(source, config)
    show = _Display(Console(), config)
    origin = checkpoint or source
    corpus = prepare_with_status(show.console, config, origin.tokenizer if origin else None)
    config = replace(config, model=replace(config.model, vocab_size=corpus.tokenizer.vocab_size))
    if not own["ignore_memory"]:
        require_room_for_step(config, device.type, resumes=own["resume"])
    trainer = Trainer(
        config,
        corpus,
        run_dir,
        show,
        device=device,
        started=started,
        checkpoint=checkpoint,
        weights=_weights_for(source, config) if source else None,
    )
    if trainer.is_done():
        raise UserError(
            f"the run in {run_dir} is complete after {trainer.step} steps; give a larger"
            " --max_steps or --max_minutes to go on"
        )
    prepare_folder(run_dir, config, overwrite=own["overwrite"])
    show.introduce(trainer, corpus, run_dir)
    if source is not None:
        show.say(
            f"begins with the weights of {source.path}, with a fresh optimiser and schedule\n"
            f"positions: {positions_in_words(source.config.model, config.model)}"
        )
    with _finish_step_on_interrupt(trainer, show), show:
        outcome = trainer.run()
    again = f"{called_as('train_lm.py', 'train')} --out {run_dir} --resume"
    if not outcome.finished:
        show.say(f"stopped after step {outcome.step}; to go on: {again}")
        return INTERRUPTED
    show.say(
        f"done: {outcome.result.bpb:.4f} bits per byte on validation ({outcome.result.protocol}).\n"
        f"To sample: {called_as('sample.py', 'sample')} --checkpoint {run_dir} --prompt TEXT"
    )
    return 0


# --- What is checked before anything is written -------------------------------------------------


def _check_folder(run_dir: Path, own: dict[str, Any]) -> None:
    check_is_no_checkpoint(run_dir)
    if own["resume"] and own["overwrite"]:
        raise UserError("--resume and --overwrite exclude each other: go on, or begin anew?")
    check_is_no_file(run_dir)
    if own["resume"] or own["overwrite"]:
        return
    if holds_run(run_dir):
        raise UserError(
            f"{run_dir} already holds a run; continue it with --resume, throw it away with"
            " --overwrite, or name another folder with --out"
        )


def _check_same_run(saved: RunConfig, config: RunConfig) -> None:
    before, now = saved.to_flat(), config.to_flat()
    changed = [
        f"{name} {now[name]} (it is {before[name]} there)"
        for name in before
        if before[name] != now[name] and name not in _FREE_ON_RESUME
    ]
    if changed:
        raise UserError(
            f"this run cannot be resumed with {', '.join(changed)}; leave that out, or start a new"
            " run in another --out"
        )


def _taking_over(source: Checkpoint, config: RunConfig) -> RunConfig:
    """``config`` for a run that begins with the weights of ``source``."""
    before, now = source.config.data.tokenizer, config.data.tokenizer
    if before != now:
        raise UserError(
            f"tokenizer is {now}, and '{source.path}' was trained on {before} tokens; leave"
            " --tokenizer as it was"
        )
    wanted = config.model
    if wanted.vocab_size == ModelConfig.vocab_size:  # the default: the tokenizer brings its own
        wanted = replace(wanted, vocab_size=source.config.model.vocab_size)
    try:
        model = transplanted(source.config.model, wanted)
    except UserError as error:
        raise UserError(
            f"--init_from {source.path}: {error} (without --preset, all settings are taken from the"
            " checkpoint)"
        ) from error
    return replace(config, model=model)


def _weights_for(source: Checkpoint, config: RunConfig) -> dict[str, Tensor]:
    return transplant_weights(source.weights, source.config.model, config.model)


@contextmanager
def _finish_step_on_interrupt(trainer: Trainer, show: "_Display"):
    """Let Ctrl-C end the run after the step it falls in; a second one ends it at once."""

    def request_stop(signum, frame):
        trainer.stop_requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        show.say("finishing the step and saving; press Ctrl-C again to stop at once")

    previous = signal.signal(signal.SIGINT, request_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


# --- What a person sees -------------------------------------------------------------------------


class _Display(Reporter):
    """Shows a run: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, config: RunConfig):
        self.console, self.config = console, config
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>5.1f}%"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.training = self.progress.add_task("training", total=1.0, figures="", visible=False)
        self.scoring = self.progress.add_task("scoring", total=1.0, figures="", visible=False)
        self._last_line = time.monotonic()

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *exception):
        self.progress.stop()

    def say(self, text: str) -> None:
        try:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        except BrokenPipeError:
            silence_stdout()  # nobody reads any more, which is no reason to stop training

    def introduce(self, trainer: Trainer, corpus: Corpus, run_dir: Path) -> None:
        """Say what is about to be trained, on what, and where it goes."""
        model, recipe, config = trainer.model, self.config.training, self.config.model
        limits = [f"{recipe.max_steps:,} steps"] if recipe.max_steps else []
        limits += [f"{recipe.max_minutes:g} minutes"] if recipe.max_minutes else []
        per_step = recipe.batch_size * recipe.accumulation * config.seq_len
        engine, reason = trainer.engine()
        self.say(
            f"model   {model.n_parameters():,} parameters, {config.n_layer} layers, width"
            f" {config.n_embd}, {config.n_head} heads, context {config.seq_len:,}\n"
            f"pattern {config.pattern} by engine {engine} ({reason})\n"
            f"data    {corpus.spec}: {corpus.n_bytes['train']:,} bytes to train on,"
            f" {corpus.n_bytes['valid']:,} to validate, as {corpus.tokenizer.kind} tokens\n"
            f"run     {' or '.join(limits)}, {per_step:,} tokens a step, on {trainer.device},"
            f" into {run_dir}"
        )
        if trainer.step:
            self.say(f"resumed after step {trainer.step}, from {trainer.last_checkpoint}")

    def on_step(self, step: int, progress: float, figures: dict[str, Any]) -> None:
        bpb, skipped = figures["train_bpb"], figures["skipped_steps"]
        text = f"step {step:,}  {figures['tokens_per_s']:,.0f} tokens/s"
        if bpb is not None:  # as it is where all steps since the last line were skipped
            # The loss as other tools print it, in nats, beside the bits that we compare models by.
            text = f"loss {bpb * log(2):.3f}  {bpb:.3f} bits/byte  {text}"
        if skipped:
            text += f"  {skipped:,} skipped"
        self.progress.update(self.training, completed=progress, figures=text, visible=True)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line > _SECONDS_BETWEEN_LINES:
            left = figures["elapsed_s"] * (1 / max(progress, 1e-9) - 1)
            self.say(f"{progress:6.1%}  {text}  about {left / 60:.1f} min left")
            self._last_line = now

    def on_evaluation_progress(self, done: int, total: int) -> None:
        self.progress.update(self.scoring, completed=done / total, visible=done < total)

    def on_evaluation(self, step: int, result: Score, sample: str) -> None:
        self.say(
            f"\nstep {step:,}: {result.bpb:.4f} bits per byte on validation ({result.protocol})"
        )
        if sample:
            self.say("".join(f"  | {line}\n" for line in _printable(sample).splitlines()))


def _printable(text: str) -> str:
    """Replace control characters, which an untrained model writes and a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


if __name__ == "__main__":
    sys.exit(main())
