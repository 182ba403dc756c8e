"""``sparse-tx serve``: a model behind HTTP, for programs and for a browser."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from sparse_tx.accounting import cache_bytes
from sparse_tx.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    read_manifest,
    weights_sha256,
)
from sparse_tx.commands.checkpoint_flags import add_checkpoint
from sparse_tx.commands.shell import CommandParser, choose_device, run_command
from sparse_tx.errors import UserError
from sparse_tx.model import GPT
from sparse_tx.profiler.memory import free_bytes
from sparse_tx.serving.limits import Limits

DESCRIPTION = """Serve a trained model over HTTP: completions as OpenAI's API has them at
/v1/completions, also as streams of server-sent events, and a page at / to try the model and to see
how much each byte of a text surprises it. Texts are made together, a token of each at a time. At
Ctrl-C, those that are being made have five seconds to end."""

MORE = """Other addresses: /v1/models, /health, /metrics (for Prometheus), /surprise, /reads and
/about. There is no password: keep --host a loopback address, or put a server that asks for one
before this one."""

_LIBRARIES = ("starlette", "uvicorn", "pydantic", "prometheus_client")


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0 once it is ended, 2 after a mistake in what was given.

    1 if the server ended by itself, because of an error in the thread of the model.
    """
    return run_command(_serve, argv)


def _parser() -> CommandParser:
    parser = CommandParser(prog="sparse-tx serve", description=DESCRIPTION, epilog=MORE)
    add = parser.add_argument
    add_checkpoint(parser)
    add("--host", type=str, default="127.0.0.1", help="Address to listen at.")
    add("--port", type=int, default=8000, help="Port to listen at; 0 takes one that is free.")
    parser.add_class_arguments(Limits)
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="Where to compute.")
    add(
        "--engine",
        type=str,
        default=None,
        help="Attention engine; by default that of the run. auto takes the fastest that can run.",
    )
    return parser


def _serve(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    limits = Limits(**{field.name: args[field.name] for field in fields(Limits)})
    server_module = _import_server()
    device = choose_device(args.device)
    path = find_checkpoint(args.checkpoint, args.which)
    with server_module.listen(args.host, args.port) as sock:  # better refused before the work
        model, tokenizer, _ = load_checkpoint(path, device=device, engine=args.engine)
        _check_memory(model, limits)
        step = read_manifest(path).step
        server = server_module.Server(
            model,
            tokenizer,
            limits,
            name=_name(path),
            fingerprint=weights_sha256(path)[:16],
            step=step,
        )
        _say(f"model    {path}, step {step:,}, {model.n_parameters():,} parameters")
        _say(f"decoder  {server.worker.decoder}")
        if not server_module.is_loopback(sock):
            _say(
                f"warning: {args.host} can be reached from other machines, and there is no"
                " password: whoever reaches it can use the model"
            )
        _say(f"serving  {server_module.address_of(sock)} (Ctrl-C ends it)")
        with _quiet_signals():
            server.run(sockets=[sock])
        server.worker.stop()
    _say("ended")
    return 1 if server.lost_model else 0


def _import_server() -> Any:
    """The module of the server, whose libraries are an extra.

    Raises:
        UserError: one of them is not there.
    """
    try:
        from sparse_tx.serving import server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _LIBRARIES:
            raise
        raise UserError(
            f"serve needs {error.name}, which is not installed: pip install 'sparse_tx[serve]'"
        ) from error
    return server


def _name(path: Path) -> str:
    """What the model is called: the name of the run's folder."""
    path = path.resolve()
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def _check_memory(model: GPT, limits: Limits) -> None:
    """Refuse what the machine has no memory for, while there is somebody to tell.

    Raises:
        UserError: the keys and values of as many texts take more than there is.
    """
    weight, room = model.token_embedding.weight, min(model.config.seq_len, 1 + limits.room)

    def needed(texts: int) -> int:
        element_bytes = weight.element_size()
        counted = cache_bytes(model.config, room, batch=texts, element_bytes=element_bytes)
        return counted.allocated.total

    with suppress(OSError, KeyError):  # not every system tells
        free = free_bytes(weight.device.type)
        if needed(limits.max_concurrent) > free:
            fits = free // needed(1)
            way_out = "--max_prompt_bytes and --max_tokens_limit make texts shorter"
            if fits:
                way_out = f"--max_concurrent {fits} fits, and {way_out}"
            raise UserError(
                f"{limits.max_concurrent} texts of up to"
                f" {room:,} tokens keep"
                f" {needed(limits.max_concurrent) / 1e9:.1f} GB of keys and values, and"
                f" {free / 1e9:.1f} GB of memory are free; {way_out}"
            )


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """The server handles signals, and raises them once more at its end: to what is set here."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(name, lambda *_: None) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
