"""The routes: what comes in over HTTP, and what goes out."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sparse_tx.config import ModelConfig
from sparse_tx.data import Tokenizer
from sparse_tx.serving.bodies import CompletionBody, SurpriseBody, encode_text, parse_body, shown
from sparse_tx.serving.choices import Choice, usage
from sparse_tx.serving.completions import MOST_LOGPROBS, Plan, check_length, plan_completion
from sparse_tx.serving.events import EventStream, Presence, read_body
from sparse_tx.serving.jobs import ClientLeft, MadeScores, ScoresJob, TextsJob
from sparse_tx.serving.limits import Limits
from sparse_tx.serving.measured import Measured
from sparse_tx.serving.metrics import CONTENT_TYPE, Metrics
from sparse_tx.serving.refused import Refused
from sparse_tx.serving.surprise import Scores, surprise_json, tokens_read
from sparse_tx.serving.worker import Worker

# What web servers log for it; nobody is there to read it.
_CLIENT_LEFT = 499
# Nothing on the page is from elsewhere, and nothing of it goes elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/surprise.js": ("surprise.js", "text/javascript"),
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server has to give.

    Attributes:
        name: of the model, for clients.
        fingerprint: a text that changes with the weights.
        step: optimiser steps that the weights have taken.
        parameters: how many the model has.
        config: of the model.
        tokenizer: the model's.
        limits: what is refused.
    """

    name: str
    fingerprint: str
    step: int
    parameters: int
    config: ModelConfig
    tokenizer: Tokenizer
    limits: Limits


def make_app(served: Served, worker: Worker, metrics: Metrics) -> Starlette:
    """The ASGI application; the worker begins and ends with it."""
    routes = _Routes(served, worker, metrics)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    paths = [
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/models", routes.models),
        Route("/v1/models/{name:path}", routes.model),
        Route("/surprise", routes.surprise, methods=["POST"]),
        Route("/reads", routes.reads),
        Route("/about", routes.about),
        Route("/health", routes.health),
        Route("/metrics", routes.metrics),
        *(Route(path, _file(*what)) for path, what in _PAGE.items()),
    ]
    app = Starlette(
        routes=paths,
        lifespan=lifespan,
        exception_handlers={
            Refused: _refused,
            ClientLeft: _client_left,
            HTTPException: _http_exception,
            500: _defect,
        },
    )
    app.add_middleware(Measured, metrics=metrics, paths=frozenset(r.path for r in paths))
    return app


class _Routes:
    def __init__(self, served: Served, worker: Worker, metrics: Metrics):
        self._served, self._worker, self._metrics = served, worker, metrics
        self._created = int(time.time())

    async def completions(self, request: Request) -> Response:
        began, served = time.monotonic(), self._served
        data = await read_body(request, served.limits.max_body_bytes)
        body = parse_body(CompletionBody, data)
        plan = plan_completion(body, served.tokenizer, served.limits, served.name)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }
        presence = Presence(request.receive, self._metrics)
        kept = False
        try:
            chunks = self._chunks(plan, presence, head, began)
            if plan.stream:
                # The first chunk is waited for: what goes wrong until then still has a status.
                first = await anext(chunks)
                kept = True
                return EventStream(presence, first, chunks)
            choices = await self._choices(plan, presence)
            async for _ in self._grown(plan, presence, choices, began):
                pass
            entries = [choice.take() for choice in choices]
            return JSONResponse(head | {"choices": entries, "usage": usage(plan, choices)})
        finally:
            if not kept:
                presence.close()

    async def _choices(self, plan: Plan, presence: Presence) -> list[Choice]:
        """The texts of an answer, before the first token; echoed prompts are scored here."""
        scores: list[Scores | None] = [None] * len(plan.prompts)
        if plan.echo and plan.logprobs is not None:
            for number, prompt in enumerate(plan.prompts):
                scores[number] = Scores([], [])
                if prompt.tokens:
                    scores[number] = await self._scores(prompt.tokens, plan.logprobs, presence)
        # Long prompts take a while to tell of; streams go on meanwhile.
        return await asyncio.to_thread(self._begun, plan, scores)

    def _begun(self, plan: Plan, scores: Sequence[Scores | None]) -> list[Choice]:
        return [
            Choice(
                number,
                plan.prompts[number // plan.n],
                self._served.tokenizer,
                plan,
                scores[number // plan.n],
            )
            for number in range(plan.n * len(plan.prompts))
        ]

    async def _grown(
        self, plan: Plan, presence: Presence, choices: Sequence[Choice], began: float
    ) -> AsyncIterator[list[Choice]]:
        """Let the texts grow until they end; yields those that have grown, again and again."""
        if not plan.texts:
            yield list(choices)
            return
        job = TextsJob(requests=plan.texts)
        presence.submit(self._worker, job)
        first = True
        while any(choice.finish_reason is None for choice in choices):
            grown: dict[int, Choice] = {}
            for event in await job.events():
                grown[event.text] = choices[event.text]
                choices[event.text].add(event.piece)
            if first and grown:
                self._metrics.first_token.observe(time.monotonic() - began)
                first = False
            yield list(grown.values())

    async def _chunks(
        self, plan: Plan, presence: Presence, head: dict[str, Any], began: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """The answer as a stream: a chunk for each text that has grown."""
        without_usage = {"usage": None} if plan.include_usage else {}
        choices = await self._choices(plan, presence)
        async for grown in self._grown(plan, presence, choices, began):
            for choice in grown:
                entry = choice.take()
                if entry is not None:
                    yield head | {"choices": [entry]} | without_usage
        if plan.include_usage:
            yield head | {"choices": [], "usage": usage(plan, choices)}

    async def _scores(self, tokens: list[int], top: int, presence: Presence) -> Scores:
        job = ScoresJob(tokens=tokens, top=top)
        presence.submit(self._worker, job)
        found = Scores([], [])
        while len(found.logprobs) < len(tokens):
            for event in await job.events():
                assert isinstance(event, MadeScores)
                found.logprobs.extend(event.scores.logprobs)
                found.top.extend(event.scores.top)
        return found

    async def surprise(self, request: Request) -> Response:
        served = self._served
        body = parse_body(SurpriseBody, await read_body(request, served.limits.max_body_bytes))
        data = encode_text(body.text, "text")
        if not data:
            raise Refused(400, "text is empty; there is nothing to score", param="text")
        check_length("text", len(data), served.limits)
        top = 5 if body.top is None else body.top
        if not 0 <= top <= MOST_LOGPROBS:
            raise Refused(400, f"top is {top}; it must be from 0 to {MOST_LOGPROBS}", param="top")
        try:
            tokens = served.tokenizer.encode(data).tolist()
        except ValueError as error:
            raise Refused(400, str(error), param="text") from error
        presence = Presence(request.receive, self._metrics)
        try:
            scores = await self._scores(tokens, top, presence)
        finally:
            presence.close()
        # A long text's figures take a while to write; streams go on meanwhile.
        told = await asyncio.to_thread(surprise_json, tokens, scores, served.tokenizer)
        return Response(told, media_type="application/json")

    async def reads(self, request: Request) -> Response:
        numbers = {}
        for name in ("layer", "head", "token"):
            value = request.query_params.get(name, "")
            if not (value.isascii() and value.isdecimal() and len(value) < 16):
                raise Refused(
                    400,
                    f"{name} is '{value[:20]}'; it must be a whole number, as in ?{name}=3",
                    param=name,
                )
            numbers[name] = int(value)
        try:
            reads = tokens_read(self._served.config, **numbers)
        except ValueError as error:
            raise Refused(400, str(error), param=str(error).split()[0]) from error
        ranges = [[some.start, some.stop, some.step] for some in reads.tokens]
        return JSONResponse({"start_symbol": reads.start_symbol, "tokens": ranges})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._served.name:
            raise Refused(
                404,
                f"the model {shown(name)} is not here; this server has '{self._served.name}'",
                param="model",
                code="model_not_found",
            )
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._served.name,
            "object": "model",
            "created": self._created,
            "owned_by": "sparse_tx",
        }

    async def about(self, request: Request) -> Response:
        served, config = self._served, self._served.config
        return JSONResponse(
            {
                "model": served.name,
                "fingerprint": served.fingerprint,
                "step": served.step,
                "parameters": served.parameters,
                "pattern": config.pattern,
                "seq_len": config.seq_len,
                "patterns": [
                    [str(head) for head in config.stack.layer(n).heads(config.n_head)]
                    for n in range(config.n_layer)
                ],
                "tokenizer": served.tokenizer.kind,
                "vocab_size": config.vocab_size,
                "recent_tokens": config.recent_tokens,
                "ngrams": list(config.ngrams),
                "recall": config.recall,
                "decoder": self._worker.decoder,
                "max_prompt_bytes": served.limits.max_prompt_bytes,
                "max_tokens_limit": served.limits.max_tokens_limit,
            }
        )

    async def health(self, request: Request) -> Response:
        if self._worker.ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "not serving"}, 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})


def _file(name: str, media_type: str):
    """A route that gives a file of the page."""
    content = (files("sparse_tx.serving") / "page" / name).read_bytes()

    async def give(request: Request) -> Response:
        headers = {
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
        }
        return Response(content, media_type=media_type, headers=headers)

    return give


async def _refused(request: Request, refused: Refused) -> Response:
    headers = {"Retry-After": "1"} if refused.status in (429, 503) else {}
    return JSONResponse(refused.to_json(), refused.status, headers)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    sentence = f"{error.detail}: {request.method} {request.url.path}"
    if error.status_code == 404:
        sentence = f"there is nothing at {request.url.path}; the API is at /v1, a page at /"
    elif error.status_code == 405:
        sentence = f"{request.url.path} does not take {request.method}"
    refused = Refused(error.status_code, sentence)
    return JSONResponse(refused.to_json(), error.status_code, error.headers)


async def _client_left(request: Request, left: ClientLeft) -> Response:
    return Response(status_code=_CLIENT_LEFT)


async def _defect(request: Request, error: Exception) -> Response:
    refused = Refused(500, "an error inside the server; it has written what it knows of it")
    return JSONResponse(refused.to_json(), 500)
