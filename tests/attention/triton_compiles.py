"""Compile the kernels for sm_90, which needs no GPU; run as a module, by ``test_triton``.

The interpreter runs kernels as Python, and so accepts some that Triton's compiler does not. The
real launch code runs here, with warm-ups, which compile, in place of launches.
"""

from contextlib import nullcontext

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from sparse_tx.attention.triton import launch, tuning
from sparse_tx.patterns import parse_layer

SHAPE = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 2}
# Each way to find keys, and each way to leave some out.
NOTATION = "fixed:12:3+strided:5+strided:7"


class Hopper:
    """As much of a driver as compiling asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiled:
    """Takes the place of a kernel; whatever is launched is compiled."""

    def __init__(self, kernel, shape):
        self.kernel, self.shape, self.binaries = kernel, shape, []

    def __getitem__(self, grid):
        return self._compile

    def _compile(self, *args, **flags):
        binary = self.kernel.warmup(*args, grid=(1,), **flags, **self.shape)
        self.binaries.append(binary.result() if hasattr(binary, "result") else binary)


def main() -> None:
    driver.set_active(Hopper())
    launch._on = lambda device: nullcontext()
    compiled = {
        name: Compiled(getattr(tuning, name).fn, SHAPE)
        for name in ("forward", "query_gradient", "key_gradients")
    }
    compiled["row_products"] = Compiled(tuning.row_products, {})
    for name, kernel in compiled.items():
        setattr(tuning, name, kernel)
    q, k, v = (torch.zeros(1, 64, 1, 16, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
    heads = parse_layer(NOTATION).heads(1)
    launch.attend(q.requires_grad_(), k, v, heads, 0.25).sum().backward()
    for name, kernel in compiled.items():
        assert kernel.binaries, name
        for binary in kernel.binaries:
            assert binary.asm["cubin"], name


if __name__ == "__main__":
    main()
