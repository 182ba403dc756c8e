"""Tile shapes: a few to choose from on a GPU, where Triton times them, and one elsewhere.

The shapes are those whose loops ptxas compiles for sm_90 without spilling registers, in half
precision and at D = 64 or 128. The last of them fits into the 99 KiB of shared memory that the
smaller GPUs give a program; it is the one that short sequences take, where nothing is timed.
"""

from collections.abc import Sequence

import triton

from sparse_tx.attention.triton import by_key, by_query

Shape = tuple[int, int, int, int]  # BLOCK_M, BLOCK_N, warps, stages

_BY_QUERY = ((128, 128, 8, 2), (128, 64, 8, 3), (64, 64, 4, 3), (64, 64, 8, 2), (64, 32, 4, 3))
_BY_KEY = ((64, 128, 8, 2), (64, 64, 8, 2), (64, 64, 4, 3), (32, 128, 8, 2), (32, 64, 4, 3))
# Without tensor cores, as for float32 in full precision, products live in registers.
_FLOAT32 = ((32, 32, 4, 2), (32, 32, 8, 1))
# The interpreter pays by the operation, not by its size.
_INTERPRETED = (32, 16, 4, 1)


def _config(shape: Shape) -> triton.Config:
    m, n, warps, stages = shape
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)


def _tuned(kernel, shapes: Sequence[Shape], own: int, flags: Sequence[str], outputs: Sequence[str]):
    """Tune ``kernel``, whose programs own ``shape[own]`` rows and write ``outputs``."""
    if triton.knobs.runtime.interpret:
        return triton.autotune([_config(_INTERPRETED)], key=[])(kernel)

    def fitting(_, args, **__) -> list[triton.Config]:
        able = _FLOAT32 if args["q"].element_size() == 4 else shapes
        length = -(-args["T"] // args["spacing"])
        worth = [shape for shape in able if shape[own] <= max(64, 2 * length)]
        return [_config(shape) for shape in (worth if args["span"] else able[-1:])]

    return triton.autotune(
        [_config(shape) for shape in shapes],
        key=[*flags, "D", "D_V", "span"],
        restore_value=list(outputs),  # timing repeats a launch that may add to what is there
        prune_configs_by={"early_config_prune": fitting},
        cache_results=True,
    )(kernel)


_FLAGS = ("INSIDE", "OUTSIDE", "TAKEN", "MERGES")
forward = _tuned(by_query.forward, _BY_QUERY, 0, _FLAGS, ("out", "lse"))
query_gradient = _tuned(by_query.query_gradient, _BY_QUERY, 0, _FLAGS, ("d_q",))
key_gradients = _tuned(
    by_key.key_gradients, _BY_KEY, 1, ("SOURCE", "TAKEN", "ADDS"), ("d_k", "d_v")
)
row_products = by_key.row_products
