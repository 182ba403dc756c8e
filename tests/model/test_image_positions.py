"""Row, column and channel: what a model of images is told of the byte that it predicts."""

import pytest
import torch

from sparse_tx.config import ModelConfig, settings_for_images
from sparse_tx.generation import NativeDecoder, RecomputeDecoder
from sparse_tx.generation.native import why_not_native
from sparse_tx.model import GPT

H, W, C = 5, 7, 3


def make_model(shape):
    settings = settings_for_images(shape)
    del settings["sample_length"]
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(vocab_size=17, n_layer=1, n_head=1, n_embd=11, pattern="dense", **settings)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval().double()


@pytest.mark.parametrize("channels", [C, 1])
def test_each_byte_has_its_row_column_and_channel(channels):
    model = make_model((H, W, channels))
    tables = list(model.positions.tables)
    assert [len(table) for table in tables] == [H, W, channels][: len(tables)]
    assert len(tables) == 2 + (channels > 1)
    found = model.positions(H * W * channels)
    place = 0
    for y in range(H):
        for x in range(W):
            for c in range(channels):
                wanted = [table[n].tolist() for table, n in zip(tables, (y, x, c), strict=False)]
                total = [sum(values) for values in zip(*wanted, strict=True)]
                assert found[place].tolist() == pytest.approx(total, abs=1e-12)
                assert model.positions.rows_of(place) == [y, x, c][: len(tables)]
                place += 1


def test_the_place_is_that_of_the_byte_that_comes_next():
    """With the start symbol before it, an image's byte n is predicted from position n."""
    model = make_model((H, W, C))
    tokens = torch.randint(17, (1, H * W * C))
    inputs = torch.cat([torch.tensor([[model.start_token]]), tokens[:, :-1]], dim=1)
    before = model(inputs)
    with torch.no_grad():
        model.positions.tables[2][1] += torch.randn(11)  # of the middle channel
    changed = (model(inputs) != before).any(-1)[0].tolist()
    # Attention may carry it on to later bytes, but not to the first.
    assert not changed[0] and all(changed[1::C])


def test_decoders_see_the_same_places():
    model = make_model((H, W, C)).float()
    reason = why_not_native(model)
    if reason is not None:
        pytest.skip(reason)
    tokens = torch.randint(17, (H * W * C - 1,))
    native, slow = NativeDecoder(model, H * W * C), RecomputeDecoder(model)
    given = tokens[: 3 * W * C]
    assert torch.allclose(native.prefill([given]), slow.prefill([given]), atol=2e-4)
    for token in tokens[3 * W * C :]:
        pair = (decoder.decode_one_token(token[None]) for decoder in (native, slow))
        assert torch.allclose(*pair, atol=2e-4)
