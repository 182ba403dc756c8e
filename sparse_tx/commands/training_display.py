"""What a person sees of a training run: a live bar on a terminal, a line now and then elsewhere."""

import time
from math import log
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sparse_tx.commands.console import PlainConsole
from sparse_tx.config import RunConfig
from sparse_tx.data import Corpus, shape_in_words
from sparse_tx.evaluation import Score
from sparse_tx.training import Reporter, Trainer

# Without a terminal, a line of progress is printed this often.
_SECONDS_BETWEEN_LINES = 15


def bits_in_words(config: RunConfig) -> str:
    """What the loss is counted in: of images a byte is a dimension, as papers call it."""
    return "bits per dimension (per byte)" if config.data.image_shape else "bits per byte"


class TrainingDisplay(Reporter):
    """Shows a run on ``console``."""

    def __init__(self, console: PlainConsole, config: RunConfig):
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
        """Print a text; that nobody reads any more is no reason to stop training."""
        self.console.say(text)

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
            f"data    {corpus.spec}: {_amounts(corpus)}, as {corpus.tokenizer.kind} tokens\n"
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
            unit = "bits/dim" if self.config.data.image_shape else "bits/byte"
            text = f"loss {bpb * log(2):.3f}  {bpb:.3f} {unit}  {text}"
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
            f"\nstep {step:,}: {result.bpb:.4f} {bits_in_words(self.config)} on validation"
            f" ({result.protocol})"
        )
        if sample:
            self.say("".join(f"  | {line}\n" for line in _printable(sample).splitlines()))


def _amounts(corpus: Corpus) -> str:
    """How much there is to train on and to validate with."""
    if corpus.image_shape is None:
        train, valid = f"{corpus.n_bytes['train']:,} bytes", f"{corpus.n_bytes['valid']:,}"
    else:
        train = f"{corpus.n_images('train'):,} images of {shape_in_words(corpus.image_shape)}"
        valid = f"{corpus.n_images('valid'):,}"
    return f"{train} to train on, {valid} to validate"


def _printable(text: str) -> str:
    """Replace control characters, which an untrained model writes and a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
