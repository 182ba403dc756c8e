"""The FlexAttention engine: forward on a CPU, as torch has it there; both ways on a GPU."""

import warnings

import pytest
import torch

from sparse_tx.attention import flex, reference
from sparse_tx.errors import UserError
from sparse_tx.patterns import parse_layer

NOTATIONS = (
    "dense",
    "local:7",
    "strided:7",
    "strided:1000",
    "fixed:8:2",
    "summary:8:3@1",
    "local:5+strided:4",
    "fixed:12:3/strided:5/local:4/strided:5",
)


def draw(B, H, T, *widths, layout="BTHD"):
    generator = torch.Generator().manual_seed(0)
    if layout == "BTHD":
        return [torch.randn(B, T, H, w, generator=generator).transpose(1, 2) for w in widths]
    return [torch.randn(B, H, T, w, generator=generator) for w in widths]


@pytest.mark.parametrize("layout", ["BTHD", "BHTD"])
@pytest.mark.parametrize("notation", NOTATIONS)
def test_forward_equals_the_reference(notation, layout):
    heads = parse_layer(notation).heads(4)
    for T in (1, 35, 37):  # 35 rows of positions fill the columns of strides 5 and 7
        inputs = draw(2, 4, T, 16, 16, 16, layout=layout)
        found = flex.attend(*inputs, heads, 0.25)
        expected = reference.attend(*(x.double() for x in inputs), heads, 0.25)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5


def test_columns_are_views(monkeypatch):
    seen = []

    def spy(q, k, v, mask, scale):
        seen.extend((q, k, v))
        return v

    monkeypatch.setattr(flex, "_flex_once", spy)
    for layout in ("BTHD", "BHTD"):
        seen.clear()
        inputs = draw(2, 3, 40, 16, 16, 16, layout=layout)
        out = flex.attend(*inputs, parse_layer("strided:8").heads(3), 0.25)
        for x, column in zip(inputs, seen, strict=True):
            assert column.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            assert column.shape[0] * column.shape[1] == 2 * 3 * 8
        assert torch.equal(out, inputs[2])  # there and back again


def test_a_growing_text_is_compiled_for_few_lengths(monkeypatch):
    compiled_for = set()

    def spy(q, k, v, block_mask, scale):
        compiled_for.add(tuple(q.shape))
        return flex.flex_attention(q, k, v, block_mask=block_mask, scale=scale)

    monkeypatch.setattr(flex, "_EAGER", 0)
    monkeypatch.setattr(flex, "_compiled", lambda: spy)
    for notation, few in (("local:7", 3), ("strided:5", 5)):
        compiled_for.clear()
        heads = parse_layer(notation).heads(2)
        for T in (1, 5, 19, 100, 128, 130, 300):
            inputs = draw(1, 2, T, 16, 16, 16)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
                found = flex.attend(*inputs, heads, 0.25)
            expected = reference.attend(*(x.double() for x in inputs), heads, 0.25)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() < 1e-5
        assert len(compiled_for) <= few
    gpu = torch.device("cuda")
    lengths = [flex._compiled_length(T, gpu, torch.float32, least=128) for T in range(1, 4097)]
    assert len(set(lengths)) <= 16
    assert all(T <= length < T + max(128, T / 4) for T, length in enumerate(lengths, start=1))
    assert flex._compiled_length(12_288, gpu, torch.float32, least=128) == 12_288


def test_what_a_grid_cannot_hold_is_taken_in_pieces(monkeypatch):
    monkeypatch.setattr(flex, "_MOST_PROGRAMS", 8)
    for layout in ("BTHD", "BHTD"):
        inputs = draw(3, 4, 37, 16, 16, 16, layout=layout)
        for notation in ("local:7", "strided:5"):
            heads = parse_layer(notation).heads(4)
            found = flex.attend(*inputs, heads, 0.25)
            expected = reference.attend(*(x.double() for x in inputs), heads, 0.25)
            assert (found - expected).abs().max() < 1e-5


def test_no_gradients_on_a_cpu():
    q, k, v = draw(1, 1, 8, 16, 16, 16)
    heads = parse_layer("local:4").heads(1)
    with pytest.raises(UserError, match=r"gradients are asked for q,.*engine='views'"):
        flex.attend(q.requires_grad_(), k, v, heads, 0.25)
    with torch.no_grad():
        flex.attend(q, k, v, heads, 0.25)


def test_a_mask_made_under_inference_mode_serves_later():
    q, k, v = draw(1, 1, 9, 16, 16, 16)
    heads = parse_layer("local:2").heads(1)
    with torch.inference_mode():
        flex.attend(q, k, v, heads, 0.25)
    assert not flex._mask(heads, 9, q.device).kv_num_blocks.is_inference()


def test_float64_is_never_compiled_on_a_cpu():
    """Torch has no such FlexAttention."""
    heads = parse_layer("local:8").heads(1)
    inputs = [x.double() for x in draw(1, 1, 600, 16, 16, 16)]
    found, expected = flex.attend(*inputs, heads, 0.25), reference.attend(*inputs, heads, 0.25)
    assert (found - expected).abs().max() < 1e-12


def test_it_says_why_it_cannot_run():
    heads = parse_layer("local:4").heads(1)
    assert flex.why_not(torch.device("cpu"), torch.float64, 4, 4, heads) is None
    assert flex.why_not(torch.device("cuda"), torch.bfloat16, 64, 64, heads) is None
    assert "float64" in flex.why_not(torch.device("cuda"), torch.float64, 64, 64, heads)
    assert "at least 16" in flex.why_not(torch.device("cuda"), torch.float32, 8, 64, heads)
    assert "meta" in flex.why_not(torch.device("meta"), torch.float32, 64, 64, heads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [1024, 1031])
@pytest.mark.parametrize("notation", NOTATIONS)
def test_both_ways_on_a_gpu(notation, T, dtype):
    heads = parse_layer(notation).heads(4)
    results = []
    inputs = [x.to(dtype) for x in draw(2, 4, T, 64, 64, 64, 64)]
    for attend, device, precision in (
        (flex.attend, "cuda", dtype),
        (reference.attend, "cpu", torch.float64),
    ):
        q, k, v, d_out = (x.to(device, precision) for x in inputs)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, heads, 0.125)
        out.backward(d_out)
        results.append([x.detach().cpu().double() for x in (out, *(leaf.grad for leaf in leaves))])
    # Inductor's float32 products may run in TensorFloat-32.
    tolerance = 2e-2 if dtype == torch.float32 else 6e-2
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < tolerance * max(1.0, b.abs().max().item())
