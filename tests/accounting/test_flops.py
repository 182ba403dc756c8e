"""FLOPs against torch's own counter over the real model, and against explicit masks."""

from dataclasses import replace
from functools import partial
from itertools import product
from math import inf, nan

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from sparse_tx.accounting import (
    Passes,
    decoding_flops,
    keys_of_last,
    linear,
    matrix_product,
    nominal_flops,
    prefill_flops,
    useful_flops,
)
from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.generation import CachedDecoder
from sparse_tx.model import GPT, block
from tests.helpers import HEADS, paper_mask, paper_set

# Distinct primes, where heads allow it, so that no two factors can be exchanged.
SIZES = dict(vocab_size=17, seq_len=31, n_layer=3, n_head=2, n_embd=26, n_qk=14, n_ff=37)
RELU2 = dict(activation="relu2", bias=False)
B = 3

aten = torch.ops.aten
# Torch's counter has the formulas, but not under these names: the head's gradient is summed in
# place, and fused attention on a CPU is an operator of its own.
NAMES_TO_ADD = {
    aten.addmm_: partial(flop_counter.addmm_flop),
    aten._scaled_dot_product_flash_attention_for_cpu: partial(flop_counter.sdpa_flop),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: partial(
        flop_counter.sdpa_backward_flop
    ),
}
for formula in NAMES_TO_ADD.values():
    formula._get_raw = True  # the formulas take shapes out of tensors themselves


def make_config(**settings):
    return ModelConfig(**SIZES | dict(pattern="dense", engine="reference") | settings)


def counted_by_torch(config, T=31):
    """FLOPs of the loss and of its gradients, as torch counts what is really run."""
    torch.manual_seed(0)
    model = GPT(config)
    tokens = torch.randint(0, config.vocab_size, (B, T))
    counts = []
    with FlopCounterMode(display=False, custom_mapping=NAMES_TO_ADD) as forward:
        loss = model.loss(tokens, tokens)
    counts.append(forward.get_total_flops())
    with FlopCounterMode(display=False, custom_mapping=NAMES_TO_ADD) as backward:
        loss.backward()
    return counts[0], backward.get_total_flops()


def accounted(flops, keeps_weights=False):
    """What ``counted_by_torch`` should find; the head's gradients are taken with its loss."""
    passes = flops.all_parts
    forward = passes.forward + flops.head.backward
    backward = passes.backward + passes.recompute - flops.head.backward
    return forward, backward - (flops.scores.forward if keeps_weights else 0)


@pytest.mark.parametrize("T", [1, 30, 31])
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(activation="relu2", bias=False, norm="rmsnorm", qk_norm=True),
        dict(activation="swiglu", tie_embeddings=True, position="table"),
        dict(recent_tokens=4, position="none"),
        dict(n_qk=12, n_embd=26, position="rope", n_ff=None),
        dict(pattern="local:5,strided:7/dense"),
    ],
)
def test_nominal_equals_torchs_count_of_the_real_model(settings, T):
    """The engine 'reference' multiplies whole squares, as the dense convention has it."""
    config = make_config(**settings)
    found = accounted(nominal_flops(config, T, B), keeps_weights=True)
    assert found == counted_by_torch(config, T)


@pytest.mark.parametrize("recompute", [False, True])
def test_nominal_equals_torchs_count_of_fused_attention(monkeypatch, recompute):
    """Torch charges fused causal attention for whole squares, and for five products backward."""

    def fused(q, k, v, layer, *, engine):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    monkeypatch.setattr(block, "sparse_attention", fused)
    config = make_config(n_qk=None, recompute=recompute)
    expected = counted_by_torch(config)
    assert accounted(nominal_flops(config, 31, B)) == expected


def test_torch_counts_other_widths_of_keys_and_values():
    """The formulas of torch's fused attention by themselves, at shapes its CPU kernel refuses."""
    q, v = (B, 2, 31, 7), (B, 2, 31, 13)
    flops = nominal_flops(make_config(n_layer=1), 31, B)
    attention = flops.scores + flops.values
    assert attention.forward == flop_counter.sdpa_flop_count(q, q, v)
    assert attention.backward == flop_counter.sdpa_backward_flop_count(v, q, q, v)


@pytest.mark.parametrize(
    ("activation", "dropout", "recompute", "chunk"),
    list(product(["gelu", "relu2", "swiglu"], [0.0, 0.1], [False, True], [1, 16, 30, 90, 93])),
)
def test_recompute_equals_what_torch_runs_again(activation, dropout, recompute, chunk):
    """Checkpoints of blocks, of pieces of the feed-forward, and of pieces within blocks."""
    bias = activation != "relu2"  # which has a feed-forward of its own without
    settings = dict(activation=activation, bias=bias, dropout=dropout)
    config = make_config(recompute=recompute, chunk=chunk, **settings)
    flops = nominal_flops(config, 31, B)
    assert accounted(flops, keeps_weights=True) == counted_by_torch(config)
    assert (flops.all_parts.recompute > 0) == (recompute or chunk < 93)
    kept = nominal_flops(replace(config, recompute=False, chunk=93), 31, B)
    assert flops.without_recompute == kept.without_recompute == kept.total


@pytest.mark.parametrize("chunk", [1, 16, 93])
@pytest.mark.parametrize("settings", [dict(), dict(dropout=0.1), dict(activation="swiglu"), RELU2])
def test_heads_at_a_time_are_run_more_often(settings, chunk):
    config = make_config(head_chunk=1, chunk=chunk, **settings)
    flops = nominal_flops(config, 31, B)
    assert accounted(flops, keeps_weights=True) == counted_by_torch(config)
    assert flops.scores.recompute == 2 * flops.scores.forward
    assert flops.qkv.recompute == 3 * flops.qkv.forward
    assert flops.output.recompute == flops.output.forward


@pytest.mark.parametrize("notation", HEADS)
def test_useful_equals_brute_force_over_the_pairs(notation):
    """Two products forward and five backward for each pair, counted one by one."""
    T = 29
    config = make_config(pattern=notation, recompute=True, n_layer=1)
    d_qk, d_v = 14 // 2, 26 // 2
    scores = values = 0
    for head in range(2):
        for _pair in paper_set(notation, T, head):
            scores += sum(2 for _ in range(d_qk))
            values += sum(2 for _ in range(d_v))
    flops = useful_flops(config, T, B)
    assert flops.scores == Passes(B * scores, 3 * B * scores, B * scores)
    assert flops.values == Passes(B * values, 2 * B * values, B * values)


def test_useful_and_nominal_differ_in_the_pairs_alone():
    config = make_config(pattern="local:5/fixed:8:2@1,strided:3")
    useful, nominal = useful_flops(config), nominal_flops(config)
    for name, passes in useful.parts.items():
        if name in ("scores", "values"):
            assert passes.total < nominal.parts[name].total
        else:
            assert passes == nominal.parts[name]


def counted_in_generation(run):
    with FlopCounterMode(display=False, custom_mapping=NAMES_TO_ADD) as counter:
        run()
    return counter.get_total_flops()


def draw_texts(config):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.vocab_size, (B, config.seq_len), generator=generator)


GENERATING = [
    dict(),
    dict(activation="relu2", bias=False, norm="rmsnorm", qk_norm=True),
    dict(activation="swiglu", tie_embeddings=True, position="table", pattern="strided:3+strided:5"),
    dict(recent_tokens=4, position="none", chunk=7, dropout=0.1),
    dict(n_qk=12, n_embd=26, position="rope", n_ff=None, head_chunk=1, ngrams=(2,), recall=2),
    dict(n_qk=None, pattern="dense"),
]


@pytest.mark.parametrize("T", [3, 30, 31])
@pytest.mark.parametrize("settings", GENERATING)
def test_a_prompt_is_what_torch_counts(settings, T):
    """Of squares of attention, again; but of the head for one token alone."""
    config = make_config(**dict(pattern="local:5,strided:7/fixed:8:2") | settings)
    decoder, texts = CachedDecoder(GPT(config).eval()), draw_texts(config)
    found = counted_in_generation(lambda: decoder.prefill(texts[:, 1:T]))
    assert prefill_flops(config, T, B, nominal=True).total == found


@pytest.mark.parametrize("T", [3, 30, 31])
@pytest.mark.parametrize("settings", GENERATING)
def test_a_step_is_what_torch_counts(settings, T):
    """A step in torch multiplies the keys that its pattern reads, and no others."""
    config = make_config(**dict(pattern="local:5,strided:7/fixed:8:2") | settings)
    decoder, texts = CachedDecoder(GPT(config).eval()), draw_texts(config)
    decoder.prefill(texts[:, 2:T])
    found = counted_in_generation(lambda: decoder.decode_one_token(texts[:, 0]))
    assert decoding_flops(config, T, B).total == found


@pytest.mark.parametrize("T", [1, 2, 28, 29])
@pytest.mark.parametrize("notation", HEADS)
def test_a_step_equals_brute_force_over_the_mask(notation, T):
    config = make_config(pattern=notation, n_layer=1, dropout=0.1, recompute=True)
    keys = [int(paper_mask(notation, T, head)[T - 1].sum()) for head in range(2)]
    flops = decoding_flops(config, T, B)
    assert keys_of_last(config, T).heads == (tuple(keys),)
    assert flops.scores == Passes(B * sum(keys) * 2 * 14 // 2)
    assert flops.values == Passes(B * sum(keys) * 2 * 26 // 2)
    dense = decoding_flops(config, T, B, nominal=True)
    assert dense.scores + dense.values == Passes(B * T * 2 * (14 + 26))
    assert replace(dense, scores=flops.scores, values=flops.values) == flops


@pytest.mark.parametrize("notation", HEADS)
def test_steps_from_the_first_token_on_are_a_prompt(notation):
    """Of attention; and of all else, but for the head, as many tokens' worth."""
    config, T = make_config(pattern=notation), 29
    steps = [decoding_flops(config, t, B) for t in range(1, T + 1)]
    prompt = prefill_flops(config, T, B)
    for name, passes in prompt.parts.items():
        times = T if name == "head" else 1
        assert sum(step.parts[name].forward for step in steps) == times * passes.forward
    assert prompt.all_parts == Passes(prompt.total) and prompt.total > 0


def test_a_step_of_a_strided_pattern_takes_the_root():
    """Weights aside, of a million tokens, a step reads a thousand."""
    of_step = {
        pattern: decoding_flops(make_config(pattern=pattern), 2**20).scores.forward
        for pattern in ("dense", "local:1024", "strided:1024")
    }
    assert of_step["dense"] == 3 * 2 * 2**20 * 14
    assert of_step["local:1024"] == of_step["strided:1024"] == 3 * 2 * 1024 * 14


def test_parts_of_a_layer_by_hand():
    flops = useful_flops(make_config(n_layer=1), 31, B)
    N = B * 31
    assert flops.qkv == Passes(2 * N * 26 * 54, 4 * N * 26 * 54)
    assert flops.output == Passes(2 * N * 26 * 26, 4 * N * 26 * 26)
    assert flops.feed_forward == Passes(4 * N * 26 * 37, 8 * N * 26 * 37)
    assert flops.head == Passes(2 * N * 26 * 17, 4 * N * 26 * 17)
    assert flops.embeddings == flops.loss == Passes()
    assert flops.total == sum(passes.total for passes in flops.parts.values())
    assert (flops * 5).total == 5 * flops.total


def test_a_linear_map_is_counted_as_torch_counts_it():
    x = torch.randn(5, 7, requires_grad=True)
    weight = torch.randn(11, 7, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        F.linear(x, weight).sum().backward()
    assert counter.get_total_flops() == linear(5, 7, 11).total == 3 * matrix_product(5, 7, 11)
    assert linear(5, 7, 11, again=2).recompute == matrix_product(2, 7, 11)


def test_seconds_at_a_rate():
    flops = useful_flops(make_config())
    assert flops.seconds(flops.total / 4) == 4


@pytest.mark.parametrize("rate", [0, -1.0, nan, inf])
def test_no_rate(rate):
    with pytest.raises(UserError, match="it must be above 0"):
        useful_flops(make_config()).seconds(rate)


@pytest.mark.parametrize("count", [useful_flops, nominal_flops, prefill_flops, decoding_flops])
def test_no_length_or_batch(count):
    with pytest.raises(UserError, match="T is 0; it must be a whole number of positions, 1 or"):
        count(make_config(), 0)
    with pytest.raises(UserError, match="batch is 0; it must be a whole number of sequences"):
        count(make_config(), batch=0)
