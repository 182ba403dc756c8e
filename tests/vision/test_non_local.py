"""The non-local block against loops: four similarities, three numbers of axes, subsampling."""

import pytest
import torch

from sparse_tx.patterns import parse_pattern
from sparse_tx.vision import NonLocal
from tests.vision import loops
from tests.vision.helpers import assert_close, assert_gradients, draw, randomised, weights_of

SHAPES = {1: (2, 6, 13), 2: (2, 6, 5, 7), 3: (2, 6, 2, 3, 5)}
SIMILARITIES = ["gaussian", "embedded", "dot", "concat"]


def expected(module, x, training=False):
    """The block as loops; the pattern's pairs come from its own ``allows``."""
    weights, x = weights_of(module), x.detach().numpy()
    edges = [module.factor] * module.dims
    if module.dims == 3:
        edges[0] = 1  # time stays whole

    def project(maps, name):
        return loops.mapped(maps, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def pool(maps, when):
        return loops.max_pooled(maps, edges) if module.subsample == when else maps

    read = pool(x, "before")
    embedded = module.similarity != "gaussian"
    queries = project(x, "theta") if embedded else x
    keys = pool(project(read, "phi") if embedded else read, "after")
    values = pool(project(read, "g"), "after")
    if module.similarity == "dot":
        rows = loops.dot_rows
    elif module.similarity == "concat":
        rows = loops.concat_rows(weights["pair.weight"][0])
    elif module.pattern is None:
        rows = loops.softmax_rows(module.scale)
    else:
        head = module.pattern.at(0, 0, 1)
        rows = loops.softmax_rows(module.scale, lambda i, j: head.allows(i, j, causal=False))
    z = project(loops.responses(queries, keys, values, rows), "project")
    if module.norm:
        gain, bias, *stats = (
            weights[f"batch_norm.{name}"]
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        z = loops.normalised(z, gain, bias, 1e-5, None if training else stats)
    return x + z


@pytest.mark.parametrize("subsample", [None, "before", "after"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_block_is_its_equation(similarity, dims, subsample):
    module = randomised(NonLocal(6, dims=dims, similarity=similarity, subsample=subsample))
    assert module.inner == 3
    x = draw(*SHAPES[dims])
    assert_close(module(x), expected(module, x))


OPTIONS = [{}, dict(norm=False), dict(scale=1.0), dict(subsample="after", factor=3)]


@pytest.mark.parametrize(
    ("similarity", "settings"),
    [
        (similarity, settings)
        for similarity in SIMILARITIES
        for settings in OPTIONS
        if "scale" not in settings or similarity in ("gaussian", "embedded")
    ],
)
def test_options_are_what_they_say(similarity, settings):
    module, x = randomised(NonLocal(6, 5, similarity=similarity, **settings)), draw(*SHAPES[2])
    assert_close(module(x), expected(module, x))


def test_the_scale_is_that_of_what_is_compared():
    assert NonLocal(6, 4).scale == 1 / 2
    assert NonLocal(9, 4, similarity="gaussian").scale == 1 / 3
    assert NonLocal(6, 4, scale=1).scale == 1.0
    assert NonLocal(6, 4, similarity="dot").scale is None


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_in_training_the_norm_is_that_of_the_batch(dims):
    module, x = randomised(NonLocal(6, dims=dims)).train(), draw(*SHAPES[dims])
    assert_close(module(x), expected(module, x, training=True))


@pytest.mark.parametrize("similarity", ["gaussian", "embedded"])
@pytest.mark.parametrize(
    ("dims", "pattern"),
    [
        (1, "local:3"),
        (1, "strided:4"),
        (2, "rows:7"),
        (2, "columns:7"),
        (2, "crisscross:7"),
        (2, "tiles:7:3"),
        (2, "lattice:7:2"),
        (2, "local:4+columns:7"),
        (2, "dense"),
        (3, "columns:5"),
    ],
)
def test_along_a_pattern(dims, pattern, similarity):
    x = draw(*SHAPES[dims])
    module = randomised(NonLocal(6, dims=dims, similarity=similarity, pattern=pattern))
    assert str(module.pattern) == pattern
    assert_close(module(x), expected(module, x))


def test_patterns_as_text_layer_stack_and_head():
    x, stack = draw(*SHAPES[2]), parse_pattern("rows:7")
    by_text = randomised(NonLocal(6, pattern="rows:7"))(x)
    for pattern in (stack, stack.layer(0), stack.at(0, 0, 1)):
        assert torch.equal(randomised(NonLocal(6, pattern=pattern))(x), by_text)


def test_pooling_before_and_after_are_different_functions():
    x = draw(*SHAPES[2])
    before, after = (randomised(NonLocal(6, subsample=when))(x) for when in ("before", "after"))
    assert not torch.allclose(before, after)
    # Where nothing is pooled they are one and the same.
    whole = randomised(NonLocal(6))(x)
    for when in ("before", "after"):
        assert torch.equal(randomised(NonLocal(6, subsample=when, factor=1))(x), whole)


@pytest.mark.parametrize(
    "settings",
    [dict(similarity=similarity) for similarity in SIMILARITIES]
    + [dict(dims=1), dict(dims=3), dict(norm=False), dict(scale=1.0)]
    + [dict(subsample="before"), dict(subsample="after"), dict(pattern="crisscross:3")],
)
def test_gradients(settings):
    shape = {1: (2, 4, 5), 2: (2, 4, 2, 3), 3: (1, 4, 2, 3, 2)}[settings.get("dims", 2)]
    assert_gradients(randomised(NonLocal(4, 3, **settings)), draw(*shape))


def test_gradients_through_the_batch_s_own_norm():
    assert_gradients(randomised(NonLocal(4, 3)).train(), draw(2, 4, 2, 3))


def test_similarities_are_different_functions():
    x = draw(*SHAPES[2])
    results = [randomised(NonLocal(6, similarity=name))(x) for name in SIMILARITIES]
    for n, one in enumerate(results):
        assert not any(torch.allclose(one, other) for other in results[:n])


def test_first_weights_are_small_as_released():
    torch.manual_seed(5)
    module = NonLocal(128, similarity="concat")
    for part in (module.theta, module.phi, module.g, module.project, module.pair):
        assert part.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert part.bias is None or not part.bias.any()
    assert not module.batch_norm.weight.any()
    assert not NonLocal(128, norm=False).project.weight.any()
