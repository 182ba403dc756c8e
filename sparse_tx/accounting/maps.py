"""What attention for feature maps costs: parameters, multiply-accumulates and attention maps.

The convention is that of the published tables: a MAC is one multiplication with its addition, in
convolutions, linear layers and products between positions or between channels. Pooling, norms,
softmax, sigmoids, biases, the product of a gate with its map and residual sums are not counted, and
with this alone the printed digits come out. FLOPs are twice the MACs. The papers on SE and CBAM
print MACs and call them FLOPs; CCNet prints FLOPs.

All figures are of one map, forward. Sources: Squeeze-and-Excitation arXiv:1709.01507, CBAM
arXiv:1807.06521, non-local arXiv:1711.07971, DANet arXiv:1809.02983, CCNet arXiv:1811.11721.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from sparse_tx.accounting.heads import require_count
from sparse_tx.errors import UserError, nearest
from sparse_tx.patterns import Layer, Stack
from sparse_tx.patterns.given import PatternLike, as_stack, require_width

FLOAT32_BYTES = 4
DESCRIPTORS = ("pool", "conv")
SIMILARITIES = ("gaussian", "embedded", "dot", "concat")
SUBSAMPLES = ("before", "after")


@dataclass(frozen=True)
class MapShape:
    """A feature map.

    Attributes:
        sizes: of its axes, in positions: (H, W), or one of a line or three of a video.
        channels: numbers at every position.

    Raises:
        UserError: a size or the number of channels is no whole number above 0, or there is no axis.
    """

    sizes: tuple[int, ...]
    channels: int

    def __post_init__(self):
        if not self.sizes:
            raise UserError("a map without axes has no positions; give its sizes, such as (97, 97)")
        for size in self.sizes:
            require_count("the size of a map", size, "positions")
        require_count("channels", self.channels, "channels")

    @property
    def positions(self) -> int:
        """N, the positions of all axes together."""
        return prod(self.sizes)

    @property
    def width(self) -> int:
        """Positions of a row, the last axis."""
        return self.sizes[-1]

    def __str__(self) -> str:
        return "x".join(map(str, (*self.sizes, self.channels)))


@dataclass(frozen=True, kw_only=True)
class MapCost:
    """What a module costs for one map, forward.

    Attributes:
        parameters: weights, biases, and scales and shifts of norms.
        weight_macs: MACs of convolutions and linear layers.
        pair_macs: MACs of products between positions, or between channels.
        attention_map: numbers of the matrix between those products, where it is held whole: one for
            each pair of positions that meet (channels, where these meet), over all steps.
    """

    parameters: int = 0
    weight_macs: int = 0
    pair_macs: int = 0
    attention_map: int = 0

    def __add__(self, other: "MapCost") -> "MapCost":
        return MapCost(
            parameters=self.parameters + other.parameters,
            weight_macs=self.weight_macs + other.weight_macs,
            pair_macs=self.pair_macs + other.pair_macs,
            attention_map=self.attention_map + other.attention_map,
        )

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return self.weight_macs + self.pair_macs

    @property
    def flops(self) -> int:
        """All floating-point operations: a multiplication and an addition for each MAC."""
        return 2 * self.macs

    @property
    def attention_map_bytes(self) -> int:
        """Bytes of the attention map in float32."""
        return self.attention_map * FLOAT32_BYTES


def convolution(
    shape: MapShape,
    out_channels: int | None = None,
    *,
    kernel_size: int = 3,
    bias: bool = False,
) -> MapCost:
    """A convolution that leaves the map its size: the yardstick.

    Args:
        shape: of the map.
        out_channels: of the result; as many as go in when not given.
        kernel_size: along every axis.
        bias: whether there is one for every channel.
    """
    out = shape.channels if out_channels is None else out_channels
    require_count("out_channels", out, "channels")
    require_count("kernel_size", kernel_size, "positions")
    weights = kernel_size ** len(shape.sizes) * shape.channels * out
    return MapCost(parameters=weights + bias * out, weight_macs=shape.positions * weights)


def squeeze_excite(shape: MapShape, reduction: int = 16, *, bias: bool = True) -> MapCost:
    """``2 C^2 / r`` MACs whatever the map's size, and as many weights beside the biases.

    Raises:
        UserError: ``reduction`` does not divide the channels.
    """
    return channel_gate(shape, reduction, pools=("avg",), bias=bias)


def channel_gate(
    shape: MapShape,
    reduction: int = 16,
    *,
    pools: Sequence[str] = ("avg", "max"),
    shared: bool = True,
    bias: bool = True,
) -> MapCost:
    """CBAM's gate for channels: an MLP that runs once for every pool.

    Args:
        shape: of the map.
        reduction: how many times narrower the hidden layer is.
        pools: what the MLP is given.
        shared: whether the pools share one MLP; else each has its own.
        bias: whether linear layers have biases.

    Raises:
        UserError: ``reduction`` does not divide the channels.
    """
    hidden = _divided(shape.channels, reduction)
    weights = 2 * shape.channels * hidden
    mlps = 1 if shared else len(pools)
    return MapCost(
        parameters=mlps * (weights + bias * (shape.channels + hidden)),
        weight_macs=len(pools) * weights,
    )


def spatial_gate(
    shape: MapShape, kernel_size: int = 7, *, descriptor: str = "pool", norm: bool = True
) -> MapCost:
    """CBAM's gate for positions: a convolution over what describes each of them.

    Args:
        shape: of the map.
        kernel_size: of the convolution.
        descriptor: "pool", the maximum and the mean over channels, or "conv", a learnt 1x1
            convolution to one number.
        norm: whether a batch norm follows.
    """
    require_count("kernel_size", kernel_size, "positions")
    _require_word("descriptor", descriptor, DESCRIPTORS)
    learnt = shape.channels if descriptor == "conv" else 0
    kernel = kernel_size ** len(shape.sizes) * (1 if descriptor == "conv" else 2)
    return MapCost(
        parameters=learnt + kernel + 2 * norm,
        weight_macs=shape.positions * (learnt + kernel),
    )


def non_local(
    shape: MapShape,
    inner: int | None = None,
    *,
    similarity: str = "embedded",
    norm: bool = True,
    subsample: str | None = None,
    factor: int = 2,
    pattern: PatternLike | None = None,
) -> MapCost:
    """The non-local block: every position asks all others, in a space half as wide.

    At half the width the products between positions take ``N^2 C`` MACs. The dot product, which has
    no softmax, is taken as ``theta (phi g)`` with ``2 N (C/2)^2`` MACs. Concat adds a number of the
    query to one of the key, and takes one product of pairs where the others take two.

    Args:
        shape: of the map.
        inner: width of theta, phi and g; half the channels when not given.
        similarity: "gaussian" (neither theta nor phi, and scores as wide as the map), "embedded",
            "dot" or "concat".
        norm: whether a norm follows the last convolution.
        subsample: None; "after" pools phi and g, "before" the map that they are computed of.
        factor: edge of that pool, see ``pooled``.
        pattern: which positions meet, in one layer, for a softmax and without subsampling; all
            when not given.

    Raises:
        UserError: the channels are odd and no ``inner`` is given, or the pattern is for maps of
            another width, of several layers, or given where it cannot be.
    """
    C, N = shape.channels, shape.positions
    _require_word("similarity", similarity, SIMILARITIES)
    if subsample is not None:
        _require_word("subsample", subsample, SUBSAMPLES)
    if pattern is not None:
        pattern = as_stack(pattern)
        check_pattern_of_non_local(pattern, similarity, subsample)
    inner = _divided(C, 2) if inner is None else inner
    require_count("inner", inner, "channels")
    keys = N if subsample is None else pooled(shape, factor).positions
    projected = keys if subsample == "before" else N
    # Of phi and g, and of theta and the way back; gaussian has only g and the way back.
    of_keys, of_queries = (1, 1) if similarity == "gaussian" else (2, 2)
    parameters = (of_keys + of_queries - 1) * (C + 1) * inner + (inner + 1) * C + 2 * norm * C
    weight_macs = (of_keys * projected + of_queries * N) * C * inner
    if similarity == "concat":
        parameters += 2 * inner
        weight_macs += (N + keys) * inner
    if similarity == "dot":
        return MapCost(
            parameters=parameters,
            weight_macs=weight_macs,
            pair_macs=(N + keys) * inner**2,
            attention_map=inner**2,
        )
    pairs = N * keys if pattern is None else sum(pairs_of_steps(pattern, shape))
    width_of_scores = {"gaussian": C, "embedded": inner, "concat": 0}[similarity]
    return MapCost(
        parameters=parameters,
        weight_macs=weight_macs,
        pair_macs=pairs * (width_of_scores + inner),
        attention_map=pairs,
    )


def check_pattern_of_non_local(steps: Stack, similarity: str, subsample: str | None) -> None:
    """Raise a ``UserError`` where a non-local block cannot follow the pattern ``steps``."""
    if similarity in ("dot", "concat"):
        raise UserError(
            f"similarity '{similarity}' of NonLocal cannot follow the pattern '{steps}', which"
            " needs a softmax; take 'embedded' or 'gaussian', or leave the pattern out"
        )
    if subsample is not None:
        raise UserError(
            f"NonLocal with subsample '{subsample}' reads positions of a smaller map, which the"
            f" pattern '{steps}' does not number; leave one of the two out"
        )
    if len(steps.layers) > 1:
        raise UserError(
            f"the pattern '{steps}' has {len(steps.layers)} layers, but NonLocal is one step; put"
            " one block for each after another"
        )


def position_attention(
    shape: MapShape,
    reduction: int = 8,
    *,
    pattern: PatternLike = "dense",
) -> MapCost:
    """DANet's attention between positions; with a criss-cross pattern, CCNet's.

    Queries and keys have ``C / reduction`` channels and values C. Each layer of the pattern is one
    step with the same weights, which projects the result of the step before.

    Raises:
        UserError: ``reduction`` does not divide the channels, or the pattern is for maps of another
            width.
    """
    C, inner = shape.channels, _divided(shape.channels, reduction)
    pairs = pairs_of_steps(pattern, shape)
    return MapCost(
        parameters=2 * (C + 1) * inner + (C + 1) * C + 1,
        weight_macs=len(pairs) * shape.positions * C * (2 * inner + C),
        pair_macs=sum(pairs) * (inner + C),
        attention_map=sum(pairs),
    )


def channel_attention(shape: MapShape) -> MapCost:
    """DANet's attention between channels: the Gram matrix, and its product with the map."""
    C = shape.channels
    return MapCost(parameters=1, pair_macs=2 * C * C * shape.positions, attention_map=C * C)


def pairs_of_steps(pattern: PatternLike, shape: MapShape) -> tuple[int, ...]:
    """The pairs of positions that meet in every step of a pattern, exactly.

    Args:
        pattern: notation, or what it stands for; its layers are steps, each of one head.
        shape: of the map, whose rows follow one another.

    Raises:
        UserError: the pattern has several groups of heads, or is for maps of another width.
    """
    layers = as_stack(pattern).layers
    known: dict[Layer, int] = {}
    for layer in layers:
        if layer in known:
            continue
        if len(layer.groups) > 1:
            raise UserError(
                f"'{layer}' has {len(layer.groups)} groups of heads, and attention for maps has one"
                " head; merge sets by '+', or apply them in turn by ','"
            )
        head = layer.at(0, 1)
        require_width(head, shape.sizes)
        known[layer] = head.count_pairs(shape.positions, causal=False)
    return tuple(known[layer] for layer in layers)


def pooled(shape: MapShape, factor: int = 2) -> MapShape:
    """The map after a pool whose windows do not overlap; those at the far edges may be cut.

    The first of three axes is time, which stays whole.
    """
    require_count("factor", factor, "positions")
    time, space = shape.sizes[:-2], shape.sizes[-2:]
    return MapShape((*time, *(-(-size // factor) for size in space)), shape.channels)


def _divided(channels: int, reduction: int) -> int:
    """The channels that are left after a reduction that divides them."""
    require_count("reduction", reduction, "times")
    if channels % reduction:
        raise UserError(
            f"a reduction of {reduction} does not divide {channels} channels; give a number of"
            f" channels that {reduction} divides, or another reduction"
        )
    return channels // reduction


def _require_word(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(
            f"unknown {name} '{value}': {nearest(value, known)}it is one of {', '.join(known)}"
        )
