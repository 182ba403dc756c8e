"""Parts of a piece of work: they are the right ones, and sum to the whole."""

from itertools import count

import pytest
import torch

from sparse_tx.attention import sparse_attention
from sparse_tx.model import block, gpt, long_blocks
from sparse_tx.profiler import parts
from sparse_tx.profiler.records import WORKS
from sparse_tx.profiler.works import make_work
from tests.profiler.helpers import make_setting

MODULES = {"token_embedding", "norms", "qkv", "attention", "output", "feed_forward", "other"}
OFTEN = {f"{name}.forward" for name in (*MODULES, "head_and_loss")}
TRAINED = OFTEN | {part.replace(".forward", ".backward") for part in OFTEN} | {"optimiser"}
RECOMPUTED = {f"{name}.recompute" for name in MODULES - {"token_embedding"}}


@pytest.fixture
def ticks(monkeypatch):
    """A clock that goes on by 1 whenever it is read; returns what it has shown."""
    shown = []
    counter = count()
    monkeypatch.setattr(parts, "clock", lambda _: shown.append(next(counter)) or shown[-1])
    return shown


def found_for(setting):
    work = make_work(setting)
    work.prepare()
    return parts.measure_parts(work, "cpu")


@pytest.mark.parametrize("work", WORKS)
def test_parts_sum_to_the_whole(work, ticks):
    found = found_for(make_setting(work, recompute=True, chunk=10))
    n_layers = 2 if work == "attention" else 1
    assert sum(found.values()) * n_layers == pytest.approx(ticks[-1] - ticks[0])
    assert all(seconds > 0 for seconds in found.values())


@pytest.mark.parametrize(
    ("work", "model", "expected"),
    [
        ("attention", {}, {"attention.forward", "attention.backward"}),
        ("forward", {"recompute": True, "chunk": 10}, OFTEN),
        ("prefill", {}, OFTEN - {"qkv.forward"}),
        ("prefill", {"head_chunk": 1, "chunk": 10, "engine": "views"}, OFTEN - {"qkv.forward"}),
        ("decode", {"engine": "views"}, OFTEN - {"attention.forward"}),
        ("train", {}, TRAINED),
        ("train", {"position": "none", "tie_embeddings": True}, TRAINED),
        ("train", {"chunk": 10}, TRAINED | {"feed_forward.recompute"}),
        (
            "train",
            {"chunk": 10, "activation": "relu2", "bias": False},
            TRAINED | {"feed_forward.recompute"},
        ),
        ("train", {"recompute": True}, TRAINED | RECOMPUTED),
        ("train", {"recompute": True, "chunk": 10, "dropout": 0.1}, TRAINED | RECOMPUTED),
        ("train", {"recent_tokens": 3, "activation": "swiglu", "norm": "rmsnorm"}, TRAINED),
    ],
)
def test_which_parts_there_are(work, model, expected, ticks):
    assert set(found_for(make_setting(work, **model))) == expected


def test_a_native_step_is_one_part(ticks):
    setting = make_setting("decode")
    if make_work(setting).decoder != "NativeDecoder":
        pytest.skip("no compiler")
    assert set(found_for(setting)) == {"other.forward"}


def test_attention_of_some_heads_at_a_time(ticks):
    """Forward, and what the backward pass computes again of it; the two sum to the whole too."""
    found = found_for(make_setting("train", head_chunk=1, chunk=10))
    assert sum(found.values()) == pytest.approx(ticks[-1] - ticks[0])
    assert {"attention.forward", "attention.recompute"} < set(found)


class Noted(torch.autograd.Function):
    """The identity; notes which part is open when it is computed, and when its gradient is."""

    @staticmethod
    def forward(ctx, x, open_part, notes):
        ctx.open_part, ctx.notes = open_part, notes
        notes.append(open_part())
        return x.clone()

    @staticmethod
    def backward(ctx, d_out):
        ctx.notes.append(ctx.open_part())
        return d_out, None, None


@pytest.mark.parametrize("recompute", [False, True])
def test_the_right_part_is_open(recompute, monkeypatch):
    """Attention, feed-forward and loss are computed, forward and backward, in their own parts."""
    made, notes = [], []

    class Kept(parts._Clocks):
        def __init__(self, device):
            super().__init__(device)
            made.append(self)

    def noting(function):
        def call(first, *rest, **options):
            if not made:
                return function(first, *rest, **options)
            noted = Noted.apply(first, lambda: made[0]._open, notes)
            return function(noted, *rest, **options)

        return call

    monkeypatch.setattr(parts, "_Clocks", Kept)
    monkeypatch.setattr(block, "sparse_attention", noting(sparse_attention))
    monkeypatch.setattr(block, "gelu", noting(block.gelu))
    monkeypatch.setattr(gpt, "chunked_cross_entropy", noting(gpt.chunked_cross_entropy))
    found_for(make_setting("train", recompute=recompute))
    forward = ["attention.forward", "feed_forward.forward"] * 2 + ["head_and_loss.forward"]
    again = ["attention.recompute", "feed_forward.recompute"] if recompute else []
    one_block = [*again, "feed_forward.backward", "attention.backward"]
    assert notes == [*forward, "head_and_loss.backward", *one_block * 2]


def test_no_hook_is_left(ticks):
    work = make_work(make_setting("train"))
    parts.measure_parts(work, "cpu")
    assert long_blocks.sparse_attention is sparse_attention
    for module in work.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
