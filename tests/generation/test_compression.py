"""Files come back exactly, are as small as the model's predictions say, or are refused."""

import zlib
from math import log

import numpy as np
import pytest
import torch

from sparse_tx.data.tokenizers import ByteTokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import CachedDecoder, RecomputeDecoder, compression
from sparse_tx.generation.compression import Compressed, compress, decompress
from tests.generation.test_decoders import MODERN, make_model

TEXTS = {
    "nothing": b"",
    "one byte": b"\xff",
    "as long as the context": bytes(range(64)),
    "text": b"the quick brown fox " * 11,
    "every byte": bytes(range(256)) * 2,
    "one byte for long": b"\x00" * 500,
}


@pytest.fixture(scope="module")
def model():
    return make_model(vocab_size=256, pattern="local:5/strided:7,fixed:8:2", **MODERN)


TOKENIZER = ByteTokenizer()


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS)
def test_round_trip(model, data):
    file = compress(model, TOKENIZER, data)
    assert decompress(model, TOKENIZER, Compressed.from_bytes(file)) == data


def test_the_size_is_that_of_the_predictions(model):
    data = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    decoder, nats = RecomputeDecoder(model), 0.0
    logits = decoder.prefill([torch.empty(0, dtype=torch.long)])
    for byte in data:
        nats -= logits[0].double().log_softmax(-1)[byte].item()
        logits = decoder.decode_one_token(torch.tensor([byte]))
    bits = 8 * len(Compressed.from_bytes(compress(model, TOKENIZER, data)).code)
    # Whole words of 32 bits, and probabilities in units of 2^-24.
    assert nats / log(2) * 0.9999 < bits < nats / log(2) * 1.0005 + 64


def test_threads_change_nothing(model):
    before = torch.get_num_threads()
    try:
        files = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            files.append(compress(model, TOKENIZER, TEXTS["text"]))
        torch.set_num_threads(3)
        assert decompress(model, TOKENIZER, Compressed.from_bytes(files[0])) == TEXTS["text"]
    finally:
        torch.set_num_threads(before)
    assert files[0] == files[1] == files[2]


def test_without_the_native_step_files_come_back_too(model, monkeypatch):
    monkeypatch.setattr(compression, "why_not_native", lambda model: "no compiler")
    assert type(compression._decoder(model)) is CachedDecoder
    file = compress(model, TOKENIZER, TEXTS["text"])
    assert decompress(model, TOKENIZER, Compressed.from_bytes(file)) == TEXTS["text"]


def test_code_that_the_coder_refuses_is_of_other_predictions(model, monkeypatch):
    """The library raises its own error where predictions part late in a file."""
    import constriction

    class Refusing:
        def __init__(self, words):
            pass

        def decode(self, *_):
            raise AssertionError("Tried to decode from compressed data that is invalid")

    file = Compressed.from_bytes(compress(model, TOKENIZER, b"text"))
    monkeypatch.setattr(constriction.stream.queue, "RangeDecoder", Refusing)
    with pytest.raises(UserError, match="this machine does not predict what"):
        decompress(model, TOKENIZER, file)


def test_progress_is_told(model):
    told = []
    file = compress(model, TOKENIZER, bytes(600), on_progress=lambda *numbers: told.append(numbers))
    assert told == [(256, 600), (512, 600), (600, 600)]
    told.clear()
    decompress(
        model,
        TOKENIZER,
        Compressed.from_bytes(file),
        on_progress=lambda *numbers: told.append(numbers),
    )
    assert told == [(256, 600), (512, 600), (600, 600)]


def test_another_model_is_refused(model):
    file = Compressed.from_bytes(compress(model, TOKENIZER, b"text"))
    other = make_model(vocab_size=256, pattern="local:5/strided:7,fixed:8:2", **MODERN)
    assert decompress(other, TOKENIZER, file) == b"text"  # the same weights once more
    other.blocks[0].attention.to_qkv.weight.data[0, 0] += 1e-6
    with pytest.raises(UserError, match="another model"):
        decompress(other, TOKENIZER, file)
    of_other_pattern = make_model(vocab_size=256, pattern="local:5/strided:6,fixed:8:2", **MODERN)
    with pytest.raises(UserError, match="another model"):
        decompress(of_other_pattern, TOKENIZER, file)


@pytest.mark.parametrize("length", [0, 3, 20, 49, 50, -4, -1])
def test_what_is_cut_off_is_refused(model, length):
    file = compress(model, TOKENIZER, TEXTS["text"])
    with pytest.raises(UserError, match=r"cut off|first bytes"):
        Compressed.from_bytes(file[:length])


def test_what_is_altered_is_refused(model):
    whole = compress(model, TOKENIZER, TEXTS["text"])
    for at in (5, 21, 28, 36, 40, 45, 49, len(whole) - 5):  # every field, and the code
        file = bytearray(whole)
        file[at] ^= 128
        with pytest.raises(UserError, match="checksum"):
            Compressed.from_bytes(bytes(file))
    file = bytearray(whole)
    file[4] = 2
    with pytest.raises(UserError, match="version 2"):
        Compressed.from_bytes(bytes(file))


def test_other_predictions_are_noticed(model, monkeypatch):
    compressed = Compressed.from_bytes(compress(model, TOKENIZER, TEXTS["text"]))
    inner = compression._probabilities
    monkeypatch.setattr(compression, "_probabilities", lambda logits: inner(logits * (1 + 1e-6)))
    with pytest.raises(UserError, match="another kind of CPU"):
        decompress(model, TOKENIZER, compressed)


def test_predictions_that_go_astray_late_are_noticed(model, monkeypatch):
    data = bytes(np.random.default_rng(0).integers(0, 256, 1500, dtype=np.uint8))
    compressed = Compressed.from_bytes(compress(model, TOKENIZER, data))
    assert compressed.checksum == zlib.crc32(data)
    inner, calls = compression._probabilities, []

    def astray(logits):
        calls.append(0)
        return inner(logits if len(calls) <= 1100 else logits * 2)

    monkeypatch.setattr(compression, "_probabilities", astray)
    with pytest.raises(UserError, match="another kind of CPU"):
        decompress(model, TOKENIZER, compressed)


def test_broken_weights_are_named():
    model = make_model(vocab_size=256)
    model.final_norm.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        compress(model, TOKENIZER, b"text")
