"""The BlockMask against the one that torch builds from T x T, and through ``flex_attention``."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sparse_tx.errors import UserError
from sparse_tx.masks import block_mask, dense_mask
from sparse_tx.patterns import parse_layer
from tests.helpers import HEADS

LAYERS = [*HEADS, "fixed:8:2/local:5+strided:3", "summary:6:2/dense"]


def rows(number, indices):
    """The live tiles of every row, whatever stands behind them."""
    number, indices = number.flatten(), indices.flatten(0, -2)
    return [tuple(row[:n].tolist()) for n, row in zip(number, indices, strict=True)]


def same_as_torch(ours, heads, T, tile_size):
    masks = torch.stack([dense_mask(head, T) for head in heads])
    theirs = create_block_mask(
        lambda b, h, q, k: masks[h, q, k], 1, len(heads), T, T, "cpu", BLOCK_SIZE=tile_size
    )
    assert ours.shape == theirs.shape and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for of in ("kv", "full_kv", "q", "full_q"):
        names = (f"{of}_num_blocks", f"{of}_indices")
        assert rows(*(getattr(ours, n) for n in names)) == rows(
            *(getattr(theirs, n) for n in names)
        )


@pytest.mark.parametrize(("T", "tile_size"), [(64, 16), (50, 16), (33, 8), (5, 16)])
@pytest.mark.parametrize("notation", HEADS)
def test_one_head_equals_torchs_own(notation, T, tile_size):
    head = parse_layer(notation).at(0, 1)
    same_as_torch(block_mask(notation, T, tile_size=tile_size), [head], T, tile_size)


@pytest.mark.parametrize("notation", LAYERS)
def test_layers_equal_torchs_own(notation):
    T, n_head, tile_size = 75, 4, 8
    layer = parse_layer(notation)
    ours = block_mask(layer, T, n_head=n_head, tile_size=tile_size)
    heads = list(dict.fromkeys(layer.heads(n_head)))
    same_as_torch(ours, layer.heads(n_head) if len(heads) > 1 else heads, T, tile_size)


def test_heads_in_common_share_one_mask():
    assert block_mask("local:5", 64, n_head=8, tile_size=16).shape == (1, 1, 64, 64)
    assert block_mask("fixed:8:2", 64, n_head=8, tile_size=16).shape == (1, 8, 64, 64)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("T", [13, 40])
@pytest.mark.parametrize("notation", LAYERS)
def test_flex_attention_computes_the_pattern(notation, T):
    torch.manual_seed(0)
    B, H, D = 2, 4, 5
    q, k, v = torch.randn(3, B, H, T, D, dtype=torch.float64)
    mask = dense_mask(notation, T, n_head=H)
    ours = flex_attention(q, k, v, block_mask=block_mask(notation, T, n_head=H, tile_size=8))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # A summary head may leave a query without keys, for which softmax is not defined.
    reads = mask.any(-1)
    torch.testing.assert_close(ours[:, reads], expected[:, reads])


def test_mistakes():
    with pytest.raises(UserError, match="3 heads"):
        block_mask("dense/local:3", 10, n_head=3)
    with pytest.raises(UserError, match="both must be whole numbers"):
        block_mask("dense", 10, tile_size=0)
