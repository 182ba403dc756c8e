"""Counts every answer of an application."""

from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparse_tx.serving.metrics import Metrics

# An exception goes through here before it becomes an answer.
_DEFECT = 500


class Measured:
    """An ASGI application around another.

    Args:
        app: the other.
        metrics: where its answers are counted.
        paths: those that are named; all others count as one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = monotonic(), _DEFECT

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, monotonic() - began)
