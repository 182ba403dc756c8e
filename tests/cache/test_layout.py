"""Slots against the paper's sets: what a step reads is what its pattern allows, once each."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparse_tx.cache import layout_of
from sparse_tx.patterns import Local, parse_pattern
from tests.helpers import HEADS, head_notations, paper_mask


def read_by_steps(layout, held: dict[int, int], first: int, T: int):
    """Yield query and the positions that it reads, with repetitions, as steps go from ``first``."""
    for query in range(first, T):
        for slot in layout.writes(query):
            assert 0 <= slot < layout.slots
            held[slot] = query
        yield query, [held[slot] for slots in layout.reads(query) for slot in slots]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("room", [61, 64, 127])
def test_a_step_reads_what_its_pattern_allows(head, room):
    layout, allowed = layout_of(parse_pattern(head).at(0, 0, 1), room), paper_mask(head, room)
    for query, found in read_by_steps(layout, {}, 0, room):
        assert sorted(found) == allowed[query].nonzero()[0].tolist()
        assert len(found) <= most_reads(layout)


def most_reads(layout) -> int:
    ring = layout.recent.slots if layout.recent else 0
    return ring + (layout.rest.longest_read if layout.rest else 0)


@given(head_notations(), st.integers(1, 60), st.integers(0, 60))
@example("local:7+strided:5", 60, 30)
@example("block:12+summary:12:3@1", 60, 30)
def test_steps_go_on_from_what_a_prompt_left(head, T, prompt):
    pattern, prompt = parse_pattern(head).at(0, 0, 1), min(prompt, T)
    layout, allowed = layout_of(pattern, T), paper_mask(head, T)
    held = {}
    if prompt:
        positions, slots = layout.fills(prompt)
        assert len(set(slots.tolist())) == len(slots)
        held = dict(zip(slots.tolist(), positions.tolist(), strict=True))
    for query, found in read_by_steps(layout, held, prompt, T):
        assert sorted(found) == allowed[query].nonzero()[0].tolist()


@given(head_notations(most=1), st.integers(1, 60))
def test_a_single_set_keeps_what_later_steps_read_and_no_more(head, T):
    pattern = parse_pattern(head).at(0, 0, 1)
    positions, _ = layout_of(pattern, 64).fills(T)
    kept = set(positions.tolist())
    if len(pattern.parts) == 1:
        assert len(positions) == len(kept)
    assert kept == set(pattern.retained(T - 1))


@pytest.mark.parametrize(
    ("head", "slots"),
    [("local:16", 16), ("block:16", 16), ("summary:32:4", 128), ("strided:16", 1024)],
)
def test_slots_are_what_a_step_needs(head, slots):
    assert layout_of(parse_pattern(head).at(0, 0, 1), 1024).slots == slots


def test_a_local_head_takes_no_more_slots_at_a_longer_text():
    assert layout_of(Local(128), 1 << 20).slots == layout_of(Local(128), 1 << 12).slots == 128


@pytest.mark.parametrize(
    "head", ["local:128", "strided:128", "fixed:128:32", "local:64+strided:64"]
)
def test_a_step_reads_few_ranges(head):
    layout = layout_of(parse_pattern(head).at(0, 0, 1), 4096)
    for query in (0, 1, 127, 128, 2000, 4095):
        assert len(layout.reads(query)) <= 3
