"""Logits from a cache are those of the whole text at once, at every position, however they came."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.config import ModelConfig
from sparse_tx.generation import (
    CachedDecoder,
    NativeDecoder,
    RecomputeDecoder,
    make_decoder,
)
from sparse_tx.generation import native as native_module
from sparse_tx.generation.native import why_not_native
from sparse_tx.model import GPT
from tests.generation.small_decoder import SmallDecoder
from tests.helpers import HEADS, head_notations

OPTIONS = {
    "paper": dict(),
    "table": dict(position="table", n_qk=12, n_ff=28),
    "modern": dict(position="rope", norm="rmsnorm", qk_norm=True, activation="relu2", bias=False),
    "images": dict(position="grid+rope", position_shape=(11, 2, 3), qk_norm=True, recent_tokens=2),
    "swiglu tied": dict(activation="swiglu", tie_embeddings=True, position="none"),
    "look-ups": dict(position="rope", recent_tokens=3, ngrams=(2, 3), ngram_rows=13, recall=2),
}
MODERN = OPTIONS["modern"] | OPTIONS["look-ups"]
DECODERS = {"cached": CachedDecoder, "native": NativeDecoder}
# Of logits of size 1 or so.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def make_model(*, dtype=torch.float32, seed=0, **settings):
    """A small model in eval mode, of which every weight is random."""
    torch.manual_seed(seed)
    defaults = dict(vocab_size=7, seq_len=64, n_layer=2, n_head=2, n_embd=24)
    model = GPT(ModelConfig(**defaults | dict(pattern="local:5,strided:5") | settings))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def draw_text(length, seed=1, vocab_size=7):
    return torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of_whole(model, text):
    """(P + 1, V): after the start symbol, and after each token."""
    return model(torch.cat([torch.tensor([model.start_token]), text])[None])[0]


def logits_by_steps(decoder, text, prompt):
    """(P + 1 - prompt, V): after a prompt, and after each token that is appended to it."""
    found = [decoder.prefill([text[:prompt]])]
    found += [decoder.decode_one_token(token[None]) for token in text[prompt:]]
    return torch.cat(found)


def check(decoder_type, model, text, prompt, **options):
    expected = logits_of_whole(model, text)[prompt:]
    found = logits_by_steps(decoder_type(model, **options), text, prompt)
    assert found.dtype == expected.dtype
    scale = max(1, expected.abs().max())
    assert (found - expected).abs().max() < TOLERANCE[found.dtype] * scale


def skip_if_picked(decoder_type, model):
    """Patterns that only the decoder in torch has."""
    if decoder_type is NativeDecoder and (reason := why_not_native(model)):
        assert "no kernel for the pattern" in reason
        pytest.skip(reason)


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("prompt", [0, 1, 23, 63])
@pytest.mark.parametrize("head", HEADS)
def test_every_pattern_at_every_position(head, prompt, decoder):
    model = make_model(pattern=head, n_layer=2, **MODERN)
    skip_if_picked(decoder, model)
    check(decoder, model, draw_text(63), prompt)


@pytest.mark.parametrize("head", HEADS)
def test_every_pattern_in_double_precision(head):
    check(CachedDecoder, make_model(pattern=head, dtype=torch.float64, **MODERN), draw_text(63), 17)


@pytest.mark.parametrize("pattern", ["local:5,strided:5", "fixed:8:2", "dense"])
def test_half_precision_rounds_no_worse_than_the_whole_text_does(pattern):
    model = make_model(pattern=pattern, **MODERN)
    text, prompt = draw_text(63), 17
    exact = logits_of_whole(model, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert isinstance(make_decoder(model), CachedDecoder)
        whole = logits_of_whole(model, text).float()
        found = logits_by_steps(CachedDecoder(model), text, prompt).float()
    rounding = (whole - exact).abs().max()
    assert 0 < rounding < exact.abs().max() / 10
    assert (found - exact[prompt:]).abs().max() < 2 * rounding


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pattern", ["local:5/strided:7,fixed:8:2", "summary:9:3,block:8+local:3"])
def test_every_option(pattern, settings, decoder):
    model = make_model(pattern=pattern, n_layer=3, n_head=4, **settings)
    for prompt in (0, 11):
        check(decoder, model, draw_text(50), prompt)


@settings(max_examples=1000)
@given(
    pattern=st.lists(head_notations(most=2), min_size=1, max_size=2),
    layers=st.integers(1, 2),
    prompt=st.integers(0, 40),
    steps=st.integers(0, 23),
    native=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_pattern_prompt_and_length(pattern, layers, prompt, steps, native, seed):
    model = make_model(
        pattern=",".join(["/".join(pattern), pattern[0]][:layers]), n_layer=2, seed=seed, **MODERN
    )
    native = native and why_not_native(model) is None
    check(
        NativeDecoder if native else CachedDecoder, model, draw_text(prompt + steps, seed), prompt
    )


@pytest.mark.parametrize("decoder", [*DECODERS.values(), RecomputeDecoder])
@pytest.mark.parametrize("options", ["paper", "table", "modern", "swiglu tied"])
@pytest.mark.parametrize("pattern", ["local:5,strided:5", "fixed:8:2,dense", "summary:8:2/local:3"])
def test_against_a_decoder_written_out(pattern, options, decoder):
    options = OPTIONS[options] | ({"position": "table"} if options == "paper" else {})
    model = make_model(pattern=pattern, **options, recent_tokens=2)
    text = draw_text(40)
    small = SmallDecoder(model, 41)
    expected = [small.step(token) for token in (model.start_token, *text.tolist())]
    found = logits_by_steps(decoder(model), text, 9)
    expected = torch.from_numpy(np.stack(expected[9:]))
    assert (found - expected).abs().max() < 2e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("engine", ["reference", "views", "cpu"])
def test_prompts_by_every_engine(engine, decoder):
    model = make_model(pattern="local:5/strided:7,fixed:8:2", **MODERN, engine=engine)
    if decoder is NativeDecoder and engine != "cpu":
        assert engine in why_not_native(model)
    check(decoder, model, draw_text(50), 31)


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_texts_of_different_lengths(decoder):
    model = make_model(pattern="local:5/strided:7,fixed:8:2", **MODERN)
    texts = [draw_text(length, seed=length) for length in (0, 17, 30, 17, 5)]
    further = torch.stack([draw_text(20, seed=50 + n) for n in range(5)])
    together = decoder(model)
    found = [together.prefill(texts)]
    found += [together.decode_one_token(tokens) for tokens in further.T]
    for n, text in enumerate(texts):
        expected = logits_of_whole(model, torch.cat([text, further[n]]))[len(text) :]
        assert (torch.stack([step[n] for step in found]) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("decoder", [*DECODERS.values(), RecomputeDecoder])
@pytest.mark.parametrize("seq_len", [1, 2, 7, 8, 31])
@pytest.mark.parametrize("prompt", [0, 3, 7, 40])
def test_past_the_context_it_drops_what_recomputing_drops(prompt, seq_len, decoder):
    model = make_model(pattern="local:3,strided:3", **MODERN, seq_len=seq_len)
    texts = [draw_text(prompt), draw_text(max(0, prompt - 2), seed=3)]
    further = draw_text(60, seed=9).view(30, 2)
    expected, found = RecomputeDecoder(model), decoder(model)
    torch.testing.assert_close(found.prefill(texts), expected.prefill(texts), rtol=0, atol=1e-4)
    for tokens in further:
        torch.testing.assert_close(
            found.decode_one_token(tokens), expected.decode_one_token(tokens), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("decoder", [*DECODERS.values(), RecomputeDecoder])
def test_texts_that_are_done_are_forgotten(decoder):
    model = make_model(pattern="local:5/strided:7,fixed:8:2", **MODERN)
    texts = [draw_text(length, seed=length) for length in (3, 20, 8)]
    kept = decoder(model)
    kept.prefill(texts)
    kept.keep([2, 0])
    expected = torch.stack(
        [logits_of_whole(model, torch.cat([texts[n], torch.tensor([4])]))[-1] for n in (2, 0)]
    )
    found = kept.decode_one_token(torch.tensor([4, 4]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_native_logits_do_not_depend_on_company_threads_or_the_cut_of_the_prompt():
    model = make_model(pattern="local:5/strided:7,fixed:8:2", n_embd=96, n_ff=700, **MODERN)
    text = draw_text(63)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = logits_by_steps(NativeDecoder(model, by_steps=True), text, 0)
        for threads, prompt, copies in ((1, 40, 3), (2, 0, 2), (5, 63, 1)):
            torch.set_num_threads(threads)
            decoder = NativeDecoder(model, by_steps=True)
            found = [decoder.prefill([text[:prompt]] * copies + [text[: prompt // 2]])]
            for token in text[prompt:]:
                found.append(decoder.decode_one_token(token.expand(copies + 1)))
            for step, logits in enumerate(found):
                for row in logits[:copies]:
                    assert torch.equal(row, expected[prompt + step])
    finally:
        torch.set_num_threads(before)


def test_many_threads_share_a_large_step():
    model = make_model(pattern="local:9,strided:7", n_embd=256, n_ff=1024, n_head=4, **MODERN)
    text = draw_text(63)
    check(NativeDecoder, model, text, 0)
    decoder = NativeDecoder(model)
    decoder.prefill([text[:50]])
    decoder._decoder.parallel = None  # threads of its own
    found = torch.cat([decoder.decode_one_token(token[None]) for token in text[50:]])
    expected = logits_of_whole(model, text)[51:]
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_memory_is_taken_for_what_is_known(decoder):
    model = make_model(pattern="dense", seq_len=50, **MODERN)
    small = decoder(model, 20)
    small.prefill([draw_text(15)])
    of_all = decoder(model)
    of_all.prefill([draw_text(15)])
    assert small.cache.nbytes * 50 == of_all.cache.nbytes * 21
    for token in draw_text(5):
        small.decode_one_token(token[None])
    with pytest.raises(IndexError, match="cache for 20"):
        small.decode_one_token(torch.tensor([1]))
    with pytest.raises(IndexError, match="cache for 20"):
        decoder(model, 20).prefill([draw_text(21)])


def test_weights_that_are_broken_show_in_the_logits():
    model = make_model(pattern="local:5,strided:5", **MODERN)
    model.blocks[1].feed_forward.expand.weight.data[3, 4] = torch.nan
    decoder = NativeDecoder(model)
    assert decoder.prefill([draw_text(4)]).isnan().any()
    assert decoder.decode_one_token(torch.tensor([1])).isnan().any()


def test_the_fastest_decoder_is_chosen(monkeypatch):
    model = make_model()
    assert type(make_decoder(model)) is NativeDecoder
    assert type(make_decoder(model.double())) is CachedDecoder
    assert type(make_decoder(make_model(pattern="strided:3+strided:5"))) is CachedDecoder
    monkeypatch.setattr(native_module.KERNEL.__class__, "why_not", lambda kernel: "no compiler")
    assert type(make_decoder(make_model())) is CachedDecoder


def test_bytes_are_those_of_the_accounting():
    from sparse_tx.accounting import cache_bytes

    for pattern in ("local:5,strided:7", "fixed:8:2", "dense,block:8", "local:5/summary:9:3"):
        config = replace(make_model(pattern=pattern).config, n_layer=4)
        model = make_model(pattern=pattern, n_layer=4)
        decoder = CachedDecoder(model)
        decoder.prefill([draw_text(3)])
        for T in (1, 13, 23, 62):
            counted = cache_bytes(config, T)
            # The own block's columns lie in two places.
            heads = [head for n in range(4) for head in config.stack.layer(n).heads(2)]
            twice = sum(
                sum(len(part.retained(T - 1)) for part in head.parts) - len(head.retained(T - 1))
                for head in heads
            )
            assert (twice > 0) == ("fixed" in pattern and T % 8 > 4)
            per_key = 4 * (config.qk_width + config.n_embd) // 2
            assert decoder.cache.bytes_stored(T) == counted.stored.total + twice * per_key
            assert decoder.cache.bytes_read(T) == counted.read.total
