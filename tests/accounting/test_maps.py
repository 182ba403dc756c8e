"""Costs for feature maps: against loops that count, and the modules' own parameters."""

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.accounting.map_crossovers import (
    numbers_of_spatial_gate,
    positions_of_convolution,
)
from sparse_tx.accounting.maps import (
    MapShape,
    channel_attention,
    channel_gate,
    convolution,
    non_local,
    pairs_of_steps,
    pooled,
    position_attention,
    spatial_gate,
    squeeze_excite,
)
from sparse_tx.errors import UserError
from sparse_tx.patterns import parse_pattern
from sparse_tx.vision import (
    CBAM,
    ChannelAttention,
    ChannelGate,
    NonLocal,
    PositionAttention,
    SpatialGate,
    SqueezeExcite,
)

SIMILARITIES = ("gaussian", "embedded", "dot", "concat")


def own(module) -> int:
    """A module's own number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


class Multiplier:
    """Takes products of matrices by loops and counts the multiplications."""

    def __init__(self):
        self.count = 0

    def product(self, left, right):
        """The product of two matrices, lists of rows."""
        result = [[0] * len(right[0]) for _ in left]
        for r, row in enumerate(left):
            for c in range(len(right[0])):
                for i, value in enumerate(row):
                    result[r][c] += value * right[i][c]
                    self.count += 1
        return result


def ones(rows: int, columns: int) -> list[list[int]]:
    return [[1] * columns for _ in range(rows)]


def transposed(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def windows(sizes: tuple[int, ...], factors: tuple[int, ...]) -> int:
    """How many windows of a pool hold a position, counted by a visit to each position."""
    places = product(*map(range, sizes))
    return len({tuple(p // f for p, f in zip(at, factors, strict=True)) for at in places})


# --- Against loops ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel_size", "out"), [(3, None), (3, 7), (1, 2), (5, 3)])
def test_convolution_by_loops(kernel_size, out):
    height, width, channels = 5, 3, 2
    macs = 0
    weights = set()
    for _ in product(range(height), range(width)):
        for weight in product(
            range(out or channels), range(channels), range(kernel_size), range(kernel_size)
        ):
            weights.add(weight)
            macs += 1
    cost = convolution(MapShape((height, width), channels), out, kernel_size=kernel_size)
    assert (cost.macs, cost.parameters) == (macs, len(weights))
    assert cost.flops == 2 * macs
    biased = convolution(MapShape((5, 3), channels), out, kernel_size=kernel_size, bias=True)
    assert biased.parameters - cost.parameters == (out or channels) and biased.macs == macs


@pytest.mark.parametrize("pools", [("avg",), ("max",), ("avg", "max")])
def test_channel_gate_by_loops(pools):
    loops = Multiplier()
    for _ in pools:
        loops.product(loops.product(ones(1, 15), ones(15, 5)), ones(5, 15))
    cost = channel_gate(MapShape((7, 11), 15), 3, pools=pools)
    assert cost.macs == cost.weight_macs == loops.count
    assert cost.attention_map == 0
    if pools == ("avg",):
        assert squeeze_excite(MapShape((7, 11), 15), 3) == cost


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("descriptor", ["pool", "conv"])
def test_spatial_gate_by_loops(kernel_size, descriptor):
    macs = 0
    for _ in product(range(5), range(3)):
        if descriptor == "conv":
            for _ in range(11):
                macs += 1
        for _ in product(
            range(2 if descriptor == "pool" else 1), range(kernel_size), range(kernel_size)
        ):
            macs += 1
    cost = spatial_gate(MapShape((5, 3), 11), kernel_size, descriptor=descriptor)
    assert cost.macs == macs


@pytest.mark.parametrize("sizes", [(13,), (5, 3), (3, 5, 2)])
@pytest.mark.parametrize("subsample", [None, "before", "after"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_non_local_by_loops(sizes, subsample, similarity):
    channels, inner, factor = 7, 3, 2
    loops, N = Multiplier(), prod(sizes)
    x, factors = ones(N, channels), (factor,) * len(sizes)
    if len(sizes) == 3:
        factors = (1, factor, factor)
    keys = N if subsample is None else windows(sizes, factors)
    read = x[:keys] if subsample == "before" else x
    to_inner = ones(channels, inner)
    q, k = x, read
    if similarity != "gaussian":
        q, k = loops.product(x, to_inner), loops.product(read, to_inner)
    v = loops.product(read, to_inner)
    k, v = k[:keys], v[:keys]
    by_weights = loops.count
    if similarity == "dot":
        middle = loops.product(transposed(k), v)
        y = loops.product(q, middle)
    elif similarity == "concat":
        vector = ones(inner, 1)
        a, b = loops.product(q, vector), loops.product(k, vector)
        by_weights = loops.count
        middle = [[first[0] + second[0] for second in b] for first in a]
        y = loops.product(middle, v)
    else:
        middle = loops.product(q, transposed(k))
        y = loops.product(middle, v)
    by_pairs = loops.count - by_weights
    before_the_end = loops.count
    loops.product(y, ones(inner, channels))
    cost = non_local(
        MapShape(sizes, channels), inner, similarity=similarity, subsample=subsample, factor=factor
    )
    assert cost.weight_macs == by_weights + loops.count - before_the_end
    assert cost.pair_macs == by_pairs
    assert cost.macs == loops.count
    assert cost.attention_map == len(middle) * len(middle[0])


@pytest.mark.parametrize(
    "pattern",
    [
        "dense",
        "rows:3",
        "rows:3,columns:3",
        "crisscross:3*2",
        "local:4",
        "tiles:3:2,lattice:3:2",
        "columns:3+local:2",
        "fixed:3:1",
    ],
)
def test_position_attention_by_loops(pattern):
    height, width, channels, reduction = 5, 3, 14, 7
    loops, N, inner = Multiplier(), height * width, channels // reduction
    x = ones(N, channels)
    by_pairs = pairs = 0
    for layer in parse_pattern(pattern).layers:
        head = layer.at(0, 1)
        q, k = (loops.product(x, ones(channels, inner)) for _ in range(2))
        v = loops.product(x, ones(channels, channels))
        before = loops.count
        for i, j in product(range(N), range(N)):
            if head.allows(i, j, causal=False):
                loops.product([q[i]], transposed([k[j]]))
                loops.product([[1]], [v[j]])
                pairs += 1
        by_pairs += loops.count - before
    cost = position_attention(MapShape((height, width), channels), reduction, pattern=pattern)
    assert (cost.macs, cost.pair_macs, cost.attention_map) == (loops.count, by_pairs, pairs)


def test_channel_attention_by_loops():
    loops, x = Multiplier(), ones(7, 15)  # (C, N)
    gram = loops.product(x, transposed(x))
    loops.product(gram, x)
    cost = channel_attention(MapShape((5, 3), 7))
    assert (cost.macs, cost.attention_map) == (loops.count, len(gram) * len(gram[0]))


@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=3).map(tuple),
    factor=st.integers(1, 5),
)
def test_pool_by_loops(sizes, factor):
    factors = (1, factor, factor) if len(sizes) == 3 else (factor,) * len(sizes)
    assert pooled(MapShape(sizes, 3), factor).positions == windows(sizes, factors)


# --- Against the modules' own parameters --------------------------------------------------------


@given(
    quotient=st.integers(1, 9),
    reduction=st.integers(1, 9),
    pools=st.sampled_from([("avg",), ("max",), ("avg", "max")]),
    shared=st.booleans(),
    bias=st.booleans(),
)
def test_parameters_of_channel_gates(quotient, reduction, pools, shared, bias):
    C = quotient * reduction
    shape = MapShape((5, 3), C)
    gate = ChannelGate(C, reduction, pools=pools, shared=shared, bias=bias)
    cost = channel_gate(shape, reduction, pools=pools, shared=shared, bias=bias)
    assert cost.parameters == own(gate)
    assert squeeze_excite(shape, reduction, bias=bias).parameters == own(
        SqueezeExcite(C, reduction, bias=bias)
    )


@given(
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    descriptor=st.sampled_from(["pool", "conv"]),
    channels=st.integers(1, 30),
    norm=st.booleans(),
)
def test_parameters_of_spatial_gates(kernel_size, descriptor, channels, norm):
    gate = SpatialGate(kernel_size, descriptor=descriptor, channels=channels, norm=norm)
    shape = MapShape((5, 3), channels)
    cost = spatial_gate(shape, kernel_size, descriptor=descriptor, norm=norm)
    assert cost.parameters == own(gate)


@given(
    channels=st.integers(1, 15),
    inner=st.integers(1, 9),
    dims=st.sampled_from([1, 2, 3]),
    similarity=st.sampled_from(SIMILARITIES),
    norm=st.booleans(),
)
def test_parameters_of_non_local_blocks(channels, inner, dims, similarity, norm):
    block = NonLocal(channels, inner, dims=dims, similarity=similarity, norm=norm)
    shape = MapShape((5, 3, 2)[:dims], channels)
    assert non_local(shape, inner, similarity=similarity, norm=norm).parameters == own(block)


@given(quotient=st.integers(1, 9), reduction=st.integers(1, 9))
def test_parameters_of_dual_attention(quotient, reduction):
    C = quotient * reduction
    shape = MapShape((5, 3), C)
    assert position_attention(shape, reduction).parameters == own(PositionAttention(C, reduction))
    assert channel_attention(shape).parameters == own(ChannelAttention()) == 1


def test_parameters_at_64_channels():
    shape = MapShape((7, 5), 64)
    assert channel_gate(shape).parameters == 580
    assert spatial_gate(shape, norm=False).parameters == 98
    assert spatial_gate(shape).parameters == 100
    both = channel_gate(shape) + spatial_gate(shape)
    assert both.parameters == own(CBAM(64)) == 680
    assert non_local(shape).parameters == 8_480
    assert position_attention(shape).parameters == 5_201
    assert channel_attention(shape).parameters == 1


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(), (0, 5), (3, -1), (2.0, 5), (True, 5)])
def test_sizes_that_are_none(sizes):
    with pytest.raises(UserError, match=r"positions|axes"):
        MapShape(sizes, 4)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (lambda shape: MapShape((5, 3), 0), "channels is 0"),
        (lambda shape: squeeze_excite(shape, 5), "5 does not divide 14 channels"),
        (lambda shape: channel_gate(shape, 16), "16 does not divide 14"),
        (lambda shape: channel_gate(shape, 0), "reduction is 0"),
        (lambda shape: position_attention(shape), "8 does not divide 14"),
        (lambda shape: spatial_gate(shape, 0), "kernel_size is 0"),
        (lambda shape: spatial_gate(shape, descriptor="pol"), "did you mean 'pool'"),
        (lambda shape: non_local(MapShape((5, 3), 7)), "2 does not divide 7"),
        (lambda shape: non_local(shape, similarity="dott"), "did you mean 'dot'"),
        (lambda shape: non_local(shape, subsample="befor"), "did you mean 'before'"),
        (lambda shape: non_local(shape, subsample="after", factor=0), "factor is 0"),
        (lambda shape: non_local(shape, 0), "inner is 0"),
        (
            lambda shape: non_local(shape, similarity="dot", pattern="rows:3"),
            "similarity 'dot' of NonLocal cannot follow the pattern 'rows:3'",
        ),
        (
            lambda shape: non_local(shape, similarity="concat", pattern=parse_pattern("rows:3")),
            "similarity 'concat' of NonLocal cannot follow",
        ),
        (
            lambda shape: non_local(shape, subsample="after", pattern="rows:3"),
            "NonLocal with subsample 'after' reads positions of a smaller map",
        ),
        (
            lambda shape: non_local(shape, pattern="rows:3,columns:3"),
            "the pattern 'rows:3,columns:3' has 2 layers, but NonLocal is one step",
        ),
        (lambda shape: convolution(shape, 0), "out_channels is 0"),
        (lambda shape: pairs_of_steps("rows:4", shape), "rows of 4 positions.*write 3"),
        (lambda shape: pairs_of_steps("rows:3/columns:3", shape), "2 groups of heads"),
        (lambda shape: pairs_of_steps("rosw:3", shape), "did you mean 'rows'"),
        (lambda shape: positions_of_convolution(0), "channels is 0"),
        (lambda shape: numbers_of_spatial_gate(0), "kernel_size is 0"),
    ],
)
def test_bad_input_gets_one_sentence(count, words):
    with pytest.raises(UserError, match=words) as caught:
        count(MapShape((5, 3), 14))
    assert "\n" not in str(caught.value)
