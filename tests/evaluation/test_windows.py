"""Windows against the definition of the minimum-context protocol, token by token."""

from math import ceil

import numpy as np
import pytest

from sparse_tx.accounting import useful_flops
from sparse_tx.config import ModelConfig
from sparse_tx.evaluation import check_windows_of_images, plan_windows

LENGTHS = (1, 2, 6, 7, 8, 13, 14, 50, 101)


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("seq_len", [1, 2, 7, 13])
def test_every_token_is_scored_once_with_its_context_and_by_as_few_windows_as_can_be(
    n_tokens, seq_len
):
    for min_context in range(seq_len):
        (protocol,) = plan_windows(n_tokens, seq_len, [min_context]).protocols
        scored = []
        for start in protocol.starts:
            stop = min(start + seq_len, n_tokens)
            first = start + protocol.first_scored(start)
            assert start == 0 or first - start >= min_context
            assert first < stop, "a window that scores nothing"
            scored += range(first, stop)
        assert scored == list(range(n_tokens))
        beyond_the_first = max(0, n_tokens - seq_len)
        assert protocol.n_windows == 1 + ceil(beyond_the_first / (seq_len - min_context))


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("min_contexts", [(0,), (9,), (9, 0), (0, 4, 9, 12), (12, 11, 7, 3, 1)])
def test_a_window_that_several_need_is_run_once_from_the_first_place_that_any_looks_at(
    n_tokens, min_contexts
):
    plan = plan_windows(n_tokens, 13, min_contexts)
    needed = {}
    for number, protocol in enumerate(plan.protocols):
        for start in protocol.starts.tolist():
            first = 0 if start == 0 or number == 0 else protocol.min_context
            needed[start] = min(first, needed.get(start, 13))
    assert plan.starts.tolist() == sorted(needed)
    assert plan.needed_from.tolist() == [needed[start] for start in sorted(needed)]
    assert plan.lengths.tolist() == [min(13, n_tokens - start) for start in sorted(needed)]
    assert plan.tokens_run == sum(plan.lengths)
    assert plan.losses_taken == sum(plan.lengths) - sum(needed.values())


def test_the_windows_of_a_protocol_are_the_same_whatever_else_is_asked():
    together = plan_windows(500, 13, [0, 4, 9, 12])
    for protocol in together.protocols:
        (alone,) = plan_windows(500, 13, [protocol.min_context]).protocols
        assert alone == protocol
        assert together.starts[protocol.uses(together.starts)].tolist() == alone.starts.tolist()


def test_protocols_of_the_paper_share_what_they_can():
    """Table 3: of these, each step divides the one before, and the last has all their windows."""
    plan = plan_windows(5_000_000, 12_288, [6144, 9216, 10_752, 11_904])
    last = plan.protocols[-1]
    assert last.n_windows == 1 + ceil((5_000_000 - 12_288) / 384)
    # But for a shorter one at the end of the text, which begins after the last protocol's last.
    beyond = plan.starts[~last.uses(plan.starts)]
    assert beyond.tolist() == [812 * 6144]
    assert beyond > last.starts[-1]


@pytest.mark.parametrize("tokens_at_once", [1, 13, 38, 39, 10_000])
@pytest.mark.parametrize("n_tokens", LENGTHS)
def test_batches_hold_every_window_in_order_and_one_length(n_tokens, tokens_at_once):
    plan = plan_windows(n_tokens, 13, [0, 9, 10])
    batches = list(plan.batches(tokens_at_once))
    for name in ("starts", "needed_from"):
        joined = np.concatenate([getattr(batch, name) for batch in batches])
        assert joined.tolist() == getattr(plan, name).tolist()
    for batch in batches:
        assert set(np.minimum(13, n_tokens - batch.starts)) == {batch.length}
        assert len(batch.starts) <= (max(1, tokens_at_once // 13) if batch.length == 13 else 1)
    # No more batches than that: whole windows fill them.
    whole = int((plan.lengths == 13).sum())
    short = len(plan.starts) - whole
    assert len(batches) == ceil(whole / max(1, tokens_at_once // 13)) + short


def test_flops_are_those_of_the_passes_and_of_the_head_where_it_is_used():
    config = ModelConfig(vocab_size=17, seq_len=13, n_layer=3, n_head=2, n_embd=10, pattern="dense")
    forward = {n: useful_flops(config, n).all_parts.forward for n in (13, 100 % 13)}
    assert plan_windows(100, 13, [0]).useful_flops(config) == 7 * forward[13] + forward[9]
    # Windows at 0, 3, ... 87; the first protocol looks at all places.
    assert plan_windows(100, 13, [10]).useful_flops(config) == 30 * forward[13]
    # Those of step 3 beside those of step 13, of which only the ones at 0, 39 and 78 coincide.
    both = plan_windows(100, 13, [0, 10])
    head = 2 * 10 * 17
    unseen = sum(min(10, 100 - start) for start in both.starts if start % 13)
    assert both.useful_flops(config) == (
        sum(useful_flops(config, int(n)).all_parts.forward for n in both.lengths) - unseen * head
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((100, 13, [13]), "min_context is 13, and a window has 13 tokens; it must be from 0 to 12"),
        ((100, 13, [0, -1]), "min_context is -1"),
        ((100, 13, []), "min_context is empty"),
        ((0, 13, [0]), "no whole token to score"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan_windows(*arguments)


def test_a_protocol_that_is_named_twice_counts_once():
    assert [p.min_context for p in plan_windows(100, 13, [4, 0, 4]).protocols] == [4, 0]


def test_windows_of_a_model_of_images_are_images():
    check_windows_of_images((5, 7, 3), 105, [0])
    with pytest.raises(ValueError, match="a window has 104 tokens, and the model is of images of"):
        check_windows_of_images((5, 7, 3), 104, [0])
    with pytest.raises(ValueError, match="min_context is 4, for which windows overlap"):
        check_windows_of_images((5, 7, 3), 105, [0, 4])
