"""Every pattern, in every form in which it can be asked, against the paper's sets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.errors import UserError
from sparse_tx.patterns import (
    BlockLocal,
    Comb,
    Fixed,
    KeySet,
    Layer,
    Local,
    Stack,
    Strided,
    Summary,
    Union,
    parse_layer,
    parse_pattern,
)
from tests.helpers import HEADS, ODD_LENGTHS, head_notations, paper_mask, paper_set


def head_of(notation, head=0, n_head=1):
    return parse_layer(notation).at(head, n_head)


@pytest.mark.parametrize("T", ODD_LENGTHS)
@pytest.mark.parametrize("notation", HEADS)
def test_all_forms_agree_with_the_paper(notation, T):
    pattern, expected = head_of(notation), paper_set(notation, T)
    position = np.arange(T)
    allowed = np.argwhere(pattern.allows(position[:, None], position))
    assert {(int(i), int(j)) for i, j in allowed} == expected
    assert {(i, j) for i in range(T) for j in pattern.read_set(i)} == expected
    assert pattern.count_pairs(T) == len(expected)


@settings(max_examples=60)
@given(notation=head_notations(), T=st.integers(0, 60))
def test_random_unions_agree_with_the_paper(notation, T):
    pattern, expected = head_of(notation), paper_set(notation, T)
    assert {(i, j) for i in range(T) for j in range(T) if pattern.allows(i, j)} == expected
    for i in range(T):
        keys = [j for j in range(i + 1) if (i, j) in expected]
        assert list(pattern.read_set(i)) == keys  # ascending, each once
        assert len(pattern.read_set(i)) == len(keys)
    assert pattern.count_pairs(T) == len(expected)


@given(notation=head_notations(2), now=st.integers(0, 40))
def test_retained_is_what_some_later_step_reads(notation, now):
    pattern = head_of(notation)
    # The sizes are at most 20: by then every period and every window has passed.
    later = paper_set(notation, now + 45)
    expected = {j for i, j in later if i > now and j <= now}
    retained = pattern.retained(now)
    assert retained >= expected
    assert retained == expected


def test_a_strided_cache_keeps_what_it_does_not_read():
    pattern = Strided(7)
    assert len(pattern.read_set(69)) == 10
    assert pattern.retained(69) == set(range(70))


@pytest.mark.parametrize("notation", HEADS)
def test_int_numpy_and_torch_agree(notation):
    pattern, T = head_of(notation), 31
    expected = paper_mask(notation, T)
    position = torch.arange(T)
    assert np.array_equal(pattern.allows(position[:, None], position).numpy(), expected)
    assert np.array_equal(pattern.allows(np.arange(T)[:, None], np.arange(T)), expected)
    one_by_one = [[bool(pattern.allows(i, j)) for j in range(T)] for i in range(T)]
    assert np.array_equal(one_by_one, expected)


@pytest.mark.parametrize("notation", HEADS)
def test_no_pattern_reads_the_future(notation):
    """Masks made by tril(ones, window) elsewhere read up to ``window`` later keys."""
    position = np.arange(97)
    mask = head_of(notation).allows(position[:, None], position)
    assert not np.triu(mask, 1).any()
    assert all(j <= i for i in range(97) for j in head_of(notation).read_set(i))


def test_a_window_counts_keys_itself_included():
    """Other libraries give w + 1 or up to 2 w keys to a window of w."""
    for i in range(30):
        assert len(Local(7).read_set(i)) == min(i + 1, 7)
    assert Local(1).read_set(9) == {9}
    assert Local(7).read_set(9) == {3, 4, 5, 6, 7, 8, 9}


def test_merged_fixed_equals_its_two_sets():
    for T in (1, 64, 100):
        merged, split = head_of("fixed:12:4@1"), head_of("block:12+summary:12:4@1")
        assert merged.parts == split.parts == (BlockLocal(12), Summary(12, 4, 1))
        assert merged.count_pairs(T) == split.count_pairs(T)
        assert all(merged.read_set(i) == split.read_set(i) for i in range(T))


def test_groups_share_out_the_heads_in_order():
    layer = parse_layer("local:3/strided:5")
    assert layer.heads(6) == (Local(3),) * 3 + (Strided(5),) * 3
    with pytest.raises(UserError, match="5 heads cannot be split into 2 equal groups"):
        layer.at(0, 5)
    with pytest.raises(UserError, match="head 6 of 6: heads are numbered 0 to 5"):
        layer.at(6, 6)
    with pytest.raises(UserError, match="head -1 of 6"):
        layer.at(-1, 6)
    with pytest.raises(UserError, match="0 heads"):
        layer.at(0, 0)


@pytest.mark.parametrize("notation", ["summary:8:2", "fixed:8:3", "local:2+summary:9:2"])
def test_heads_cycle_through_the_subblocks(notation):
    T = 37
    heads = parse_layer(notation).heads(7)
    for head, pattern in enumerate(heads):
        assert {(i, j) for i in range(T) for j in pattern.read_set(i)} == paper_set(
            notation, T, head
        )
    assert heads[0] != heads[1]


def test_subblocks_are_counted_from_the_end_of_the_block():
    assert Summary(8, 2).read_set(15) == {6, 7, 14, 15}
    assert Summary(8, 2).for_head(1).read_set(15) == {4, 5, 12, 13}
    assert Summary(8, 2).for_head(5) == Summary(8, 2, 1)
    assert Summary(8, 2, 3).for_head(5) == Summary(8, 2, 3)  # pinned


def test_a_pinned_subblock_is_the_same_for_all_heads():
    assert len(set(parse_layer("fixed:8:2@1").heads(4))) == 1
    assert len(set(parse_layer("fixed:8:2").heads(8))) == 4


def test_layers_repeat_over_the_depth():
    stack = parse_pattern("local:3*2,strided:5")
    assert [str(stack.layer(n)) for n in range(7)] == ["local:3", "local:3", "strided:5"] * 2 + [
        "local:3"
    ]
    assert stack.at(5, 1, 2) == Strided(5)
    with pytest.raises(UserError, match="layers are numbered from 0"):
        stack.layer(-1)


def test_sizes_must_be_whole_numbers():
    for make in (Local, Strided, BlockLocal):
        for size in (0, -3, 2.5, True, "8"):
            with pytest.raises(UserError, match="must be a whole number of positions, 1 or more"):
                make(size)
    with pytest.raises(UserError, match="columns"):
        Fixed(8, 0)
    with pytest.raises(UserError, match="at least 2 patterns"):
        Union((Local(3),))


def test_patterns_are_values():
    assert parse_pattern("local:3/fixed:8:2,dense") == parse_pattern("local:3/fixed:8:2, dense")
    assert len({Local(3), Local(3), Strided(3)}) == 2
    assert isinstance(parse_pattern("dense"), Stack)
    with pytest.raises(AttributeError):
        Local(3).window = 4


@given(
    start=st.integers(0, 40),
    stop=st.integers(0, 60),
    modulus=st.integers(1, 12),
    first=st.integers(-5, 20),
    data=st.data(),
)
def test_combs_are_the_integers_of_their_definition(start, stop, modulus, first, data):
    width = data.draw(st.integers(1, modulus))
    comb = Comb(start, stop, modulus, first, width)
    expected = [j for j in range(start, stop) if (j - first) % modulus < width]
    assert [j for j in range(-3, 70) if j in comb] == expected
    assert len(comb) == len(expected)
    assert sorted(j for r in comb.ranges() for j in r) == expected
    assert list(KeySet(comb, Comb(3, 9))) == sorted({*expected, *range(3, 9)})


def test_key_sets_are_sets():
    keys = Strided(4).read_set(12)
    assert keys == {0, 4, 8, 12}
    assert keys & {4, 5} == {4}
    assert keys | {5} == {0, 4, 5, 8, 12}
    assert 5 not in keys and "4" not in {str(k) for k in keys - {4}}
    assert "Comb" in repr(keys)


def test_long_read_sets_are_counted_without_enumeration():
    pattern = parse_layer("local:1000+strided:1024+summary:4096:32").at(0, 1)
    i = 10**12
    keys = pattern.read_set(i)
    overlaps = sum(len(r) for r in keys.ranges()) - len(keys)
    assert i in keys and i - 1024 in keys and i - 1023 not in keys
    assert 0 < overlaps < len(keys)


@pytest.mark.parametrize("notation", ["local:{}", "strided:{}", "block:{}", "summary:{}:2"])
def test_sizes_have_a_limit(notation):
    assert parse_pattern(notation.format(2**31))
    with pytest.raises(UserError, match=r"is 2147483649; it can be 2147483648 at most"):
        parse_pattern(notation.format(2**31 + 1))


@pytest.mark.parametrize("kind", [Layer, Stack])
@pytest.mark.parametrize("members", [(), ("local:4",)])
def test_layers_and_stacks_are_made_of_patterns(kind, members):
    with pytest.raises(UserError, match="is made of one or more"):
        kind(members)
