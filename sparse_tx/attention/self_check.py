"""Whether an engine computes what it should on the very device where it is about to be used.

A kernel that is compiled for the GPU at hand can be wrong there and right everywhere else. This
looks once, on a few hundred positions, before the engine is trusted; it knows no engine by name.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sparse_tx.errors import UserError
from sparse_tx.patterns import Pattern, parse_layer

Attend = Callable[[Tensor, Tensor, Tensor, tuple[Pattern, ...], float], Tensor]

# Intervals, summary positions and columns, alone, together, and in each way in which pairs are left
# out because others compute them.
_LAYER = "local:50/summary:64:5/strided:24/local:50+summary:64:5+strided:24/strided:24+strided:40"
_T = 307
# Errors that are no rounding are of the size of the numbers themselves.
_ROUNDINGS = 8
# Products of float32 may run in TensorFloat-32, where the caller has asked torch for it.
_TENSOR_FLOAT_32 = 2**-10


def failure_of(
    attend: Attend, oracle: Attend, *, device: torch.device, dtype: torch.dtype, D: int, D_v: int
) -> str | None:
    """Say in words how ``attend`` fails on ``device``; None if it does as it should.

    Output and gradients are compared with those of ``oracle`` on the same numbers in float64, on
    the CPU. An exception is a failure too.

    Raises:
        UserError: the failure leaves the device unusable for this process.
    """
    # The caller may be under autocast, inference mode or a checkpoint's hooks. All of those belong
    # to its thread, and so do not reach the check.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_failure_of, attend, oracle, device, dtype, D, D_v).result()


def _failure_of(attend, oracle, device, dtype, D, D_v) -> str | None:
    layer = parse_layer(_LAYER)
    heads = layer.heads(len(layer.groups))
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, _T, len(heads), width, generator=generator, device="cpu").to(dtype)
        for width in (D, D, D_v, D_v)
    ]
    try:
        found = _both_ways(attend, heads, *(x.to(device) for x in inputs))
    except (
        Exception
    ) as error:  # compilers and drivers raise what they like; the reason is passed on
        first_line = str(error).strip().partition("\n")[0]
        failure = f"{type(error).__name__}: {first_line}"
        _require_usable(device, failure)
        return failure
    expected = _both_ways(oracle, heads, *(x.double() for x in inputs))
    tolerance = _ROUNDINGS * max(torch.finfo(dtype).eps, _TENSOR_FLOAT_32)
    for name, a, b in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        error = ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
        if not error <= tolerance:  # NaN is not
            return f"its {name} is off by {error:.2g}, where {tolerance:.2g} is allowed"
    return None


def _both_ways(attend: Attend, heads, q, k, v, d_out) -> list[Tensor]:
    """The output and the three gradients, in float64 on the CPU; inputs are ``(B, T, H, D)``."""
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in (q, k, v))
    out = attend(q, k, v, heads, q.shape[3] ** -0.5)
    grads = torch.autograd.grad(out, (q, k, v), d_out.transpose(1, 2))
    return [x.detach().cpu().double() for x in (out, *grads)]


def _require_usable(device: torch.device, failure: str) -> None:
    """After a wild access, everything on a GPU fails until the process ends."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise UserError(
            f"the self-check of attention kernels left {device} unusable for this process"
            f" ({failure}); start again with engine='views'"
        ) from error
