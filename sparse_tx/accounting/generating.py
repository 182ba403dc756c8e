"""The peak memory of generation: a prompt read into the sparse cache, and a step from it.

Texts are read one after the other, each as ``head_chunk`` has long texts: some heads and a chunk of
tokens at a time. Beside tensors, a text is held in Python's own numbers and tables, counted as
CPython lays them out, and NumPy says where in the cache its keys go.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from sparse_tx.accounting.activations import PeakMemory
from sparse_tx.accounting.forward_pass import (
    FLOAT,
    INT64,
    LOSS,
    TOKENS,
    WORKSPACE,
    ForwardPass,
    Workspace,
)
from sparse_tx.accounting.heads import positions, require_count
from sparse_tx.accounting.long_blocks import LongPass
from sparse_tx.accounting.parameters import list_weights
from sparse_tx.accounting.slots import count_slots
from sparse_tx.config import ModelConfig
from sparse_tx.patterns import Pattern

CACHE = "cache of keys and values"
TEXTS = "texts, their look-ups and places in the cache"

_INT32, _POINTER = 4, 8
# A Python number; those up to 256 exist once for all.
_NUMBER, _MOST_SHARED = 32, 256
# Of a dictionary: an entry, and a place in the table by which entries are found.
_ENTRY, _PLACE = 24, 4


def model_in_prefill(model: ModelConfig, T: int | None = None) -> ModelConfig:
    """The model as prompts of ``T`` tokens go through its blocks: so many heads at a time.

    Args:
        model: as it was configured.
        T: tokens of a prompt, the start symbol included; ``model.seq_len`` when not given.

    Raises:
        UserError: ``T`` is below 1.
    """
    heads = model.heads_in_prefill(positions(model, T))
    return replace(model, head_chunk=heads, dropout=0.0, recompute=False, stored_precision="fp32")


def prefill_peak(
    model: ModelConfig,
    T: int | None = None,
    *,
    batch: int = 1,
    element_bytes: int = FLOAT,
    workspaces: tuple[Workspace, ...] = (),
) -> PeakMemory:
    """Count the most bytes that reading prompts into a cache holds, activations in float32.

    The prompts fill the cache. The first of them is the first of its length: rotary turns are
    computed in it.

    Args:
        model: the model.
        T: tokens of a prompt, the start symbol included; ``model.seq_len`` when not given.
        batch: prompts, no two of them equal.
        element_bytes: bytes of a number in the cache: 4 for float32, 2 for bfloat16.
        workspaces: of the attention engine for one text, layer after layer, tiled over the depth,
            each for the heads that ``model_in_prefill`` takes at a time; none if empty.

    Raises:
        UserError: ``T``, ``batch`` or ``element_bytes`` is below 1.
    """
    run = _Prefill(model_in_prefill(model, T), T, 1, workspaces)
    _take_what_stays(run, model, batch)
    before = run.ledger.taken_large
    _take_cache(run, model, batch, element_bytes)
    run.weights(LOSS, batch * model.vocab_size)  # what all texts are read for
    # The tokens of one before they are a text, and of all, by which equal ones are found.
    run.ledger.take(TEXTS, (1 + batch) * run.T * _POINTER)
    run.table_is_new = True
    run.read(batch)
    return PeakMemory(parts=run.ledger.at_peak, fresh_bytes=run.ledger.taken_large - before)


def decoding_peak(
    model: ModelConfig,
    T: int | None = None,
    *,
    batch: int = 1,
    element_bytes: int = FLOAT,
    gathers: bool = False,
) -> PeakMemory:
    """Count the bytes that the step holds which makes texts ``T`` tokens long.

    That is what stays from step to step: what one token goes through is less than any weight.

    Args:
        model: the model.
        T: tokens of a text after the step; ``model.seq_len`` when not given.
        batch: texts.
        element_bytes: bytes of a number in the cache.
        gathers: whether keys that do not lie side by side are put together before they are read,
            as torch's attention wants them; native steps read them where they are. Keys that are
            picked out one by one are always put together.

    Raises:
        UserError: ``T``, ``batch`` or ``element_bytes`` is below 1.
    """
    run = ForwardPass(model, T, 1, ())
    _take_what_stays(run, model, batch)
    _take_cache(run, model, batch, element_bytes)
    if gathers or any(count_slots(pattern, run.T).picked for pattern, _ in _groups(model)):
        per_key = batch * element_bytes * (model.qk_width + model.n_embd) // model.n_head
        run.ledger.take(WORKSPACE, per_key * _gathered(model, run.T))
    return PeakMemory(parts=run.ledger.at_peak)


class _Prefill(LongPass):
    """One text of T tokens through the model, its keys and values into a cache."""

    def read(self, texts: int) -> None:
        """Read a text, as one of so many."""
        self.ledger.times = texts
        tokens = self.ledger.take(TOKENS, self.N * INT64)
        x, _ = self.embed(False)
        n_layer, distinct = self.config.n_layer, len(self.config.stack.layers)
        for number in range(min(n_layer, distinct)):
            alike = len(range(number, n_layer, distinct))
            self.ledger.times = texts * alike
            self.rest_of_block(self.outputs_of_heads(number, widens=False))
        self.ledger.times = 1
        self.give(x, tokens)

    def pieces_in_turn(self) -> Iterator[int]:
        """Of those of one size, the first, and one for all the others."""
        whole, rest = divmod(self.N, self.piece)
        times = self.ledger.times
        for n, alike in ((self.piece, 1), (self.piece, whole - 1), (rest, 1)):
            if n and alike:
                self.ledger.times = times * alike
                yield n
        self.ledger.times = times

    def keep_keys(self, number: int, heads: range) -> None:
        """Put keys, then values, in the order of the cache: one head's, beside those just put."""
        patterns = self.config.stack.layer(number).heads(self.config.n_head)
        n = max(count_slots(patterns[head], self.T).filled for head in heads)
        D, D_v = self.widths(1)
        places = self.ledger.take(TEXTS, 2 * n * INT64)  # positions, and their slots
        self.give(self.rows(CACHE, D + D_v, n), places)


def _take_what_stays(run: ForwardPass, model: ModelConfig, batch: int) -> None:
    """All but the cache that ``batch`` texts of ``run.T`` tokens keep from step to step."""
    require_count("batch", batch, "texts")
    take = run.ledger.take
    take("weights", sum(weights.parameters for weights in list_weights(model)) * FLOAT)
    take(TOKENS, batch * run.T * INT64)
    take(TEXTS, batch * _bytes_of_text(model, run.T) + _bytes_of_tables(model, run.T))
    run.rotary_table()


def _take_cache(run: ForwardPass, model: ModelConfig, batch: int, element_bytes: int) -> None:
    """Keys, and values, of each group of heads."""
    require_count("element_bytes", element_bytes, "bytes")
    widths = model.qk_width // model.n_head, model.n_embd // model.n_head
    for pattern, heads in _groups(model):
        slots = batch * heads * count_slots(pattern, run.T).total
        for width in widths:
            run.ledger.take(CACHE, slots * width * element_bytes)


def _groups(model: ModelConfig) -> Iterator[tuple[Pattern, int]]:
    """Neighbouring heads of one pattern, which are kept and read together: it, and how many."""
    stack = model.stack
    for number in range(model.n_layer):
        for pattern, heads in groupby(stack.layer(number).heads(model.n_head)):
            yield pattern, len(list(heads))


def _gathered(model: ModelConfig, T: int) -> int:
    """The most keys of a group of heads that a step puts together, all heads of it counted."""
    most = 0
    for pattern, heads in _groups(model):
        slots = count_slots(pattern, T)
        if slots.picked or (len(pattern.parts) > 1 and 0 < slots.ring < T):
            most = max(most, heads * len(pattern.read_set(T - 1)))
    return most


def _bytes_of_text(model: ModelConfig, T: int) -> int:
    """A list of numbers; of recall, where each n-gram stood last, as if none had stood twice."""
    found = T * (_POINTER + (_NUMBER if model.vocab_size > _MOST_SHARED else 0))
    if model.recall:
        places = 8
        while places * 2 // 3 < T:  # as many entries as it has before it grows
            places *= 2
        found += places * _PLACE + T * (_ENTRY + 2 * _NUMBER)
    return found


def _bytes_of_tables(model: ModelConfig, T: int) -> int:
    """Tables of summary columns, one for each pattern that has any."""
    indexed = {pattern for pattern, _ in _groups(model) if count_slots(pattern, T).is_indexed}
    return len(indexed) * (T + 1) * _INT32
