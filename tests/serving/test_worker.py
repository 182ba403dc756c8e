"""The thread of the model: who waits, who is refused, who frees what, and how it ends."""

import asyncio
import threading
from collections import defaultdict
from contextlib import asynccontextmanager

import pytest
import torch

pytest.importorskip("prometheus_client")

from sparse_tx.config import SamplingConfig
from sparse_tx.data import ByteTokenizer
from sparse_tx.generation import TextRequest
from sparse_tx.serving import worker as worker_module
from sparse_tx.serving.jobs import ClientLeft, ScoresJob, TextsJob
from sparse_tx.serving.limits import Limits
from sparse_tx.serving.metrics import Metrics
from sparse_tx.serving.refused import Refused
from sparse_tx.serving.worker import Worker
from tests.serving.conftest import WAIT_S, make_model


def request(text=b"ab", length=5, seed=0, **other):
    return TextRequest(prompt=list(text), length=length, seed=seed, **other)


@asynccontextmanager
async def working(model, **limits):
    limits = Limits(**dict(max_concurrent=2, max_waiting=3) | limits)
    worker = Worker(model, ByteTokenizer(), limits, Metrics())
    worker.start()
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.stop)


async def whole(worker, *requests):
    """Submit a job; its texts as bytes and their finish reasons."""
    job = TextsJob(requests=requests)
    worker.submit(job)
    texts, reasons = defaultdict(bytes), {}
    while len(reasons) < len(requests):
        for event in await asyncio.wait_for(job.events(), WAIT_S):
            assert event.text not in reasons, "a piece after the last"
            texts[event.text] += event.piece.data
            if event.piece.finish_reason:
                reasons[event.text] = event.piece.finish_reason
    return [(texts[n], reasons[n]) for n in range(len(requests))]


async def until(true):
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.005)


class Gate:
    """Stops a worker before each turn until it is let on; without a limit from ``open`` on."""

    def __init__(self, worker):
        self.turn, self._let_on = worker._turn, threading.Semaphore(0)
        worker._turn = self
        self.is_open = False

    def __call__(self):
        if not self.is_open:
            assert self._let_on.acquire(timeout=WAIT_S)
        self.turn()

    def let_on(self, turns=1):
        self._let_on.release(turns)

    def open(self):
        self.is_open = True
        self.let_on()


REQUESTS = [
    request(length=9),
    request(b"", length=40),
    request(b"a text that is longer than the context, which holds 32 tokens", length=33, seed=3),
    request(b"x", length=12, settings=SamplingConfig(temperature=0)),
    request(b"x", length=30, settings=SamplingConfig(top_k=5, top_p=0.8)),
    request(b"xyx", length=30, settings=SamplingConfig(repetition_penalty=3.0)),
    request(
        b"xyx", length=30, settings=SamplingConfig(repetition_penalty=3.0, repetition_window=2)
    ),
    request(length=50, seed=5, stop=[bytes([n]) for n in range(0, 256, 8)]),
    request(length=20, seed=6, logprobs=3),
]


def test_texts_do_not_depend_on_what_else_is_made(model):
    async def run():
        async with working(model, max_concurrent=1) as worker:
            alone = [(await whole(worker, each))[0] for each in REQUESTS]
        async with working(model, max_concurrent=4, max_waiting=20) as worker:
            one_job = await whole(worker, *REQUESTS)
            jobs = [whole(worker, each) for each in (*REQUESTS, *REQUESTS[::-1])]
            several = await asyncio.gather(*jobs)
        assert one_job == alone
        assert [text for [text] in several] == alone + alone[::-1]
        assert [len(text) for text, _ in alone[:7]] == [each.length for each in REQUESTS[:7]]
        assert {reason for _, reason in alone} == {"length", "stop"}

    asyncio.run(run())


def test_texts_grow_at_the_same_pace(model):
    async def run():
        async with working(model, max_concurrent=3) as worker:
            gate = Gate(worker)
            jobs = [TextsJob(requests=[request(bytes([n]), 9)]) for n in range(3)]
            for job in jobs:
                worker.submit(job)
            gate.let_on(5)  # in each of the first three turns one of them begins
            await until(lambda: len(jobs[2]._events) == 3)
            assert [len(job._events) for job in jobs] == [5, 4, 3]
            gate.open()

    asyncio.run(run())


def test_samples_of_one_prompt_begin_together(model):
    async def run():
        async with working(model, max_concurrent=3) as worker:
            gate = Gate(worker)
            job = TextsJob(requests=[request(seed=n) for n in range(5)])
            worker.submit(job)
            gate.let_on(1)
            await until(lambda: job._events)
            assert sorted(event.text for event in job._events) == [0, 1, 2]
            gate.open()

    asyncio.run(run())


def test_what_is_too_much_is_refused_and_what_waited_is_made(model):
    async def run():
        async with working(model) as worker:
            gate = Gate(worker)
            first = asyncio.create_task(whole(worker, *[request(seed=n) for n in range(5)]))
            await asyncio.sleep(0)
            with pytest.raises(Refused, match="texts being made: 0 of at most 2, waiting: 5 of"):
                worker.submit(TextsJob(requests=[request()]))
            gate.let_on(1)
            await until(lambda: len(worker._growing) == 2)
            with pytest.raises(Refused) as caught:
                worker.submit(ScoresJob(tokens=[1]))
            assert caught.value.status == 429 and caught.value.code == "busy"
            gate.open()
            assert len(await first) == 5
            assert await whole(worker, request()) == (await first)[:1]

    asyncio.run(run())


def test_who_leaves_frees_slot_and_place(model):
    async def run():
        async with working(model, max_concurrent=1, max_waiting=1) as worker:
            endless = TextsJob(requests=[request(length=10**9)])
            waiting = TextsJob(requests=[request(length=10**9)])
            worker.submit(endless)
            worker.submit(waiting)
            await endless.events()
            waiting.cancel()
            endless.cancel()
            with pytest.raises(ClientLeft):
                await endless.events()
            assert await whole(worker, request())
            assert worker._slots.free == 1 and not worker._growing and not worker._waiting

    asyncio.run(run())


def test_a_long_text_to_score_stops_neither_texts_nor_other_scores(model):
    async def run():
        async with working(model) as worker:
            gate = Gate(worker)
            long = ScoresJob(tokens=[3] * 32 * 50)
            short = ScoresJob(tokens=[1, 2], top=4)
            text = TextsJob(requests=[request(length=8)])
            for job in (long, short, text):
                worker.submit(job)
            gate.let_on(4)
            await until(lambda: len(text._events) == 4)
            assert (len(short._events), len(long._events)) == (1, 3)
            [event] = await short.events()
            assert [len(each) for each in event.scores.top] == [4, 4]
            long.cancel()
            gate.open()
            await until(lambda: not worker._scorings)

    asyncio.run(run())


def test_drained_it_takes_nothing_and_ends_what_is_not_done(model):
    async def run():
        async with working(model) as worker:
            endless = TextsJob(requests=[request(length=10**9)])
            worker.submit(endless)
            await endless.events()
            assert worker.ready
            worker.drain(0)
            assert not worker.ready
            with pytest.raises(Refused, match="shutting down") as caught:
                while True:
                    await asyncio.wait_for(endless.events(), WAIT_S)
            assert caught.value.status == 503
            with pytest.raises(Refused, match="shutting down"):
                worker.submit(TextsJob(requests=[request()]))

    asyncio.run(run())


def test_stopped_it_ends_what_is_not_done(model):
    async def run():
        async with working(model, max_concurrent=1) as worker:
            jobs = [TextsJob(requests=[request(length=10**9)]), ScoresJob(tokens=[3] * 10**6)]
            jobs.append(TextsJob(requests=[request()]))
            for job in jobs:
                worker.submit(job)
            await jobs[0].events()
        for job in jobs:
            with pytest.raises(Refused, match="shutting down"):
                while True:
                    await asyncio.wait_for(job.events(), WAIT_S)

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_the_thread_is_told_to_all(model, monkeypatch):
    died = threading.Event()

    async def run():
        async with working(model) as worker:
            worker.on_death = died.set
            first = TextsJob(requests=[request(length=10**9)])
            worker.submit(first)
            await first.events()
            monkeypatch.setattr(worker_module, "draw_tokens", None)
            with pytest.raises(Refused, match="the model was lost by an error") as caught:
                while True:
                    await asyncio.wait_for(first.events(), WAIT_S)
            assert caught.value.status == 500
            await asyncio.to_thread(died.wait, WAIT_S)
            with pytest.raises(Refused, match="the model was lost by an error"):
                worker.submit(TextsJob(requests=[request()]))
            await until(lambda: not worker.ready)

    asyncio.run(run())
    assert died.is_set()


def test_broken_weights_are_told_and_the_thread_goes_on():
    model = make_model()

    async def run():
        async with working(model) as worker:
            before = await whole(worker, request())
            kept = model.final_norm.weight.data.clone()
            model.final_norm.weight.data.fill_(torch.nan)
            for job in (TextsJob(requests=[request()]), ScoresJob(tokens=[1])):
                worker.submit(job)
                with pytest.raises(Refused, match="weights are broken") as caught:
                    await asyncio.wait_for(job.events(), WAIT_S)
                assert caught.value.status == 500
            model.final_norm.weight.data.copy_(kept)
            assert await whole(worker, request()) == before
            assert worker._slots.free == 2

    asyncio.run(run())
