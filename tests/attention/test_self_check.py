"""The self-check passes what is right, and fails what is wrong in any way that it can be wrong."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sparse_tx.attention import api, reference, resolve_engine, self_check, views
from sparse_tx.errors import UserError
from sparse_tx.patterns import Local

CPU = torch.device("cpu")
NUMBERS = dict(dtype=torch.float32, D=8, D_v=5)


def failure(attend, device=CPU, **numbers):
    return self_check.failure_of(attend, reference.attend, device=device, **NUMBERS | numbers)


def without_the_last_key(q, k, v, heads, scale):
    """The oracle, but for one key of a few hundred, which is as good as not there."""
    k = torch.cat([k[:, :, :-1], torch.zeros_like(k[:, :, -1:])], 2)
    return reference.attend(q, k, v, heads, scale)


def with_a_leak(q, k, v, heads, scale):
    return reference.attend(q, k, v.roll(-1, 2), heads, scale)


def with_wrong_gradients(which):
    def attend(*inputs):
        inputs = list(inputs)
        x = inputs[which]
        inputs[which] = x.detach() + 1.1 * (x - x.detach())
        return reference.attend(*inputs)

    return attend


def with_nan(*inputs):
    out = reference.attend(*inputs)
    return torch.where(torch.arange(out.shape[2])[:, None] == 3, float("nan"), out)


def that_raises(*inputs):
    raise OSError("out of shared memory\nand more")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_right_engines_pass(dtype):
    assert failure(views.attend, dtype=dtype) is None


@pytest.mark.parametrize(
    ("attend", "words"),
    [
        (without_the_last_key, "off by"),
        (with_a_leak, "its output is off by"),
        (with_wrong_gradients(0), "its dq is off by"),
        (with_wrong_gradients(1), "its dk is off by"),
        (with_wrong_gradients(2), "its dv is off by"),
        (with_nan, "its output is off by nan"),
        (that_raises, "OSError: out of shared memory"),
    ],
)
def test_wrong_engines_do_not(attend, words):
    assert words in failure(attend)


def test_nothing_of_the_caller_reaches_it():
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert failure(views.attend) is None
    state = torch.get_rng_state()
    x = torch.randn(3, requires_grad=True)
    torch.set_rng_state(state)
    seen = []

    def forward(x):
        if not seen:  # as at the first call of all; what it saves is no part of this checkpoint
            seen.append(failure(views.attend))
        return x * x

    checkpoint(forward, x, use_reentrant=False).sum().backward()
    assert seen == [None]
    assert torch.equal(x.grad, 2 * x)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_gpu_that_the_check_has_broken_is_not_used_on(monkeypatch):
    def fail(device):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *_, **__: x)
    with pytest.raises(UserError, match=r"unusable for this process .*engine='views'"):
        failure(that_raises, device=torch.device("cuda", 0))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Resolve for inputs on a GPU, with these functions in place of its engines'."""
    api._failed_self_check.cache_clear()
    checked = []

    def check(attend, oracle, *, device, **numbers):
        checked.append((device.type, numbers["dtype"]))
        return failure_of(attend, oracle, device=CPU, **numbers)

    failure_of = self_check.failure_of
    monkeypatch.setattr(self_check, "failure_of", check)

    def resolve(engine="auto", dtype=torch.float32, **attends):
        for name in ("triton", "flex"):
            attend = attends.get(name)
            reason = None if attend else "not for this GPU"
            monkeypatch.setattr(api.ENGINES[name], "why_not", lambda *_, reason=reason: reason)
            monkeypatch.setattr(api.ENGINES[name], "attend", attend)
        device = torch.device("cuda", 0)
        return resolve_engine(engine, device=device, dtype=dtype, D=4, D_v=4, heads=(Local(3),))

    yield resolve, checked
    api._failed_self_check.cache_clear()


def test_auto_takes_an_engine_that_passes_and_checks_once_for_each_type(on_a_gpu):
    resolve, checked = on_a_gpu
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        name, reason = resolve(dtype=dtype, triton=views.attend, flex=views.attend)
        assert name == "triton" and "passed their self-check" in reason
    assert checked == [("cuda", torch.float32), ("cuda", torch.bfloat16)]


def test_auto_goes_on_to_the_next_and_says_why(on_a_gpu):
    resolve, _ = on_a_gpu
    name, reason = resolve(triton=with_a_leak, flex=views.attend)
    assert name == "flex"
    assert reason.startswith("triton: its self-check on this GPU failed: its output is off by")


def test_the_last_resort_is_views(on_a_gpu):
    resolve, _ = on_a_gpu
    name, reason = resolve(flex=that_raises)
    assert name == "views"
    assert reason == (
        "triton: not for this GPU; flex: its self-check on this GPU failed: OSError: out of shared"
        " memory"
    )


def test_an_engine_that_is_asked_for_is_not_checked(on_a_gpu):
    resolve, checked = on_a_gpu
    assert resolve("triton", triton=that_raises) == ("triton", "asked for")
    assert not checked
    with pytest.raises(UserError, match=r"'flex' cannot run here: not for this GPU; .*'views'"):
        resolve("flex")
