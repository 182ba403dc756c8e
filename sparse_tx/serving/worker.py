"""The one thread that has the model.

It works in turns. In each, at most one prompt is read and one window of a text is scored, and every
text that is being made grows by one token: so all of them go on at the same pace, however many have
just come. While a prompt is read, the others wait: that is one pass over it, and so is what a text
costs that has outgrown the model's context.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic

import torch
from torch import Tensor

from sparse_tx.config import SamplingConfig
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import (
    SeenTokens,
    TextMaker,
    TextRequest,
    draw,
    next_token_probabilities,
    text_tokens,
)
from sparse_tx.generation.samplers import NOT_FINITE
from sparse_tx.model import GPT
from sparse_tx.serving.jobs import (
    Event,
    Job,
    MadePiece,
    MadeScores,
    ScoresJob,
    TextsJob,
    send,
)
from sparse_tx.serving.limits import Limits
from sparse_tx.serving.metrics import Metrics
from sparse_tx.serving.refused import Refused
from sparse_tx.serving.slots import Slots
from sparse_tx.serving.surprise import Window, score_window, windows


class _Text:
    """One text of a job, waiting or being made."""

    def __init__(self, job: TextsJob, number: int, tokenizer: Tokenizer):
        self.job, self.number = job, number
        self.request: TextRequest = job.requests[number]
        self.maker = TextMaker(self.request, tokenizer)
        self.generator = torch.Generator().manual_seed(self.request.seed)
        self.slot: int | None = None
        self.latest: int | None = None
        self.seen: SeenTokens | None = None
        if self.request.settings.repetition_penalty != 1:
            window = self.request.settings.repetition_window
            self.seen = SeenTokens([self.request.prompt], [window], len(tokenizer.token_bytes))


class _Scoring:
    """A text of a job that is being scored, and the windows that are left of it."""

    def __init__(self, job: ScoresJob, seq_len: int):
        self.job = job
        self.windows: Iterator[Window] = windows(len(job.tokens), seq_len)
        self.next = next(self.windows, None)


class Worker:
    """Takes jobs from the event loop's thread, and does them in its own.

    Args:
        model: in eval mode; from ``start`` on nobody else may use it.
        tokenizer: the model's.
        limits: what is refused.
        metrics: where what happens is counted.
        on_death: called from the thread, if it ends on an exception.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        limits: Limits,
        metrics: Metrics,
        on_death: Callable[[], None] = lambda: None,
    ):
        self._model, self._tokenizer, self._limits = model, tokenizer, limits
        self._metrics, self.on_death = metrics, on_death
        self._slots = Slots(model, slots=limits.max_concurrent, room=limits.room)
        self._changed = threading.Condition()  # of what other threads see, from here
        self._waiting: deque[_Text] = deque()
        self._scorings: deque[_Scoring] = deque()
        self._growing: list[_Text] = []
        self._stopping = self._dead = False
        self._deadline: float | None = None  # to here
        self._found: dict[Job, list[Event]] = {}
        self._thread = threading.Thread(target=self._live, name="sparse_tx model", daemon=True)

    @property
    def decoder(self) -> str:
        """Who computes a token, in words."""
        reason = self._slots.why_not_native
        return "the native kernel" if reason is None else f"torch ({reason})"

    @property
    def ready(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and self._deadline is None and not self._stopping

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End all jobs, and the thread after its current turn; waits for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def drain(self, seconds: float) -> None:
        """Take no more jobs, and end those that are not done in so many seconds.

        May be called where a signal is handled: it takes no lock.
        """
        self._deadline = monotonic() + seconds

    def submit(self, job: TextsJob | ScoresJob) -> None:
        """Take a job: it hears from the thread until its last text has ended.

        Raises:
            Refused: too many wait, or the worker does not take any more.
        """
        if isinstance(job, TextsJob):
            texts = [_Text(job, number, self._tokenizer) for number in range(len(job.requests))]
            scorings = []
        else:
            texts, scorings = [], [_Scoring(job, self._model.config.seq_len)]
        with self._changed:
            if self._dead:
                raise Refused(500, _DEATH, code="model_lost")
            if self._deadline is not None or self._stopping:
                raise Refused(503, _SHUTTING_DOWN, code="shutting_down")
            self._forget_cancelled()
            wait = len(self._waiting) + len(self._scorings)
            # Texts for which there is a slot wait for the next turn only, and do not count.
            places = self._limits.max_waiting + max(0, self._limits.max_concurrent - self._made())
            if wait + len(texts) + len(scorings) > places:
                raise Refused(
                    429,
                    f"the server is busy: texts being made: {self._made()} of at most"
                    f" {self._limits.max_concurrent}, waiting: {wait} of at most"
                    f" {self._limits.max_waiting}; try again later",
                    code="busy",
                )
            self._waiting.extend(texts)
            self._scorings.extend(scorings)
            self._changed.notify()

    def _made(self) -> int:
        return len(self._growing)

    def _forget_cancelled(self) -> None:
        """Those that wait give their places free; the lock is held."""
        self._waiting = deque(text for text in self._waiting if not text.job.cancelled)
        self._scorings = deque(each for each in self._scorings if not each.job.cancelled)

    # --- In the thread ---------------------------------------------------------------------------

    def _live(self) -> None:
        refusal = Refused(500, _DEATH, code="model_lost")
        try:
            with torch.inference_mode():
                while self._has_work():
                    self._turn()
            refusal = Refused(503, _SHUTTING_DOWN, code="shutting_down")
        finally:
            with self._changed:
                self._dead = refusal.status == 500
            self._end_all(refusal)
            if self._dead:
                self.on_death()

    def _has_work(self) -> bool:
        """Wait for it; False once there shall be no more."""
        with self._changed:
            while not (self._stopping or self._growing or self._waiting or self._scorings):
                self._changed.wait()
            return not self._stopping

    def _turn(self) -> None:
        began = monotonic()
        if self._deadline is not None and began >= self._deadline:
            self._end_all(Refused(503, _SHUTTING_DOWN, code="shutting_down"))
            return
        self._drop_cancelled()
        self._score()
        going_on = list(self._growing)
        new, logits = self._join()
        if going_on:
            steps = self._slots.append({text.slot: text.latest for text in going_on})
            logits = torch.cat([steps, *logits])
        elif new:
            logits = torch.cat(logits)
        if going_on or new:
            self._grow([*going_on, *new], logits)
        self._metrics.turn(monotonic() - began, self._made(), len(self._waiting))
        self._send()

    def _drop_cancelled(self) -> None:
        """Those whose client has left free their slots."""
        for text in [text for text in self._growing if text.job.cancelled]:
            self._drop(text)
        with self._changed:
            self._forget_cancelled()

    def _drop(self, text: _Text) -> None:
        self._slots.leave(text.slot)
        self._growing.remove(text)

    def _score(self) -> None:
        """Score one window of the text that has waited longest."""
        with self._changed:
            scoring = self._scorings[0] if self._scorings else None
        if scoring is None:
            return
        job, last = scoring.job, True
        try:
            scores = score_window(self._model, job.tokens, scoring.next, job.top)
            self._tell(job, MadeScores(scores))
            self._metrics.scored_tokens.inc(len(scores.logprobs))
            scoring.next = next(scoring.windows, None)
            last = scoring.next is None
        except UserError as error:
            self._tell(job, Refused(500, str(error)))
        with self._changed:
            # The next one comes first in the next turn, so that a long text does not stop it.
            if scoring in self._scorings:
                self._scorings.remove(scoring)
                self._scorings.extend([] if last else [scoring])

    def _join(self) -> tuple[list[_Text], list[Tensor]]:
        """Read the next prompt, for all at the head of the queue that begin with it.

        Returns:
            These texts, and for each the ``(1, V)`` logits after it.
        """
        with self._changed:
            new: list[_Text] = []
            while self._waiting and len(new) < self._slots.free:
                if new and not torch.equal(self._waiting[0].request.prompt, new[0].request.prompt):
                    break
                new.append(self._waiting.popleft())
            self._growing += new
        if not new:
            return [], []
        prompt = new[0].request.prompt.tolist()
        slots, logits = self._slots.join(prompt, len(new))
        self._metrics.prompt_tokens.inc(len(prompt))
        for text, slot in zip(new, slots, strict=True):
            text.slot = slot
        return new, [logits[None]] * len(new)

    def _grow(self, texts: list[_Text], logits: Tensor) -> None:
        """Append a token to each text, by its ``(N, V)`` logits, and tell of it."""
        finite = logits.isfinite().all(-1).tolist()
        for text, is_finite in zip(texts, finite, strict=True):
            if not is_finite:
                self._tell(text.job, Refused(500, NOT_FINITE))
                self._drop(text)
        rows = [row for row, is_finite in enumerate(finite) if is_finite]
        if not rows:
            return
        texts, logits = [texts[row] for row in rows], logits[rows]
        tokens = draw_tokens(texts, logits).tolist()
        made = text_tokens(tokens, logits, [text.request.logprobs for text in texts])
        self._metrics.generated_tokens.inc(len(tokens))
        for text, token in zip(texts, made, strict=True):
            text.latest = token.id
            piece = text.maker.add(token)
            self._tell(text.job, MadePiece(text.number, piece))
            if piece.finish_reason is not None:
                self._drop(text)

    def _end_all(self, refusal: Refused) -> None:
        with self._changed:
            for text in [*self._growing, *self._waiting]:
                self._found.setdefault(text.job, []).append(refusal)
            for scoring in self._scorings:
                self._found.setdefault(scoring.job, []).append(refusal)
            self._waiting.clear()
            self._scorings.clear()
            for text in self._growing:
                if text.slot is not None:
                    self._slots.leave(text.slot)
            self._growing.clear()
        self._send()

    def _tell(self, job: Job, event: Event) -> None:
        self._found.setdefault(job, []).append(event)

    def _send(self) -> None:
        found, self._found = self._found, {}
        send(found)


_SHUTTING_DOWN = "the server is shutting down; ask again when it is back"
_DEATH = "the model was lost by an error inside the server; see what it wrote, and start it anew"


def draw_tokens(texts: list[_Text], logits: Tensor) -> Tensor:
    """Draw a token for each text by its own settings and random numbers: ``(N,)`` int64, CPU.

    Texts of equal settings are filtered together; each keeps account of its own tokens.
    """
    found = torch.empty(len(texts), dtype=torch.long)
    rows_of: dict[SamplingConfig, list[int]] = {}
    for row, text in enumerate(texts):
        rows_of.setdefault(text.request.settings, []).append(row)
    for settings, rows in rows_of.items():
        seen = None
        if settings.repetition_penalty != 1:
            seen = torch.cat([texts[row].seen.mask() for row in rows])
        probabilities = next_token_probabilities(logits[rows], settings, seen)
        found[rows] = draw(probabilities, [texts[row].generator for row in rows])
    for text, token in zip(texts, found, strict=True):
        if text.seen is not None:
            text.seen.add(token[None])
    return found
