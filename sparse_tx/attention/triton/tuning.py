"""Tile shapes: a few to choose from on a GPU, where Triton times them, and one elsewhere."""

import triton

from sparse_tx.attention.triton import by_key, by_query

# (BLOCK_M, BLOCK_N, warps, stages)
_HALF = (
    (128, 128, 8, 2),
    (128, 64, 4, 3),
    (128, 64, 8, 3),
    (64, 64, 4, 3),
    (64, 128, 4, 2),
    (64, 32, 4, 3),
)
# float32 in full precision has no tensor cores: its products live in registers.
_FULL = ((64, 32, 4, 2), (32, 32, 4, 2), (32, 64, 4, 2))
# The interpreter pays by the operation, not by its size.
_INTERPRETED = (32, 16, 4, 1)


def _configs(shapes) -> list[triton.Config]:
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
        for m, n, warps, stages in shapes
    ]


def _fitting(configs, args, **_) -> list[triton.Config]:
    """Of all shapes, those for these inputs' precision and not far higher than a column."""
    shapes = _FULL if args["q"].element_size() == 4 else _HALF
    length = -(-args["T"] // args["spacing"])
    fitting = [(m, n, *rest) for m, n, *rest in shapes if m <= max(64, 2 * length)]
    chosen = {(m, n, *rest) for m, n, *rest in fitting}
    return [
        c
        for c in configs
        if (c.kwargs["BLOCK_M"], c.kwargs["BLOCK_N"], c.num_warps, c.num_stages) in chosen
    ]


def _tuned(kernel, flags: tuple[str, ...], restored: tuple[str, ...]):
    if triton.knobs.runtime.interpret:
        return triton.autotune(_configs([_INTERPRETED]), key=[])(kernel)
    return triton.autotune(
        _configs(_HALF + _FULL),
        key=[*flags, "D", "D_V", "span"],
        restore_value=list(restored),  # timing repeats a launch that may add to what is there
        prune_configs_by={"early_config_prune": _fitting},
        cache_results=True,
    )(kernel)


forward = _tuned(by_query.forward, ("INSIDE", "OUTSIDE", "TAKEN", "MERGES"), ("out", "lse"))
query_gradient = _tuned(
    by_query.query_gradient, ("INSIDE", "OUTSIDE", "TAKEN", "MERGES"), ("d_q",)
)
key_gradients = _tuned(by_key.key_gradients, ("SOURCE", "TAKEN", "ADDS"), ("d_k", "d_v"))
row_products = by_key.row_products
