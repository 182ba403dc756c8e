"""Models of another maker under the same protocols, against a loop over their own logits."""

import hashlib
import json
import socket
from itertools import pairwise
from math import log

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_tx.errors import UserError
from sparse_tx.evaluation import evaluate, load_hugging_face, plan_windows
from tests.evaluation.foreign import (
    POSITIONS,
    TEXT,
    byte_level_bpe,
    lower_case,
    save_gpt2,
    sentencepiece,
    wrapped,
)

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a GPT-2 and byte-level BPE, and the model that was saved."""
    folder = tmp_path_factory.mktemp("gpt2")
    return folder, save_gpt2(folder, byte_level_bpe())


def by_definition(model, ids, start, min_context, seq_len=POSITIONS):
    """The loss of every token in nats, one window at a time."""
    losses, begin = [], 0
    while len(losses) < len(ids):
        window = ids[begin : begin + seq_len].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([[start, *window[:-1]]])).logits[0]
        for place in range(len(losses) - begin, len(window)):
            losses.append(-logits[place].double().log_softmax(-1)[window[place]].item())
        begin += seq_len - min_context
    return losses


@pytest.mark.parametrize("text", ["", "t", "the", "😀", "the cat" * 9, TEXT])
def test_bytes_of_byte_level_tokens_are_exact_also_within_a_character(saved, text):
    data = text.encode()
    found = load_hugging_face(saved[0])
    ids, n_bytes = found.encode(data)
    assert n_bytes.sum() == len(data)
    ends = pairwise([0, *n_bytes.cumsum().tolist()])
    for number, (begin, end) in zip(ids.tolist(), ends, strict=True):
        # The library shows bytes that are no whole character as U+FFFD.
        spelled = data[begin:end].decode(errors="replace")
        shown = found.tokenizer.decode([number], clean_up_tokenization_spaces=False)
        assert shown == spelled
    if text == "😀":
        assert n_bytes.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("text", ["the cat", " the", "", "  a é☃\n<0x41>the ", "the"])
def test_bytes_of_sentencepiece_tokens_are_exact_but_for_the_space_put_before(tmp_path, text):
    save_gpt2(tmp_path, sentencepiece())
    found = load_hugging_face(tmp_path)
    ids, n_bytes = found.encode(text.encode())
    assert n_bytes.sum() == len(text.encode())
    assert (n_bytes >= 0).all()
    if text == "the":  # one token of four bytes, of which the text has three
        assert (len(ids), n_bytes.tolist()) == (1, [3])
    assert found.start_in_words.endswith("BOS token <s>")


def test_a_space_that_byte_level_bpe_puts_before_is_not_counted(tmp_path):
    save_gpt2(tmp_path, byte_level_bpe(add_prefix_space=True))
    _, n_bytes = load_hugging_face(tmp_path).encode(b"hat the")
    assert n_bytes.sum() == 7


def test_a_special_token_in_the_text_stands_for_its_name(saved):
    found = load_hugging_face(saved[0])
    ids, n_bytes = found.encode(b"the<|end|>the")
    assert n_bytes[ids == found.start_token].tolist() == [7]
    assert n_bytes.sum() == 13


@pytest.mark.parametrize("text", ["t", "the cat", TEXT])
def test_all_protocols_equal_the_definition(saved, text):
    folder, model = saved
    found = load_hugging_face(folder)
    assert found.seq_len == POSITIONS
    ids, n_bytes = found.encode(text.encode())
    min_contexts = (0, 1, 11, 16)
    plan = plan_windows(len(ids), found.seq_len, min_contexts)
    results = evaluate(found, ids, n_bytes, plan).scores
    end = found.tokenizer.convert_tokens_to_ids("<|end|>")
    for result, min_context in zip(results, min_contexts, strict=True):
        expected = sum(by_definition(model, ids, end, min_context))
        assert result.bpb == pytest.approx(expected / log(2) / len(text.encode()), rel=1e-5)
        assert result.bytes == len(text.encode())
        assert result.protocol.endswith("; a window begins with the tokenizer's EOS token <|end|>")


def test_a_tokenizer_without_start_leaves_the_first_token_unscored(tmp_path):
    model = save_gpt2(tmp_path, byte_level_bpe(eos_token=None))
    found = load_hugging_face(tmp_path)
    ids, n_bytes = found.encode(TEXT.encode())
    plan = plan_windows(len(ids) - 1, found.seq_len, [0])
    (result,) = evaluate(found, ids, n_bytes, plan).scores
    expected = 0.0
    for begin in range(0, len(ids) - 1, POSITIONS):
        inputs, targets = ids[begin : begin + POSITIONS], ids[begin + 1 : begin + POSITIONS + 1]
        with torch.no_grad():
            logits = model(torch.from_numpy(inputs)[None]).logits[0, : len(targets)]
        expected -= logits.log_softmax(-1)[range(len(targets)), targets].double().sum().item()
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert result.bytes == len(TEXT.encode()) - n_bytes[0]
    assert "the first token of the text is not scored" in result.protocol


def test_windows_are_as_long_as_asked_for_and_no_longer_than_there_are_positions(saved):
    assert load_hugging_face(saved[0], seq_len=5).seq_len == 5
    assert load_hugging_face(saved[0], seq_len=POSITIONS).seq_len == POSITIONS
    message = f"seq_len is 99, and the model takes {POSITIONS} tokens at once"
    with pytest.raises(UserError, match=message):
        load_hugging_face(saved[0], seq_len=99)


def test_probabilities_of_all_next_tokens_sum_to_one_at_every_position(saved):
    found = load_hugging_face(saved[0])
    ids, _ = found.encode(TEXT.encode())
    inputs = torch.from_numpy(ids[:POSITIONS])[None]
    everywhere = torch.ones(1, POSITIONS, dtype=torch.bool)
    with torch.no_grad():
        losses = [
            found.token_losses(inputs, torch.full_like(inputs, v), everywhere)
            for v in range(len(found.tokenizer))
        ]
    total = torch.stack(losses).double().neg().exp().sum(dim=0)
    assert (total - 1).abs().max() < 1e-6


def test_a_text_that_a_tokenizer_does_not_keep_is_refused(tmp_path):
    save_gpt2(tmp_path, lower_case())
    found = load_hugging_face(tmp_path)
    assert found.encode(b"abba")[1].tolist() == [1, 1, 1, 1]
    for text in (b"Abba", b"abc"):
        with pytest.raises(ValueError, match="does not keep this text as it is"):
            found.encode(text)
    with pytest.raises(ValueError, match="byte 0xff at offset 1 of the text is not UTF-8"):
        found.encode(b"a\xff")


def test_a_truncating_tokenizer_is_not_obeyed(tmp_path):
    tokenizer = byte_level_bpe()
    tokenizer.backend_tokenizer.enable_truncation(3)
    save_gpt2(tmp_path, tokenizer)
    assert load_hugging_face(tmp_path).encode(TEXT.encode())[1].sum() == len(TEXT.encode())


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path):
    save_gpt2(tmp_path, byte_level_bpe())
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"are not all there: 1 are missing, such as .*mlp"):
        load_hugging_face(tmp_path)


def test_a_model_that_sees_the_future_is_refused(tmp_path):
    tokenizer = byte_level_bpe()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=7,
        max_position_embeddings=POSITIONS,
        initializer_range=1.0,
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads tokens that come later: it is no causal language"):
        load_hugging_face(tmp_path)


def test_a_model_without_a_longest_text_needs_a_window(tmp_path):
    tokenizer = byte_level_bpe()
    config = transformers.BloomConfig(
        vocab_size=len(tokenizer), hidden_size=6, n_layer=1, n_head=2, use_cache=False
    )
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give the tokens of a window with --seq_len"):
        load_hugging_face(tmp_path)
    assert load_hugging_face(tmp_path, seq_len=11).seq_len == 11


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    save_gpt2(tmp_path, byte_level_bpe(), vocab_size=40)
    with pytest.raises(ValueError, match="and its model has 40; they do not belong together"):
        load_hugging_face(tmp_path).encode(b"the")


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"there is no Hugging Face model in '.*absent'"):
        load_hugging_face(tmp_path / "absent")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such model"}))
    with pytest.raises(ValueError, match="cannot be loaded: "):
        load_hugging_face(tmp_path)
    tokenizer = wrapped(byte_level_bpe().backend_tokenizer)
    save_gpt2(tmp_path, tokenizer)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be loaded: "):
        load_hugging_face(tmp_path)


def test_nothing_is_fetched(saved, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    assert load_hugging_face(saved[0]).seq_len == POSITIONS
    with pytest.raises(ValueError, match="there is no Hugging Face model in 'gpt2'"):
        load_hugging_face("gpt2")


def test_half_precision_is_computed_in_full(tmp_path):
    model = save_gpt2(tmp_path, byte_level_bpe()).bfloat16()
    model.save_pretrained(tmp_path)
    model.float()  # what rounding has left
    found = load_hugging_face(tmp_path)
    assert found.model.dtype == torch.float32
    inputs = torch.arange(POSITIONS)[None]
    with torch.no_grad():
        assert torch.equal(found.model(inputs).logits, model(inputs).logits)


def test_the_digest_is_of_the_file_of_weights_or_of_all_of_them(tmp_path, saved):
    weights = (saved[0] / "model.safetensors").read_bytes()
    found = load_hugging_face(saved[0])
    assert found.weights_sha256() == hashlib.sha256(weights).hexdigest()
    found.model.save_pretrained(tmp_path, max_shard_size="4KB")
    found.tokenizer.save_pretrained(tmp_path)
    paths = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(paths) > 1
    everything = b"".join(path.read_bytes() for path in paths)
    again = load_hugging_face(tmp_path)
    assert again.weights_sha256() == hashlib.sha256(everything).hexdigest()
    assert (
        again.n_parameters
        == found.n_parameters
        == sum(
            np.prod(weight.shape) for weight in load_file(saved[0] / "model.safetensors").values()
        )
    )
