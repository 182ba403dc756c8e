"""The training loop: steps, evaluations, checkpoints, and an exact way back into all of them."""

import contextlib
import time
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_tx.checkpoint import Checkpoint, save_checkpoint
from sparse_tx.config import RunConfig, SamplingConfig
from sparse_tx.data import Corpus, StagedLoader
from sparse_tx.errors import UserError
from sparse_tx.evaluation import NotFinite, Score, score
from sparse_tx.generation import generate
from sparse_tx.model import GPT
from sparse_tx.model.precision import autocast
from sparse_tx.training.averaging import WeightAverage
from sparse_tx.training.bad_steps import BadSteps
from sparse_tx.training.clock import Clock
from sparse_tx.training.loss_scale import LossScale
from sparse_tx.training.metrics import MetricsLog, peak_memory_bytes
from sparse_tx.training.optimiser import clip_gradients, make_optimisers
from sparse_tx.training.reporter import Outcome, Reporter
from sparse_tx.training.schedule import share_of_peak
from sparse_tx.training.tally import Tally

# Of the samples that show a run's progress: a little below 1, for young models ramble.
_SAMPLING = SamplingConfig(temperature=0.8)


class Trainer:
    """One run; resumed from any of its checkpoints, it takes the same steps to the bit.

    A run that ends by ``max_steps`` repeats exactly. One that ends by ``max_minutes`` alone lets
    its learning rate follow the clock, which no two runs share.

    Args:
        config: the resolved configuration; its vocabulary is the tokenizer's.
        corpus: the tokens.
        run_dir: where metrics and checkpoints go.
        reporter: who shows the progress.
        device: where the model lives.
        started: ``time.monotonic()`` at the start of the command, for ``max_minutes``.
        checkpoint: continue from this one, read with its training state.
        weights: begin a new run with these, under the names of the model's ``state_dict``.

    Raises:
        UserError: the windows are longer than the corpus; a state that belongs to other data.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        run_dir: Path,
        reporter: Reporter,
        *,
        device: torch.device,
        started: float,
        checkpoint: Checkpoint | None = None,
        weights: dict[str, Tensor] | None = None,
    ):
        self.config, self.corpus, self.run_dir, self.reporter = config, corpus, run_dir, reporter
        self.device, self.recipe = device, config.training
        self.stop_requested = False
        torch.manual_seed(self.recipe.seed)
        self.model = GPT(config.model)
        if weights is not None:
            self.model.load_state_dict(weights)
        self.model.to(device)
        self.engine()  # one that cannot run is an error here, not in the first step
        self.optimisers = make_optimisers(self.model, self.recipe)
        self.average = WeightAverage(self.model, self.recipe.ema) if self.recipe.ema else None
        self.loader = StagedLoader(
            corpus.train,
            seq_len=config.model.seq_len,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            start_token=self.model.start_token,
            stages=self.recipe.stages,
        )
        self._byte_lengths = torch.from_numpy(corpus.tokenizer.token_bytes)
        self.step = self.tokens = 0
        self.bad_steps = BadSteps(self.recipe)
        self.loss_scale = LossScale(self.recipe.precision, device)
        self._tally = Tally()
        self.clock = Clock(self.recipe, len(corpus.valid), started)
        self.lr = self.matrix_lr = 0.0
        if checkpoint is not None:
            self._restore(checkpoint)
        self._last_log = (time.monotonic(), self.tokens)
        self.last_checkpoint = checkpoint.path if checkpoint else None

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, those before it was resumed included."""
        return self.clock.elapsed

    @property
    def progress(self) -> float:
        """The share of the run that is done: by steps if they are limited, else by time."""
        if self.recipe.max_steps is not None:
            return self.step / self.recipe.max_steps
        return self.clock.progress(self.tokens)

    def is_done(self) -> bool:
        """Whether the run has reached its end."""
        by_steps = self.recipe.max_steps is not None and self.step >= self.recipe.max_steps
        return by_steps or self.clock.is_over(self.tokens)

    def run(self) -> Outcome:
        """Train until the end of the run, or until ``stop_requested``.

        Raises:
            UserError: too many bad steps in a row; the loss of an evaluation is not finite; a
                checkpoint could not be written.
        """
        metrics = MetricsLog(self.run_dir, from_step=self.step)
        try:
            result = None
            if self.step == 0:
                self._save(valid_bpb=None)  # so that a run can be resumed whenever it was killed
            while not self.is_done() and not self.stop_requested:
                self.take_step()
                if self.is_done():
                    break
                if self.step % self.recipe.eval_every == 0 and self.clock.has_time_to_evaluate(
                    self.tokens
                ):
                    self._evaluate_and_save(metrics)
                    continue
                self._show_and_log(metrics)
                if self.step % self.recipe.save_every == 0:
                    self._save_if_sound(valid_bpb=None)
            finished = self.is_done()
            if finished:
                result = self._evaluate_and_save(metrics, last=True)
            else:  # among bad steps, besides what is there: see `_save_if_sound`
                self._save(valid_bpb=None, besides=bool(self.bad_steps.in_a_row))
            return Outcome(self.step, finished, result, self.last_checkpoint)
        finally:
            metrics.close()

    # --- One step ---------------------------------------------------------------------------

    def take_step(self) -> float:
        """Take one optimiser step, or skip it; returns its training loss in bits per byte.

        A skipped step leaves weights, optimisers and average as they are. Its data is gone and its
        number taken, so that data and schedule of the steps to come depend on their number alone.

        Raises:
            UserError: with this step, too many in a row were bad.
        """
        begin = time.monotonic()
        progress = self.progress
        share = share_of_peak(self.recipe, self.step, progress)
        self.lr, self.matrix_lr = self.recipe.lr * share, self.recipe.matrix_lr * share
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * share
        self.model.train()
        nats, n_bytes, n_tokens = 0.0, 0, 0
        for _ in range(self.recipe.accumulation):
            inputs, targets = self.loader.next_batch(progress)  # (B, T) each
            n_bytes += int(self._byte_lengths[targets].sum())
            n_tokens += targets.numel()
            with self._autocast():
                total = self.model.loss(
                    inputs.to(self.device, non_blocking=True),
                    targets.to(self.device, non_blocking=True),
                )
            loss = total / (targets.numel() * self.recipe.accumulation)
            self.loss_scale.scaled(loss).backward()
            nats += total.item()
        bpb = nats / log(2) / n_bytes
        self.step += 1
        self.tokens += n_tokens
        fault = self.bad_steps.fault_of_loss(bpb)
        if fault:
            self.bad_steps.skip()
        else:
            norm, fault = self._update_weights()
        if fault is None:
            self.bad_steps.take(bpb)
            self._tally.add(nats, n_bytes, norm)
        self.model.zero_grad(set_to_none=True)
        if fault and self.bad_steps.too_many:
            raise UserError(
                f"step {self.step}: training stopped, as {self.bad_steps.in_a_row} bad steps came"
                f" in a row (max_bad_steps), each of which was skipped; of the last one, {fault};"
                f" {self._way_out()}"
            )
        self.clock.step_seconds = time.monotonic() - begin
        return bpb

    def _update_weights(self) -> tuple[float, str | None]:
        """Apply the gradients; returns their norm and, if they were not applied, why."""
        self.loss_scale.unscale(self.optimisers)
        norm = clip_gradients(self.model, self.recipe.clip)
        fault = self.bad_steps.fault_of_gradient(norm)
        if fault:
            # All optimisers or none: an overflow may be in the gradients of one of them alone.
            self.bad_steps.skip(bad=not self.loss_scale.lower())
            return norm, fault
        for optimiser in self.optimisers:
            optimiser.step()
        self.loss_scale.keep_pace()
        if self.average:
            self.average.update(self.model)
        return norm, None

    def _way_out(self) -> str:
        """What to do about a run that goes astray."""
        rates = f"--lr (it is {self.recipe.lr:g})"
        if self.recipe.optimiser == "muon":
            rates += f" and --matrix_lr (it is {self.recipe.matrix_lr:g})"
        if self.model.lookups is not None:
            rates += f" and --table_lr (it is {self.recipe.table_lr:g})"
        where = self.last_checkpoint or "none was written yet"
        return f"resume with a lower {rates} from the last good checkpoint ({where})"

    def engine(self) -> tuple[str, str]:
        """The attention engine of a step, and why it was chosen."""
        with self._autocast():
            return self.model.engine()

    def _autocast(self):
        return autocast(self.recipe.precision, self.device)

    # --- Looking at the model -----------------------------------------------------------------

    def _averaged(self):
        return self.average.in_place_of(self.model) if self.average else contextlib.nullcontext()

    def evaluate(
        self,
        max_bytes: int | None,
        *,
        begun: Score | None = None,
        deadline: float = float("inf"),
    ) -> Score:
        """Score the first ``max_bytes`` of the validation split (all if None).

        Args:
            max_bytes: how many bytes.
            begun: what the same weights scored of them just now, which is not computed again.
            deadline: when ``time.monotonic()`` is past it, the batch being scored is the last.

        Raises:
            UserError: the loss is not finite.
        """
        begin, before = time.monotonic(), begun.whole_batches[0] if begun else 0
        try:
            with self._averaged(), self._autocast():
                result = score(
                    self.model,
                    self.corpus.valid,
                    self.corpus.tokenizer.token_bytes,
                    max_bytes=max_bytes,
                    begun=begun,
                    is_time_up=lambda: time.monotonic() >= deadline,
                    on_progress=self.reporter.on_evaluation_progress,
                )
        except NotFinite as error:
            raise UserError(
                f"step {self.step}: the loss of the validation text is not finite, so training"
                f" stopped without saving the weights of this step; {self._way_out()}"
            ) from error
        if result.tokens > before:
            self.clock.evaluation_speed = (result.tokens - before) / (time.monotonic() - begin)
        return result

    def sample(self) -> str:
        """Text that the model writes from nothing; the same at every call on the same weights."""
        if self.recipe.sample_length == 0:
            return ""
        begin = time.monotonic()
        length = min(self.recipe.sample_length, self.config.model.seq_len)
        with self._averaged(), self._autocast():
            tokens = generate(
                self.model, [], length=length, settings=_SAMPLING, seed=self.recipe.seed
            )
            ids = [int(token) for token in tokens]
        self.clock.sample_seconds = time.monotonic() - begin
        return self.corpus.tokenizer.decode(ids).decode("utf-8", errors="replace")

    def _evaluate_and_save(self, metrics: MetricsLog, last: bool = False) -> Score:
        figures = self._figures()
        deadline = self.clock.scoring_deadline() if last else float("inf")
        result = self.evaluate(self.recipe.eval_bytes, deadline=deadline)
        # Always of the same bytes, for checkpoints to be compared by.
        figures["valid_bpb"] = valid_bpb = result.bpb if result.complete else None
        if last and result.complete and self.recipe.final_eval_bytes != self.recipe.eval_bytes:
            result = self.evaluate(self.recipe.final_eval_bytes, begun=result, deadline=deadline)
        if last:
            figures |= {"final_valid_bpb": result.bpb, "final_valid_bytes": result.bytes}
        sample = self.sample()
        self._write(metrics, figures)
        metrics.write_sample(self.step, sample)
        if last:
            self._save(valid_bpb)
        else:
            self._save_if_sound(valid_bpb)
        self.reporter.on_evaluation(self.step, result, sample)
        return result

    def _show_and_log(self, metrics: MetricsLog) -> None:
        figures = self._figures()
        self.reporter.on_step(self.step, min(1.0, self.progress), figures)
        if self.step % self.recipe.log_every == 0:
            self._write(metrics, figures)

    def _figures(self) -> dict[str, Any]:
        """What is known about the steps since the last line of the log, and about the last one."""
        tally = self._tally.figures()
        seconds = time.monotonic() - self._last_log[0]
        figures = {
            "step": self.step,
            "tokens": self.tokens,
            "elapsed_s": round(self.elapsed, 3),
            "train_bpb": tally["train_bpb"],
            "valid_bpb": None,
            "lr": self.lr,
            "tokens_per_s": (self.tokens - self._last_log[1]) / max(seconds, 1e-9),
            "peak_rss_bytes": peak_memory_bytes(self.device),
            "grad_norm": tally["grad_norm"],
            "skipped_steps": self.bad_steps.skipped,
        }
        if self.recipe.optimiser == "muon":
            figures["matrix_lr"] = self.matrix_lr
        if self.loss_scale.value is not None:
            figures["loss_scale"] = self.loss_scale.value
        return figures

    def _write(self, metrics: MetricsLog, figures: dict[str, Any]) -> None:
        metrics.write(figures)
        self._tally = Tally()
        self._last_log = (time.monotonic(), self.tokens)

    # --- Checkpoints ----------------------------------------------------------------------------

    def _save(self, valid_bpb: float | None, *, besides: bool = False) -> None:
        begin = time.monotonic()
        self.last_checkpoint = save_checkpoint(
            self.run_dir,
            step=self.step,
            model_state=self.model.state_dict(),
            ema_state=self.average.state_dict() if self.average else None,
            config=self.config,
            tokenizer=self.corpus.tokenizer,
            training_state=self._state(),
            keep_last=self.recipe.keep_last + besides,
            valid_bpb=valid_bpb,
        )
        self.clock.save_seconds = time.monotonic() - begin
        self.reporter.on_checkpoint(self.step, self.last_checkpoint)

    def _save_if_sound(self, valid_bpb: float | None) -> None:
        """Save unless the last step was bad.

        Weights that only bad steps follow may be broken, and each that is saved makes an older one
        go.
        """
        if not self.bad_steps.in_a_row:
            self._save(valid_bpb)

    def _state(self) -> dict[str, Any]:
        return {
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average_steps": self.average.steps if self.average else 0,
            "loader": self.loader.state_dict(),
            "corpus": self.corpus.fingerprint,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "engine": list(self.engine()),
            "step": self.step,
            "tokens": self.tokens,
            **self._tally.state_dict(),
            "bad_steps": self.bad_steps.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            **self.clock.state_dict(),
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.training_state
        if not state:
            raise UserError(
                f"{checkpoint.path} holds weights and no state of a run to go on with; begin a new"
                f" run in another --out with --init_from {checkpoint.path}"
            )
        if state["corpus"] != self.corpus.fingerprint:
            raise UserError(
                f"the data '{self.config.data.data}' is not what {checkpoint.path} was trained on;"
                " give back the data as it was, or start a new run in another --out"
            )
        self.model.load_state_dict(checkpoint.model_state)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            peaks = [group["peak_lr"] for group in optimiser.param_groups]
            optimiser.load_state_dict(saved)
            # A resumed run may be given another learning rate.
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["peak_lr"] = peak
        if self.average:
            self.average.load(checkpoint.ema_state, state["average_steps"])
        self.loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])
        self.step, self.tokens = state["step"], state["tokens"]
        self._tally = Tally(state["nats"], state["bytes"], state.get("grad_norm", 0.0))
        if "bad_steps" in state:  # checkpoints of earlier versions have none
            self.bad_steps.load_state_dict(state["bad_steps"])
            self.loss_scale.load_state_dict(state["loss_scale"])
        self.clock.load_state_dict(state)
