"""Requests and answers while their client is there: bodies, streams, and who has left."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sparse_tx.serving.bodies import shown
from sparse_tx.serving.jobs import ClientLeft, Job, ScoresJob, TextsJob
from sparse_tx.serving.metrics import Metrics
from sparse_tx.serving.refused import Refused
from sparse_tx.serving.worker import Worker


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request, of which no more than ``most`` bytes are ever held.

    Raises:
        Refused: it is longer, or a page of another site sends it from a browser.
        ClientLeft: its end never comes.
    """
    origin = request.headers.get("origin")
    if origin is not None and _host_of(origin) != request.headers.get("host"):
        raise Refused(403, f"pages of {shown(origin)} may not use this server; its own page may")
    too_long = Refused(413, f"the body has more than {most:,} bytes; send less at once")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_long
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise too_long
    except ClientDisconnect:
        raise ClientLeft from None
    return bytes(body)


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # it is no address
        return None


class Presence:
    """Whether the client of a request is still there; when it leaves, its jobs are cancelled.

    Args:
        receive: of the request, whose body has been read.
        metrics: where it is counted.
    """

    def __init__(self, receive: Receive, metrics: Metrics):
        self._metrics = metrics
        self._jobs: list[Job] = []
        self._left = False
        self._task = asyncio.create_task(self._watch(receive))

    def submit(self, worker: Worker, job: TextsJob | ScoresJob) -> None:
        """Give a job to a worker, for as long as the client is there.

        Raises:
            Refused: the worker does not take it.
        """
        worker.submit(job)
        self._jobs.append(job)
        if self._left:
            job.cancel()

    def close(self) -> None:
        """The answer is over, or given up: no job has to go on."""
        self._task.cancel()
        for job in self._jobs:
            job.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._metrics.left.inc()
        for job in self._jobs:
            job.cancel()


class EventStream(Response):
    """Chunks as server-sent events, ended by ``[DONE]`` as OpenAI's are.

    Args:
        presence: of the client; closed at the end.
        first: the first chunk.
        chunks: the others.
    """

    media_type = "text/event-stream"

    def __init__(
        self, presence: Presence, first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any]]
    ):
        self._presence, self._first, self._chunks = presence, first, chunks
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            await self._send(send, json.dumps(self._first))
            try:
                async for chunk in self._chunks:
                    await self._send(send, json.dumps(chunk))
                await self._send(send, "[DONE]")
            except Refused as refused:
                await self._send(send, json.dumps(refused.to_json()))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientLeft, OSError):
            pass  # nobody to tell
        finally:
            self._presence.close()
            await self._chunks.aclose()

    async def _send(self, send: Send, data: str) -> None:
        body = f"data: {data}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
