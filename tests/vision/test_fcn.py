"""The small fully convolutional network against loops, and what its arms have in common."""

import math
from typing import get_type_hints

import numpy as np
import pytest
import torch

from sparse_tx.errors import UserError
from sparse_tx.patterns import parse_pattern
from sparse_tx.vision import PositionAttention
from sparse_tx.vision.fcn import SmallFCN, map_edge
from tests.vision import loops
from tests.vision.helpers import assert_close, draw, randomised, weights_of

ARMS = [
    (position, channel)
    for position in (None, "dense", "rows:5,columns:5", "crisscross:5*2", "tiles:5:2")
    for channel in (None, "reversed", "plain")
]


def convolved(x, weights, name, stride=1):
    """A 3x3 convolution of padding 1, its norm and a ReLU."""
    kernel = weights[f"{name}.0.weight"]
    B, _, H, W = x.shape
    out = np.zeros((B, len(kernel), -(-H // stride), -(-W // stride)))
    for b, o, y, x_ in np.ndindex(*out.shape):
        for i, dy, dx in np.ndindex(*kernel.shape[1:]):
            row, column = y * stride + dy - 1, x_ * stride + dx - 1
            if 0 <= row < H and 0 <= column < W:
                out[b, o, y, x_] += kernel[o, i, dy, dx] * x[b, i, row, column]
    gain, bias, *stats = (
        weights[f"{name}.1.{kind}"] for kind in ("weight", "bias", "running_mean", "running_var")
    )
    return np.maximum(loops.normalised(out, gain, bias, 1e-5, stats), 0)


def enlarged(x, H, W):
    """Bilinear: the value at a pixel's centre between those of the four nearest places."""
    B, C, h, w = x.shape
    out = np.zeros((B, C, H, W))
    for b, c, y, x_ in np.ndindex(*out.shape):
        row = min(max((y + 0.5) * h / H - 0.5, 0), h - 1)
        column = min(max((x_ + 0.5) * w / W - 0.5, 0), w - 1)
        for r, of_row in ((math.floor(row), 1 - row % 1), (math.ceil(row), row % 1)):
            for k, of_column in (
                (math.floor(column), 1 - column % 1),
                (math.ceil(column), column % 1),
            ):
                out[b, c, y, x_] += of_row * of_column * x[b, c, r, k]
    return out


def allowed_of(step):
    """Whether a position reads another, by a set's own definition, on a map 5 wide."""
    return {
        "dense": lambda i, j: True,
        "rows:5": lambda i, j: i // 5 == j // 5,
        "columns:5": lambda i, j: i % 5 == j % 5,
        "crisscross:5": lambda i, j: i // 5 == j // 5 or i % 5 == j % 5,
        "tiles:5:2": lambda i, j: i // 10 == j // 10 and i % 5 // 2 == j % 5 // 2,
        None: lambda i, j: i == j,
    }[step]


STEPS = {"rows:5,columns:5": ["rows:5", "columns:5"], "crisscross:5*2": ["crisscross:5"] * 2}


@pytest.mark.parametrize(("position", "channel"), ARMS)
def test_it_is_its_equations(position, channel):
    model = randomised(
        SmallFCN(3, in_channels=2, channels=6, position=position, channel=channel, reduction=3)
    )
    images, weights = draw(2, 2, 11, 17), weights_of(model)

    x = convolved(images.numpy(), weights, "trunk.0", stride=2)
    x = convolved(x, weights, "trunk.1", stride=2)
    x = convolved(x, weights, "trunk.2")
    assert x.shape == (2, 6, 3, 5)
    left = convolved(x, weights, "position_branch.before")
    name = "position_branch.attention."
    projections = [
        [weights[f"{name}{which}.{kind}"] for kind in ("weight", "bias")]
        for which in ("query", "key", "value")
    ]
    for step in STEPS.get(position, [position]):
        alpha = weights[name + "alpha"][0]
        left = loops.position_step(left, *projections, alpha, allowed_of(step))
    right = convolved(x, weights, "channel_branch.before")
    beta = weights["channel_branch.attention.beta"][0]
    right = right * (1 + beta) if channel is None else loops.channel_step(right, beta, channel)
    both = convolved(left, weights, "position_branch.after")
    both = both + convolved(right, weights, "channel_branch.after")
    logits = loops.mapped(both, weights["classifier.weight"], weights["classifier.bias"])
    assert_close(model(images), enlarged(logits, 11, 17), within=1e-10)


def test_patterns_as_text_stack_layer_and_head():
    stack, images = parse_pattern("rows:5"), draw(2, 1, 11, 17)
    by_text = randomised(SmallFCN(3, channels=8, position="rows:5"))(images)
    for position in (stack, stack.layer(0), stack.at(0, 0, 1)):
        assert torch.equal(randomised(SmallFCN(3, channels=8, position=position))(images), by_text)
    hints = get_type_hints(SmallFCN.__init__)
    assert hints["position"] == get_type_hints(PositionAttention.__init__)["pattern"]


def test_all_arms_have_the_same_weights():
    """Equal in number, in name and, after the same seed, in value."""
    states = []
    for position, channel in ARMS:
        torch.manual_seed(5)
        states.append(SmallFCN(7, channels=16, position=position, channel=channel).state_dict())
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_all_arms_agree_before_training():
    images, found = draw(2, 1, 20, 20, dtype=torch.float32), []
    for position, channel in ARMS:
        torch.manual_seed(5)
        found.append(SmallFCN(7, channels=16, position=position, channel=channel)(images))
    assert all(torch.equal(logits, found[0]) for logits in found[1:])
    assert found[0].std() > 0


def place_of_influence(output, images):
    """The first and last row and column of the image that an output depends on."""
    (gradient,) = torch.autograd.grad(output, images, retain_graph=True)
    rows, columns = (gradient[0, 0].any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    return rows[0], rows[-1], columns[0], columns[-1]


def positive(model):
    """Weights of 1, so that no ReLU hides a path, and energies of 0, so that all keys count."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            nothing = name.endswith("bias") or ".query." in name or ".key." in name
            tensor.fill_(0.0 if nothing else 1.0)
    return model.double().eval()


def test_what_a_position_sees_without_attention():
    """15 x 15 pixels after the trunk and 31 x 31 after a branch, as the docstring has it."""
    model = positive(SmallFCN(2, channels=4, position=None, channel=None, reduction=2))
    images = torch.ones(1, 1, 64, 52, dtype=torch.float64, requires_grad=True)
    features = model.trunk(images)
    assert place_of_influence(features[0, 0, 8, 6], images) == (25, 39, 17, 31)
    after = model.position_branch(features)
    assert place_of_influence(after[0, 0, 8, 6], images) == (17, 47, 9, 39)


@pytest.mark.parametrize(("position", "everywhere"), [(None, False), ("rows:13,columns:13", True)])
def test_attention_alone_brings_what_is_far_away(position, everywhere):
    model = positive(SmallFCN(2, channels=4, position=position, channel=None, reduction=2))
    images = torch.rand(1, 1, 64, 52, dtype=torch.float64, requires_grad=True)
    logits = model(images)
    found = place_of_influence(logits[0, 0, 32, 24], images)
    assert (found == (0, 63, 0, 51)) == everywhere


@pytest.mark.parametrize("pixels", [1, 2, 3, 4, 5, 7, 13, 80])
def test_the_edge_of_the_map(pixels):
    model = SmallFCN(2, channels=8).eval()
    images = torch.zeros(1, 1, pixels, 6)
    assert model.trunk(images).shape == (1, 8, map_edge(pixels), 2)
    assert model(images).shape == (1, 2, pixels, 6)


def test_a_step_of_training_changes_every_weight_that_counts():
    torch.manual_seed(3)
    model = SmallFCN(3, channels=16, position="rows:5,columns:5")
    with torch.no_grad():  # at 0 they keep gradients from what is behind them
        model.position_branch.attention.alpha.fill_(0.5)
        model.channel_branch.attention.beta.fill_(0.5)
    logits = model(draw(2, 1, 20, 20, dtype=torch.float32))
    torch.nn.functional.cross_entropy(logits, torch.randint(3, (2, 20, 20))).backward()
    # A bias of keys adds the same to all energies of a query.
    without = {"position_branch.attention.key.bias"}
    for name, weights in model.named_parameters():
        assert weights.grad.isfinite().all()
        assert name in without or weights.grad.any(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "classes of SmallFCN is 0; it must be a whole number, 1 or more"),
        ({"in_channels": 1.5}, "in_channels of SmallFCN is 1.5"),
        ({"channels": 12}, "reduction 8 of PositionAttention does not divide its 12 channels"),
        ({"position": "row:5"}, "unknown word 'row'"),
        ({"channel": "reverse"}, "unknown form 'reverse' of ChannelAttention"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(UserError, match=message):
        SmallFCN(**{"classes": 2} | settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 20, 20), r"shape \(1, 20, 20\)"),
        ((2, 3, 20, 20), "built for 1 channels and called with 3"),
        ((2, 1, 20, 24), "rows of 5 positions, and those of a map of 5x6 have 6"),
    ],
)
def test_images_that_do_not_fit(shape, message):
    with pytest.raises(UserError, match=message):
        SmallFCN(2, channels=8, position="rows:5")(torch.zeros(shape))
