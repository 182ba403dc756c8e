"""The server as a process has it: a socket, signals, an orderly end."""

import ipaddress
import socket

import uvicorn

from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.model import GPT
from sparse_tx.serving.app import Served, make_app
from sparse_tx.serving.limits import Limits
from sparse_tx.serving.metrics import Metrics
from sparse_tx.serving.worker import Worker

# What is being made may be finished when the server is told to end; and then a little for answers
# to be sent.
GRACE_S = 5.0
_SENDING_S = 5


def listen(host: str, port: int) -> socket.socket:
    """A socket that a server can take; port 0 takes a free one.

    Raises:
        UserError: there is no such address here, or the port is not free.
    """
    if not 0 <= port <= 65_535:
        raise UserError(f"port is {port}; it must be from 0 (any that is free) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen()
        except OSError:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:  # the latter of what can be no host's name
        reason = getattr(error, "strerror", None) or "it is no host's name"
        raise UserError(
            f"cannot listen at port {port} of '{host}': {reason}; take another --port or --host"
        ) from error
    return sock


def address_of(sock: socket.socket) -> str:
    """The address for a browser."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


class Server(uvicorn.Server):
    """Serves a model until a signal, or until ``should_exit`` is set.

    At the first signal no more is taken; what is being made has ``GRACE_S`` to end, and is then
    ended with an error. At a second Ctrl-C the server ends at once.

    Args:
        model: in eval mode, where it shall compute; nobody else may use it until the server ends.
        tokenizer: the model's.
        limits: what is refused.
        name: of the model, for clients.
        fingerprint: a text that changes with the weights.
        step: optimiser steps that the weights have taken.

    Attributes:
        lost_model: whether the server ended because of an error in the thread of the model.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        limits: Limits,
        *,
        name: str,
        fingerprint: str,
        step: int = 0,
    ):
        metrics = Metrics()
        self.lost_model = False
        self.worker = Worker(model, tokenizer, limits, metrics, self._lose_model)
        served = Served(
            name=name,
            fingerprint=fingerprint,
            step=step,
            parameters=model.n_parameters(),
            config=model.config,
            tokenizer=tokenizer,
            limits=limits,
        )
        config = uvicorn.Config(
            make_app(served, self.worker, metrics),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=round(GRACE_S) + _SENDING_S,
        )
        super().__init__(config)

    def handle_exit(self, sig, frame) -> None:
        """What a signal does."""
        self.worker.drain(GRACE_S)
        super().handle_exit(sig, frame)

    def _lose_model(self) -> None:
        self.lost_model = self.should_exit = True
