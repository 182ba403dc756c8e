"""What the event loop asks of the worker's thread, and how it hears of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from sparse_tx.generation import TextPiece, TextRequest
from sparse_tx.serving.refused import Refused
from sparse_tx.serving.surprise import Scores


@dataclass(frozen=True)
class MadePiece:
    """A text of a job has grown by a token."""

    text: int
    piece: TextPiece


@dataclass(frozen=True)
class MadeScores:
    """The next tokens of a job's text are scored."""

    scores: Scores


Event = MadePiece | MadeScores | Refused


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Job:
    """One request's work, as the event loop sees it. Made and waited for in the loop's thread.

    Attributes:
        cancelled: set in the loop's thread; the worker then drops the job at its next step.
    """

    cancelled: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _events: list[Event] = field(default_factory=list, init=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def events(self) -> list[Event]:
        """Wait until there are any, and take all that there are.

        Raises:
            ClientLeft: the job was cancelled.
            Refused: the worker could not do it, or not to its end.
        """
        await self._news.wait()
        self._news.clear()
        events, self._events = self._events, []
        if self.cancelled:
            raise ClientLeft
        for event in events:
            if isinstance(event, Refused):
                raise event
        return events

    def cancel(self) -> None:
        """Nobody waits for the job any more, which may be over."""
        self.cancelled = True
        self._news.set()

    def tell(self, events: Sequence[Event]) -> None:
        """Add events, in the loop's thread."""
        self._events += events
        self._news.set()


@dataclass(eq=False)
class TextsJob(Job):
    """Texts to be made."""

    requests: Sequence[TextRequest] = ()


@dataclass(eq=False)
class ScoresJob(Job):
    """A text to be scored.

    Attributes:
        tokens: of the text; there is one at least.
        top: how many of the most probable tokens to give in the place of each.
    """

    tokens: Sequence[int] = ()
    top: int = 0


def send(found: dict[Job, list[Event]]) -> None:
    """Tell jobs of events, from another thread: one call for each loop wakes all of its jobs."""
    by_loop = groupby(sorted(found, key=lambda job: id(job.loop)), key=lambda job: job.loop)
    for loop, jobs in by_loop:
        told = [(job, found[job]) for job in jobs]
        try:
            loop.call_soon_threadsafe(_tell, told)
        except RuntimeError:  # the loop is closed, and nobody is left to hear
            continue


def _tell(told: list[tuple[Job, list[Event]]]) -> None:
    for job, events in told:
        job.tell(events)
