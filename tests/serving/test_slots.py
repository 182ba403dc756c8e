"""Texts that come and go have the logits of texts that were alone, to the bit."""

import mmap
import os

import numpy as np
import pytest
import torch

from sparse_tx.generation import RecomputeDecoder
from sparse_tx.model import GPT
from sparse_tx.serving import slots as slots_module
from sparse_tx.serving.slots import Slots
from tests.serving.conftest import make_model

MODELS = {
    "rope": dict(),
    "table": dict(position="table", pattern="fixed:8:2,local:3"),
    "look-ups": dict(recent_tokens=3, ngrams=(2, 3), ngram_rows=13, recall=2),
    "no context": dict(seq_len=1),
}
LENGTHS = (0, 1, 5, 31, 32, 50)


@pytest.fixture(params=["native", "torch"])
def by(request, monkeypatch):
    """The decoder that computes; the native one needs a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(slots_module, "why_not_native", lambda model: "a test says so")
    return request.param


def prompts(vocab_size=256):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab_size, (n,), generator=generator) for n in LENGTHS]


def grown_alone(model, prompt, steps, room=200):
    """The logits after a prompt and after each further token, which is the most probable one."""
    slots = Slots(model, slots=1, room=room)
    [slot], logits = slots.join(prompt.tolist())
    found = [logits]
    for _ in range(steps):
        found.append(slots.append({slot: int(found[-1].argmax())})[0])
    return torch.stack(found)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_logits_are_those_of_the_whole_text(name, by):
    model = make_model(**MODELS[name])
    for prompt in prompts():
        found = grown_alone(model, prompt, 40)
        decoder = RecomputeDecoder(model)
        expected = [decoder.prefill([prompt])]
        for row in found[:-1]:
            expected.append(decoder.decode_one_token(row.argmax()[None]))
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_no_text_depends_on_the_others(name, by):
    model: GPT = make_model(**MODELS[name])
    slots = Slots(model, slots=3, room=200)
    texts = {}  # slot -> number of the prompt, and its logits so far
    waiting = list(enumerate(prompts()))
    done = {}
    while waiting or texts:
        if waiting and slots.free:
            number, prompt = waiting.pop(0)
            [slot], logits = slots.join(prompt.tolist())
            texts[slot] = (number, [logits])
        step = {slot: int(found[-1].argmax()) for slot, (_, found) in texts.items()}
        for slot, row in zip(step, slots.append(step), strict=True):
            number, found = texts[slot]
            found.append(row)
            if len(found) == 20 + number:  # they leave at different times
                done[number] = torch.stack(found)
                slots.leave(slot)
                del texts[slot]
    for number, prompt in enumerate(prompts()):
        assert torch.equal(done[number], grown_alone(model, prompt, 19 + number)), number


@torch.inference_mode()
def test_copies_are_texts_of_their_own(model, by):
    prompt = prompts()[2]
    slots = Slots(model, slots=4, room=200)
    slots.join([9, 9])
    first, second, third = slots.join(prompt.tolist(), copies=3)[0]
    assert slots.free == 0
    tokens = {first: [1, 2, 3], second: [4, 5, 6], third: [1, 2, 3]}
    found = [slots.append({slot: tokens[slot][n] for slot in tokens}) for n in range(3)]
    for row, slot in enumerate(tokens):
        alone = Slots(model, slots=1, room=200)
        [only], _ = alone.join(prompt.tolist())
        for n, token in enumerate(tokens[slot]):
            assert torch.equal(alone.append({only: token})[0], found[n][row])


@torch.inference_mode()
def test_room_that_is_shorter_than_the_context(model, by):
    prompt = prompts()[2]
    whole = grown_alone(model, prompt, 4)
    assert torch.equal(grown_alone(model, prompt, 4, room=len(prompt) + 4), whole)


def share_in_memory(tensor):
    """The share of a tensor's pages that the system has given memory to.

    What the whole process holds would not tell: malloc may reuse memory that it holds already.
    """
    page = os.sysconf("SC_PAGESIZE")
    first, end = tensor.data_ptr() // page, (tensor.data_ptr() + tensor.nbytes) // page
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(8 * first)  # 64 bits a page, the highest of which says that it is present
        entries = np.frombuffer(pagemap.read(8 * (end - first)), dtype=np.uint64)
    return (entries >> np.uint64(63)).mean()


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="tells of pages on Linux")
def test_the_memory_of_all_texts_is_taken_at_once(by):
    """Asked for only, it would be counted as texts first grow into it, or be missing then."""
    slots = Slots(make_model(pattern="dense", seq_len=4096), slots=64, room=4096)
    asked_for_only = torch.frombuffer(mmap.mmap(-1, 2**24), dtype=torch.uint8)
    assert share_in_memory(asked_for_only) == 0
    for layer in slots._decoder.cache.layers:
        for group in layer.groups:
            assert share_in_memory(group.k) == share_in_memory(group.v) == 1
