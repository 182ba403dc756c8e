"""What cannot be used gets one sentence: with the value, the limit and the way out."""

import pytest
import torch

from sparse_tx.errors import UserError
from sparse_tx.patterns import Rows, parse_layer
from sparse_tx.vision import (
    CBAM,
    ChannelAttention,
    ChannelGate,
    DualAttentionHead,
    NonLocal,
    PositionAttention,
    SpatialGate,
    SqueezeExcite,
)
from tests.vision.helpers import MODULES


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: SqueezeExcite(64, 10),
            "reduction 10 of SqueezeExcite does not divide its 64 channels; take one that does,"
            " such as 8",
        ),
        (lambda: SqueezeExcite(8), "reduction 16 of SqueezeExcite does not divide its 8 channels"),
        (lambda: SqueezeExcite(8), "such as 8"),
        (lambda: SqueezeExcite(0), "channels of SqueezeExcite is 0; it must be a whole number, 1"),
        (lambda: SqueezeExcite(64, 0), "reduction of SqueezeExcite is 0"),
        (lambda: SqueezeExcite(64.0), "channels of SqueezeExcite is 64.0; it must be a whole"),
        (lambda: SqueezeExcite(64, True), "reduction of SqueezeExcite is True"),
        (lambda: ChannelGate(30, 4), "reduction 4 of ChannelGate does not divide its 30 channels"),
        (lambda: ChannelGate(64, pools=()), "pools of ChannelGate is (); give one or both of"),
        (lambda: ChannelGate(64, pools="avg"), "pools of ChannelGate is 'avg'"),
        (lambda: ChannelGate(64, pools=("avg", "avg")), "once each"),
        (lambda: ChannelGate(64, pools=("avg", "mix")), "unknown pool 'mix' of ChannelGate: "),
        (lambda: ChannelGate(64, pools=("mean",)), "it is one of avg, max"),
        (
            lambda: SpatialGate(6),
            "kernel_size of SpatialGate is 6; an even kernel shifts the map, take 5 or 7",
        ),
        (lambda: SpatialGate(0), "kernel_size of SpatialGate is 0; it must be a whole number"),
        (lambda: SpatialGate(-3), "kernel_size of SpatialGate is -3"),
        (lambda: SpatialGate((7, 7)), "kernel_size of SpatialGate is (7, 7)"),
        (
            lambda: SpatialGate(descriptor="pools"),
            "unknown descriptor 'pools' of SpatialGate: did you mean 'pool'? it is one of pool,",
        ),
        (lambda: SpatialGate(descriptor="conv"), "give channels=..., the number of them"),
        (lambda: SpatialGate(channels=0), "channels of SpatialGate is 0"),
        (
            lambda: CBAM(64, order="spatial_first"),
            "unknown order 'spatial_first' of CBAM: did you mean 'spatial",
        ),
        (lambda: CBAM(64, 48), "reduction 48 of ChannelGate does not divide its 64 channels"),
        (lambda: CBAM(64, 48), "such as 32"),
        (lambda: CBAM(64, kernel_size=4), "take 3 or 5"),
        (lambda: CBAM(-1, order="spatial"), "channels of CBAM is -1"),
        # What the gate that is left out would refuse.
        (lambda: CBAM(64, order="channel", kernel_size=4), "kernel_size of SpatialGate is 4"),
        (lambda: CBAM(64, order="channel", descriptor="pol"), "did you mean 'pool'?"),
        (lambda: CBAM(64, 7, order="spatial"), "reduction 7 of ChannelGate does not divide its 64"),
        (lambda: CBAM(64, 0, order="spatial"), "reduction of CBAM is 0"),
        (lambda: CBAM(64, order="spatial", pools="avg"), "pools of ChannelGate is 'avg'"),
        (lambda: CBAM(64, order="spatial", pools=("mix",)), "unknown pool 'mix'"),
        (
            lambda: NonLocal(15),
            "NonLocal is half as wide inside, but its 15 channels are odd; give inner=..., such"
            " as 7",
        ),
        (lambda: NonLocal(1), "such as 1"),
        (lambda: NonLocal(16, 0), "inner of NonLocal is 0"),
        (lambda: NonLocal(16, dims=4), "dims of NonLocal is 4; positions have 1, 2 or 3 axes"),
        (
            lambda: NonLocal(16, similarity="embeded"),
            "unknown similarity 'embeded' of NonLocal: did you mean 'embedded'?",
        ),
        (lambda: NonLocal(16, subsample="behind"), "unknown subsample 'behind' of NonLocal: "),
        (lambda: NonLocal(16, subsample="after", factor=0), "factor of NonLocal is 0"),
        (
            lambda: NonLocal(16, similarity="dot", scale=0.5),
            "scale of NonLocal is 0.5, but similarity 'dot' is divided by the number of positions",
        ),
        (lambda: NonLocal(16, scale=float("inf")), "scale of NonLocal is inf; it must be a finite"),
        (lambda: NonLocal(16, scale="1"), "scale of NonLocal is '1'"),
        (
            lambda: NonLocal(16, similarity="concat", pattern="rows:7"),
            "similarity 'concat' of NonLocal cannot follow the pattern 'rows:7', which needs a"
            " softmax; take 'embedded' or 'gaussian', or leave the pattern out",
        ),
        (lambda: NonLocal(16, similarity="dot", pattern="rows:7"), "similarity 'dot' of NonLocal"),
        (
            lambda: NonLocal(16, subsample="before", pattern="rows:7"),
            "NonLocal with subsample 'before' reads positions of a smaller map",
        ),
        (
            lambda: NonLocal(16, pattern="rows:7,columns:7"),
            "the pattern 'rows:7,columns:7' has 2 layers, but NonLocal is one step",
        ),
        (lambda: NonLocal(16, pattern="rows:7/columns:7"), "has 2 groups of heads, but the module"),
        (
            lambda: PositionAttention(60),
            "reduction 8 of PositionAttention does not divide its 60 channels; take one that does,"
            " such as 6",
        ),
        (lambda: PositionAttention(4), "such as 4"),
        (lambda: PositionAttention(64, pattern="row:7"), "did you mean 'rows'?"),
        (lambda: PositionAttention(64, pattern=""), "the pattern is ''"),
        (
            lambda: PositionAttention(64, pattern="rows:7,rows:7/columns:7"),
            "'rows:7/columns:7' in the pattern of PositionAttention has 2 groups of heads, but the"
            " module has one head; merge sets by '+' or apply them in turn by ','",
        ),
        (lambda: ChannelAttention("reverse"), "did you mean 'reversed'?"),
        (lambda: DualAttentionHead(66, 7), "4 does not divide its 66 channels; give inner=..."),
        (lambda: DualAttentionHead(64, 0), "classes of DualAttentionHead is 0"),
        (lambda: DualAttentionHead(64, 7, dropout=1.5), "dropout of DualAttentionHead is 1.5"),
        (lambda: DualAttentionHead(48, 7), "reduction 8 of PositionAttention does not divide its"),
    ],
)
def test_arguments_that_cannot_be_used(make, sentence):
    with pytest.raises(UserError) as raised:
        make()
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: PositionAttention(64, pattern=7),
            "pattern of PositionAttention is 7; give a",
        ),
        (lambda: PositionAttention(64, pattern=Rows), "text such as 'rows:64,columns:64'"),
        (lambda: ChannelAttention(3), "form of ChannelAttention is 3; it must be one of the words"),
        (lambda: CBAM(64, order=None), "order of CBAM is None; it must be one of the words"),
        (lambda: ChannelGate(64, pools=(1,)), "pool of ChannelGate is 1"),
    ],
)
def test_arguments_of_the_wrong_type(make, sentence):
    with pytest.raises(UserError) as raised:
        make()
    assert isinstance(raised.value, TypeError)
    assert sentence in str(raised.value)


@pytest.mark.parametrize("name", MODULES)
def test_inputs_of_other_shapes(name):
    module = MODULES[name]()
    for shape, sentence in (
        ((15, 5, 7), "called with shape (15, 5, 7); it takes (B, C, H, W), where x.unsqueeze(0)"),
        ((15, 7), "called with shape (15, 7); it takes (B, C, H, W)"),
        ((2, 15, 3, 5, 7), "called with shape (2, 15, 3, 5, 7); it takes (B, C, H, W)"),
        ((2, 15, 0, 7), "called with shape (2, 15, 0, 7); no dimension may be empty"),
        ((0, 15, 5, 7), "no dimension may be empty"),
    ):
        with pytest.raises(UserError) as raised:
            module(torch.zeros(shape))
        assert sentence in str(raised.value) and type(module).__name__ in str(raised.value)
    for x, sentence in (
        (torch.zeros(2, 15, 5, 7, dtype=torch.long), "with torch.int64; convert it to a floating"),
        ([[1.0]], "called with list; it takes a tensor (B, C, H, W)"),
    ):
        with pytest.raises(TypeError) as raised:
            module(x)
        assert sentence in str(raised.value)


def test_a_reduction_that_nobody_gave_is_not_asked_of_a_spatial_gate_alone():
    assert CBAM(15, order="spatial").channel_gate is None


# With a batch norm of maps.
NORMED = [
    lambda **norm: SpatialGate(**norm),
    lambda **norm: CBAM(15, 5, **norm),
    lambda **norm: CBAM(15, 5, order="parallel", **norm),
    lambda **norm: NonLocal(15, 7, **norm),
    lambda **norm: NonLocal(15, 7, dims=1, **norm),
    lambda **norm: NonLocal(15, 7, dims=3, **norm),
]


@pytest.mark.parametrize("make", NORMED)
def test_one_value_has_no_variance(make):
    module = make()
    shape = (15, *[1] * getattr(module, "dims", 2))
    one = torch.ones(1, *shape)
    with pytest.raises(UserError) as raised:
        module(one)
    assert (
        f"was called in training with shape {(1, *shape)}, one value for each channel, of which its"
        " batch norm has no variance; give a larger batch or map, build it with norm=False, or call"
        " eval()"
    ) in str(raised.value)
    for works in (make(norm=False), make().eval()):
        assert works(one).shape == one.shape
    assert module(torch.ones(2, *shape)).shape == (2, *shape)


def test_one_value_has_no_variance_in_the_head():
    head, one = DualAttentionHead(64, 7), torch.ones(1, 64, 1, 1)
    with pytest.raises(UserError) as raised:
        head(one)
    assert str(raised.value) == (
        "DualAttentionHead was called in training with shape (1, 64, 1, 1), one value for each"
        " channel, of which its batch norm has no variance; give a larger batch or map, or call"
        " eval()"
    )
    assert head(torch.ones(1, 64, 1, 2)).sum.shape == (1, 7, 1, 2)
    assert head.eval()(one).sum.shape == (1, 7, 1, 1)
    # Norms that are frozen, or others in their place, need no variance.
    block = NonLocal(15, 7)
    block.batch_norm.eval()
    assert block(torch.ones(1, 15, 1, 1)).shape == (1, 15, 1, 1)
    block.batch_norm = torch.nn.GroupNorm(3, 15)
    assert block(torch.ones(1, 15, 1, 1)).shape == (1, 15, 1, 1)


ANY_CHANNELS = {"channel", "channel, plain", "channel, scaled", "spatial gate", "spatial gate, k3"}


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ANY_CHANNELS])
def test_inputs_of_other_channels(name):
    module = MODULES[name]()
    with pytest.raises(UserError) as raised:
        module(torch.zeros(2, 13, 5, 7))
    kind = type(module).__name__
    assert f"{kind} was built for 15 channels and called with 13" in str(raised.value)
    assert "build it for 13" in str(raised.value)


def test_inputs_of_other_axes_than_dims():
    with pytest.raises(UserError, match=r"it takes \(B, C, L\)"):
        NonLocal(16, dims=1)(torch.zeros(2, 16, 5, 7))
    with pytest.raises(UserError, match=r"it takes \(B, C, T, H, W\), where x.unsqueeze\(0\)"):
        NonLocal(16, dims=3)(torch.zeros(2, 16, 5, 7))
    with pytest.raises(UserError, match="DualAttentionHead was called with shape"):
        DualAttentionHead(64, 7, reduction=4)(torch.zeros(64, 5, 7))


@pytest.mark.parametrize(
    "pattern", ["rows:9", "columns:9", "crisscross:9", "tiles:9:2", "lattice:9:2", "local:3+rows:9"]
)
def test_patterns_of_maps_of_another_width(pattern):
    sentence = (
        f"pattern of PositionAttention '{pattern}' is for maps with rows of 9 positions, and those"
        " of a map of 5x7 have 7; write 7 for 9"
    )
    for given in (pattern, parse_layer(pattern)):
        with pytest.raises(UserError) as raised:
            PositionAttention(16, pattern=given)(torch.zeros(2, 16, 5, 7))
        assert str(raised.value) == sentence
    with pytest.raises(UserError, match="those of a map of 5x7 have 7"):
        NonLocal(16, pattern=pattern)(torch.zeros(2, 16, 5, 7))
    with pytest.raises(UserError, match="those of a map of 3x5x7 have 7"):
        NonLocal(16, dims=3, pattern=pattern)(torch.zeros(2, 16, 3, 5, 7))


def test_the_second_step_s_width_counts_too():
    with pytest.raises(UserError, match="rows of 5 positions, and those of a map of 5x7 have 7"):
        PositionAttention(16, pattern="rows:7,columns:5")(torch.zeros(2, 16, 5, 7))
    # Sets of no width fit all maps.
    for pattern in ("dense", "local:3", "strided:5", "block:4", "fixed:8:2"):
        PositionAttention(16, pattern=pattern)(torch.zeros(2, 16, 5, 7))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(position=35), "position 35 of PositionAttention: it is 0 to 34 here"),
        (dict(position=-1), "position -1 of PositionAttention"),
        (dict(position=0, step=2), "step 2 of PositionAttention: it is 0 to 1 here"),
    ],
)
def test_positions_and_steps_that_there_are_not(settings, sentence):
    module = PositionAttention(16, pattern="rows:7,columns:7")
    with pytest.raises(UserError) as raised:
        module.weights_of(torch.zeros(2, 16, 5, 7), **settings)
    assert sentence in str(raised.value)
