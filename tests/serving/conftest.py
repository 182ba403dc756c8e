"""A small model with random weights, and a server of it on a free port."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from sparse_tx.checkpoint import save_checkpoint
from sparse_tx.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from sparse_tx.data import ByteTokenizer
from sparse_tx.model import GPT
from sparse_tx.serving.limits import Limits

SEQ_LEN = 32
WAIT_S = 60


def make_model(**settings):
    """Every weight is random, so that every distribution is one of its own."""
    torch.manual_seed(7)
    defaults = dict(
        vocab_size=256, seq_len=SEQ_LEN, n_layer=2, n_head=2, n_embd=20, position="rope"
    )
    model = GPT(ModelConfig(**defaults | dict(pattern="local:5,strided:5") | settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_run(folder, model, *, step=1, valid_bpb=None):
    """Add a checkpoint to a run directory."""
    save_checkpoint(
        folder,
        step=step,
        model_state=model.state_dict(),
        ema_state=None,
        config=RunConfig(
            model=model.config, data=DataConfig(), training=TrainingConfig(max_steps=5)
        ),
        tokenizer=ByteTokenizer(),
        training_state={},
        keep_last=2,
        valid_bpb=valid_bpb,
    )


@pytest.fixture(scope="session")
def model():
    return make_model()


@contextmanager
def served(model, tokenizer=None, **limits):
    """Run a server in a thread; gives its address, itself, and what it has."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    from sparse_tx.serving.server import Server, address_of, listen

    tokenizer = tokenizer or ByteTokenizer()
    with listen("127.0.0.1", 0) as sock:
        server = Server(
            model,
            tokenizer,
            Limits(**dict(max_concurrent=4, max_waiting=8) | limits),
            name="small",
            fingerprint="f00",
            step=3,
        )
        address = address_of(sock)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield SimpleNamespace(
                address=address, server=server, worker=server.worker, tokenizer=tokenizer
            )
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive(), "the server does not end"


def wait_until(true):
    """Wait until something is true, for as long as the slowest machine may take."""
    event = threading.Event()
    for _ in range(100 * WAIT_S):
        if true():
            return
        event.wait(0.01)
    raise AssertionError("it never came true")


@pytest.fixture(scope="session")
def small(model):
    """A server of ``model`` that tests leave as they found it."""
    with served(model) as server:
        yield server
