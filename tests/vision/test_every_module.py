"""What holds for all modules: shapes, types, layouts, identities, symmetries, sizes, memory."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparse_tx.vision
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
from tests.vision.helpers import (
    CHANNELS,
    IDENTITIES,
    MODULES,
    assert_close,
    draw,
    head,
    randomised,
)

WITH_PATTERN = ("non-local, local", "position, strided")
every_module = pytest.mark.parametrize("name", MODULES)


@every_module
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 3), (7, 11), (16, 8)])
def test_any_height_and_width(name, shape):
    x = draw(3, CHANNELS, *shape)
    out = randomised(MODULES[name]())(x)
    assert isinstance(out, torch.Tensor)
    assert out.shape == x.shape and out.isfinite().all()


@every_module
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_type_of_numbers(name, dtype):
    x = draw(2, CHANNELS, 5, 7) / 4  # energies of about 1, whose errors a softmax hands on
    expected = randomised(MODULES[name]())(x)
    found = MODULES[name]().to(dtype).eval()
    found.load_state_dict(randomised(MODULES[name]()).state_dict())
    out = found(x.to(dtype))
    assert out.dtype == dtype
    assert_close(out.double(), expected, within=32 * torch.finfo(dtype).eps)


@every_module
def test_under_autocast_the_result_has_the_input_s_type(name):
    module = randomised(MODULES[name]()).float()
    x = draw(2, CHANNELS, 5, 7, dtype=torch.float32) / 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
        half = module(x.bfloat16())
    assert out.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert_close(out, module(x), within=32 * torch.finfo(torch.bfloat16).eps)


@every_module
def test_a_backward_pass_under_autocast(name):
    module = randomised(MODULES[name]()).float()
    x = (draw(2, CHANNELS, 5, 7, dtype=torch.float32) / 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(module(x).square().sum(), x)
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    assert found.dtype == torch.float32
    assert_close(found, expected, within=64 * torch.finfo(torch.bfloat16).eps)


@every_module
def test_layout_of_memory_stays(name):
    module, x = randomised(MODULES[name]()), draw(2, CHANNELS, 5, 7)
    rows, channels = module(x), module(x.to(memory_format=torch.channels_last))
    assert rows.is_contiguous()
    assert channels.is_contiguous(memory_format=torch.channels_last)
    assert_close(channels, rows)
    assert_close(module(x.transpose(2, 3)), module(x.transpose(2, 3).contiguous()))


@pytest.mark.parametrize("name", [name for name in MODULES if name not in WITH_PATTERN])
def test_shapes_alone_on_the_meta_device(name):
    with torch.device("meta"):
        module = MODULES[name]()
        out = module(torch.empty(2, CHANNELS, 5, 7))
    assert out.is_meta and out.shape == (2, CHANNELS, 5, 7)


@every_module
def test_maps_of_a_batch_do_not_know_each_other(name):
    module, x = randomised(MODULES[name]()), draw(3, CHANNELS, 5, 7)
    assert_close(module(x)[1:2], module(x[1:2]))


@every_module
def test_the_input_stays_as_it_is(name):
    x = draw(2, CHANNELS, 5, 7)
    before = x.clone()
    randomised(MODULES[name]())(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", IDENTITIES)
def test_identity_at_the_start_to_the_bit(name, dtype, training):
    module, x = MODULES[name]().to(dtype).train(training), draw(2, CHANNELS, 5, 7, dtype=dtype)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in IDENTITIES])
def test_gates_keep_signs_and_never_grow_a_number(name):
    x = draw(2, CHANNELS, 5, 7)
    share = randomised(MODULES[name]())(x) / x
    assert (share > 0).all() and (share < 1).all()


def permuted(x, seed=5):
    order = torch.randperm(x.shape[2] * x.shape[3], generator=torch.Generator().manual_seed(seed))
    return x.flatten(2)[:, :, order].unflatten(2, x.shape[2:])


# Convolutions over positions, pools of blocks and patterns know places; the others do not.
PLACELESS = [
    name
    for name in MODULES
    if not name.startswith(("spatial", "cbam"))
    and name not in (*WITH_PATTERN, "non-local, before", "non-local, after")
]


@pytest.mark.parametrize("name", PLACELESS)
def test_permuted_positions_are_permuted_results(name):
    module, x = randomised(MODULES[name]()), draw(2, CHANNELS, 5, 7)
    assert_close(module(permuted(x)), permuted(module(x)))


@pytest.mark.parametrize("name", sorted({*MODULES} - {*PLACELESS}))
def test_places_matter_to_the_others(name):
    module, x = randomised(MODULES[name]()), draw(2, CHANNELS, 5, 7)
    assert not torch.allclose(module(permuted(x)), permuted(module(x)))


@pytest.mark.parametrize("name", ["spatial gate", "spatial gate, k3"])
def test_the_pooled_spatial_gate_does_not_know_channels_apart(name):
    module, x = randomised(MODULES[name]()), draw(2, CHANNELS, 5, 7)
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(5))
    assert_close(module(x[:, order]), module(x)[:, order])


@pytest.mark.parametrize("form", ["reversed", "plain", "scaled"])
def test_permuted_channels_are_permuted_results_of_channel_attention(form):
    module, x = randomised(ChannelAttention(form)), draw(2, CHANNELS, 5, 7)
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(5))
    assert_close(module(x[:, order]), module(x)[:, order])


@pytest.mark.parametrize(
    ("name", "margin"), [("spatial gate", 3), ("spatial gate, k3", 1), ("spatial gate, conv", 2)]
)
def test_a_shifted_map_is_a_shifted_result_inside(name, margin):
    """As far from the border as the kernel reaches."""
    module, x = randomised(MODULES[name]()), draw(2, CHANNELS, 17, 19)
    shifted = module(x.roll((1, 2), (2, 3)))[:, :, 1:, 2:]
    original = module(x)[:, :, :-1, :-2]
    inside = (slice(None), slice(None), slice(margin, -margin), slice(margin, -margin))
    assert_close(shifted[inside], original[inside])
    assert not torch.allclose(shifted, original)


@pytest.mark.parametrize("pattern", ["rows:7", "columns:7", "crisscross:7"])
def test_a_map_rolled_around_is_a_result_rolled_around(pattern):
    """Rows and columns are the same sets wherever they stand."""
    module, x = randomised(PositionAttention(CHANNELS, 5, pattern=pattern)), draw(2, CHANNELS, 5, 7)
    assert_close(module(x.roll((2, 3), (2, 3))), module(x).roll((2, 3), (2, 3)))


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_numbers_of_parameters():
    """At C = 64, r = 16: CBAM is 580 of the channel gate and 100 of the spatial one."""
    assert parameters(CBAM(64)) == 680
    assert parameters(ChannelGate(64)) == 580 == parameters(SqueezeExcite(64))
    assert parameters(SpatialGate()) == 100
    assert parameters(SpatialGate(norm=False)) == 98
    assert parameters(NonLocal(64)) == 8480
    assert parameters(PositionAttention(64)) == 5201
    assert parameters(ChannelAttention()) == 1
    for C, r in ((64, 16), (35, 5), (26, 13)):
        assert parameters(SqueezeExcite(C, r)) == 2 * C**2 // r + C + C // r
        assert parameters(SqueezeExcite(C, r, bias=False)) == 2 * C**2 // r
        unshared = ChannelGate(C, r, shared=False)
        assert parameters(unshared) == 2 * parameters(ChannelGate(C, r))
        conv = SpatialGate(3, descriptor="conv", channels=C, norm=False)
        assert parameters(conv) == C + 9
    assert parameters(NonLocal(64, similarity="gaussian")) == 8480 - 2 * (64 * 32 + 32)
    assert parameters(NonLocal(64, similarity="concat")) == 8480 + 64
    assert parameters(NonLocal(64, similarity="dot")) == 8480
    assert parameters(NonLocal(64, norm=False)) == 8480 - 128


@pytest.mark.parametrize("pattern", ["rows:7,columns:7", "crisscross:7*2", "tiles:7:2,lattice:7:2"])
def test_a_pattern_adds_no_parameters_and_no_numbers_to_the_state(pattern):
    with_pattern = PositionAttention(CHANNELS, 5, pattern=pattern)
    assert with_pattern.state_dict().keys() == PositionAttention(CHANNELS, 5).state_dict().keys()


def test_every_exported_class_can_be_built_and_gives_tensors():
    """Public versions have modules that cannot be constructed, name what is not defined, or
    return None from forward."""
    made = {type(make()) for make in MODULES.values()} | {DualAttentionHead}
    exported = {getattr(sparse_tx.vision, name) for name in sparse_tx.vision.__all__}
    classes = {cls for cls in exported if isinstance(cls, type)}
    assert {cls for cls in classes if issubclass(cls, nn.Module)} == made
    outputs = randomised(head())(draw(2, 20, 5, 7))
    assert all(isinstance(output, torch.Tensor) for output in outputs)


def test_softmaxes_are_applied():
    """A public block computes its softmax's input and never the softmax: with values that are
    all one, whatever is read is one."""
    for pattern in (None, "rows:7", "crisscross:7"):
        module = randomised(PositionAttention(CHANNELS, 5, pattern=pattern))
        nn.init.zeros_(module.value.weight)
        nn.init.ones_(module.value.bias)
        x = draw(2, CHANNELS, 5, 7)
        assert_close(module(x) - x, module.alpha.detach().expand(x.shape))
    for similarity in ("gaussian", "embedded"):
        block = randomised(NonLocal(CHANNELS, 7, similarity=similarity, norm=False))
        nn.init.zeros_(block.g.weight)
        nn.init.ones_(block.g.bias)
        read = block.project.weight.sum((1, 2, 3)) + block.project.bias
        assert_close((block(x) - x).detach(), read[:, None, None].detach().expand(x.shape))


class Largest(TorchDispatchMode):
    """The size in numbers of the largest tensor that any operator gives."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return out


H, W = 31, 37
N = H * W


@pytest.mark.parametrize(
    "make",
    [
        lambda: PositionAttention(CHANNELS, 5, pattern="rows:37,columns:37"),
        lambda: PositionAttention(CHANNELS, 5, pattern="crisscross:37*2"),
        lambda: PositionAttention(CHANNELS, 5, pattern="tiles:37:8,lattice:37:8"),
        lambda: PositionAttention(CHANNELS, 5, pattern="local:64"),
        lambda: NonLocal(CHANNELS, 7, pattern="rows:37"),
        lambda: NonLocal(CHANNELS, 7, similarity="dot"),
        lambda: ChannelAttention(),
    ],
)
def test_no_map_of_all_pairs(make):
    x = draw(1, CHANNELS, H, W, dtype=torch.float32).requires_grad_()
    module = make()
    with Largest() as largest:
        module(x).sum().backward()
    assert CHANNELS * N <= largest.numbers < N * N / 4


@pytest.mark.parametrize(
    "make",
    [
        lambda pattern: PositionAttention(CHANNELS, 5, pattern=pattern),
        lambda pattern: NonLocal(CHANNELS, 7, similarity="gaussian", pattern=pattern),
        lambda pattern: DualAttentionHead(4 * CHANNELS, 7, reduction=5, pattern=pattern),
    ],
)
def test_the_dense_pattern_is_all_pairs_without_a_map_of_them(make):
    """As docstrings say: without a pattern a CPU keeps the map, and with "dense" it does not."""
    torch.manual_seed(3)
    plain = make(None)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    dense = make("dense")
    dense.load_state_dict(plain.state_dict())
    channels = plain.channels
    x = draw(1, channels, H, W, dtype=torch.float32).requires_grad_()
    plain, dense = plain.eval(), dense.eval()
    kept, expected = kept_for_the_backward_pass(plain, x)
    none, found = kept_for_the_backward_pass(dense, x)
    assert (kept, none) == (N * N, 0)
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert_close(one, other, within=1e-5)


def kept_for_the_backward_pass(module, x):
    """Numbers of distinct memory that autograd keeps of as many as all pairs or more."""
    kept = {}

    def keep(tensor):
        if tensor.numel() >= N * N:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
    return sum(tensor.numel() for tensor in kept.values()), out


@pytest.mark.parametrize(
    "make",
    [
        lambda: PositionAttention(CHANNELS, 5),
        lambda: NonLocal(CHANNELS, 7, similarity="gaussian"),
        lambda: NonLocal(CHANNELS, 7, similarity="concat"),
    ],
)
def test_a_map_of_all_pairs_is_kept_once(make):
    x = draw(1, CHANNELS, H, W, dtype=torch.float32).requires_grad_()
    numbers, _ = kept_for_the_backward_pass(make(), x)
    assert numbers == N * N


def test_pairs_of_concat_have_one_number_each():
    x = draw(1, CHANNELS, H, W, dtype=torch.float32)
    with Largest() as largest:
        NonLocal(CHANNELS, 7, similarity="concat")(x)
    assert largest.numbers == N * N


@pytest.mark.parametrize("pattern", [None, "crisscross:7"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_energies_of_half_precision_are_float32(dtype, pattern):
    """Energies of about 70,000 are infinite in float16 and 512 apart in bfloat16."""
    module = randomised(PositionAttention(CHANNELS, 5, pattern=pattern)).to(dtype)
    with torch.no_grad():
        module.query.bias.fill_(150.0)
        module.key.bias.fill_(150.0)
        module.alpha.fill_(1.0)
        module.value.weight.zero_()
        module.value.weight[0, 0] = 1.0
    x = draw(1, CHANNELS, 5, 7).to(dtype)
    # The same, from the projections on, in float64: only energies and what follows are compared.
    q, k, v = (
        project(x).double().flatten(2) for project in (module.query, module.key, module.value)
    )
    energies = q.transpose(1, 2) @ k
    assert energies.abs().max() > torch.finfo(torch.float16).max
    if pattern:
        at = torch.arange(35)
        allowed = module.pattern.at(0, 0, 1).allows(at[:, None], at[None, :], causal=False)
        energies = energies.masked_fill(~allowed, -torch.inf)
    read = (v @ energies.softmax(2).transpose(1, 2)).unflatten(2, (5, 7))
    # Float32 has steps of 1/128 there, and a few of them make a weight wrong by some per cent.
    assert_close(module(x).double(), x.double() + read, within=0.05)


def test_what_is_printed_says_who_reads_whom():
    attention = PositionAttention(CHANNELS, 5, pattern="rows:7,columns:7")
    assert "pattern=rows:7,columns:7" in str(attention)
    assert str(ChannelAttention("scaled")) == "ChannelAttention(form=scaled)"
    assert "similarity=gaussian, pattern=rows:7\n" in str(
        NonLocal(CHANNELS, 7, similarity="gaussian", pattern="rows:7")
    )
