"""The train command: from a corpus to a run directory."""

import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sparse_tx.checkpoint import (
    Checkpoint,
    positions_in_words,
    read_checkpoint,
    transplant_weights,
    transplanted,
)
from sparse_tx.commands.console import PlainConsole
from sparse_tx.commands.preparing import prepare_with_status
from sparse_tx.commands.run_folder import (
    check_is_no_checkpoint,
    check_is_no_file,
    check_is_nobody_elses,
    held,
    holds_run,
    prepare_folder,
)
from sparse_tx.commands.run_settings import read_settings
from sparse_tx.commands.shell import INTERRUPTED, called_as, choose_device, run_command
from sparse_tx.commands.training_display import TrainingDisplay, bits_in_words
from sparse_tx.config import ModelConfig, RunConfig
from sparse_tx.data import Corpus
from sparse_tx.errors import UserError
from sparse_tx.profiler.step_room import require_room_for_step
from sparse_tx.training import Trainer

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


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 2 after a mistake in what was given, 130 after Ctrl-C."""
    return run_command(_train, argv)


def _train(argv: list[str]) -> int:
    started = time.monotonic()
    config, own, checkpoint = read_settings(argv)
    run_dir = Path(own["out"])
    device = choose_device(config.training.device)
    _check_folder(run_dir, own)
    source = None
    if checkpoint is not None:
        _check_same_run(checkpoint.config, config)
    elif config.training.init_from is not None:
        source = read_checkpoint(config.training.init_from)
        config = _taking_over(source, config)
    console, origin = PlainConsole(), checkpoint or source
    corpus = prepare_with_status(console, config, origin.tokenizer if origin else None)
    config = _with_what_data_decides(config, corpus)
    show = TrainingDisplay(console, config)
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
    if trainer.is_done() and checkpoint is None:
        raise UserError(
            f"--max_minutes {config.training.max_minutes:g} were over before the first step, as"
            f" preparing took {time.monotonic() - started:,.0f} s; run it again, now that it is"
            " prepared, or give more"
        )
    if trainer.is_done():
        raise UserError(
            f"the run in {run_dir} is complete after {trainer.step} steps; give a larger"
            " --max_steps or --max_minutes to go on"
        )
    with held(run_dir):
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
        f"done: {outcome.result.bpb:.4f} {bits_in_words(config)} on validation"
        f" ({outcome.result.protocol}).\n"
        f"To sample: {called_as('sample.py', 'sample')} --checkpoint {run_dir}"
        + (" --num_samples 25 --out samples.png" if corpus.image_shape else " --prompt TEXT")
    )
    return 0


# --- What is checked before anything is written -------------------------------------------------


def _check_folder(run_dir: Path, own: dict[str, Any]) -> None:
    if not own["out"].strip():
        raise UserError("--out is empty; name a folder")
    check_is_no_checkpoint(run_dir)
    if own["resume"] and own["overwrite"]:
        raise UserError("--resume and --overwrite exclude each other: go on, or begin anew?")
    check_is_no_file(run_dir)
    if not own["resume"]:
        check_is_nobody_elses(run_dir)
    if not own["resume"] and not own["overwrite"] and holds_run(run_dir):
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


def _with_what_data_decides(config: RunConfig, corpus: Corpus) -> RunConfig:
    return replace(
        config,
        model=replace(config.model, vocab_size=corpus.tokenizer.vocab_size),
        data=replace(config.data, image_shape=corpus.image_shape or ()),
    )


@contextmanager
def _finish_step_on_interrupt(trainer: Trainer, show: TrainingDisplay):
    """Let Ctrl-C or SIGTERM end the run after the step it falls in; a second one does at once."""

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    at_once = previous | {signal.SIGINT: signal.default_int_handler}

    def request_stop(signum, frame):
        trainer.stop_requested = True
        signal.signal(signum, at_once[signum])
        show.say("finishing the step and saving; press Ctrl-C again to stop at once")

    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
