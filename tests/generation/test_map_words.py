"""Rows and columns of a map in a text: every decoder reads of them what the whole model reads."""

import pytest
import torch

from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.generation import CachedDecoder, NativeDecoder
from sparse_tx.model import GPT

SIZES = dict(vocab_size=11, seq_len=40, n_layer=2, n_head=2, n_embd=12, position="rope")


@pytest.mark.parametrize("decoder", [CachedDecoder, NativeDecoder])
@pytest.mark.parametrize("pattern", ["rows:7,columns:7", "crisscross:7/rows:5"])
@torch.no_grad()
def test_cached_logits_are_those_of_the_whole_text(pattern, decoder):
    torch.manual_seed(3)
    model = GPT(ModelConfig(pattern=pattern, **SIZES)).eval()
    torch.nn.init.normal_(model.head_weight)
    tokens = torch.randint(0, 11, (30,)).tolist()
    expected = model(torch.tensor([[model.start_token, *tokens]]))[0]
    decoder = decoder(model, 40)
    decoder.open(1)
    found = [decoder.start([0], tokens[:9])]
    found += [decoder.grow({0: token})[0] for token in tokens[9:]]
    assert (torch.stack(found) - expected[9:]).abs().max() < 1e-5


def test_a_model_of_text_refuses_tiles():
    with pytest.raises(UserError, match="'tiles:7:2' has no causal form"):
        ModelConfig(pattern="rows:7,tiles:7:2", **SIZES)
