"""The text form: what is read is written back, and what cannot be read is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.errors import UserError
from sparse_tx.patterns import (
    Dense,
    Fixed,
    Layer,
    Local,
    Stack,
    Strided,
    Summary,
    Union,
    parse_layer,
    parse_pattern,
)
from sparse_tx.patterns.notation import MAX_LAYERS
from tests.helpers import head_notations

LAYERS = st.lists(head_notations(), min_size=1, max_size=3).map("/".join)
STACKS = st.lists(st.tuples(LAYERS, st.integers(1, 3)), min_size=1, max_size=4)


@given(STACKS)
def test_round_trip(items):
    text = ",".join(layer if n == 1 else f"{layer}*{n}" for layer, n in items)
    stack = parse_pattern(text)
    assert len(stack.layers) == sum(n for _, n in items)
    assert parse_pattern(str(stack)) == stack
    assert str(parse_pattern(str(stack))) == str(stack)
    assert all(parse_layer(str(layer)) == layer for layer in stack.layers)


def test_notation_is_what_it_says():
    assert parse_pattern("local:128*3,strided:128") == Stack(
        (Layer((Local(128),)),) * 3 + (Layer((Strided(128),)),)
    )
    assert parse_pattern("dense") == Stack((Layer((Dense(),)),))
    assert parse_layer("fixed:8:2@1/local:3+summary:8:2") == Layer(
        (Fixed(8, 2, 1), Union((Local(3), Summary(8, 2))))
    )


def test_spaces_around_pieces_do_not_matter():
    assert parse_pattern(" local:8 * 2 , strided:4 / dense + local:2 ") == parse_pattern(
        "local:8*2,strided:4/dense+local:2"
    )


def test_equal_neighbours_are_written_as_a_repetition():
    assert str(parse_pattern("dense,dense,local:2,dense")) == "dense*2,local:2,dense"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the pattern is ''; write one such as"),
        ("  ", "write one such as 'local:128,strided:128'"),
        (None, "the pattern is None; write one such as"),
        (128, "the pattern is 128; write one such as"),
        ("loca:8", "unknown word 'loca' in pattern 'loca:8': did you mean 'local'?"),
        ("LOCAL:8", "unknown word 'LOCAL' in pattern 'LOCAL:8': did you mean 'local'?"),
        ("xyzzy:8", "unknown word 'xyzzy' in pattern 'xyzzy:8': the words are dense, local,"),
        ("local:8,,dense", "unknown word '' in pattern 'local:8,,dense'"),
        ("local", "'local' in pattern 'local' should read 'local:WINDOW'"),
        ("local:1:2", "'local:1:2' in pattern 'local:1:2' should read 'local:WINDOW'"),
        ("dense:4", "should read 'dense'"),
        ("fixed:8", "should read 'fixed:LENGTH:COLUMNS'"),
        ("summary:8:", "'' in 'summary:8:' of pattern 'summary:8:' is no whole number of tokens"),
        ("local:x", "'x' in 'local:x' of pattern 'local:x' is no whole number of tokens"),
        ("local:--5", "'--5' in 'local:--5' of pattern 'local:--5' is no whole number of tokens"),
        ("local:" + "9" * 5000, "is no whole number of tokens"),
        ("local:1.5", "'1.5' in 'local:1.5'"),
        ("local:0", "the window of a 'local' pattern is 0; it must be a whole number of positions"),
        ("strided:-2", "the stride of a 'strided' pattern is -2"),
        ("block:0", "the length of a 'block' pattern is 0"),
        ("summary:8:0", "the columns of a 'summary' pattern is 0"),
        ("fixed:8:9", "the summary is wider than its block; take at most 8 columns"),
        ("fixed:8:2@4", "blocks of 8 hold 4 sub-blocks of 2 columns, @0 to @3"),
        ("fixed:8:2@-1", "sub-block @-1 of a 'fixed' pattern"),
        ("fixed:8:2@x", "'x' in 'fixed:8:2@x'"),
        ("local:8@1", "only summary and fixed have sub-blocks to pin by '@'"),
        ("local:8*0", "'local:8*0' in pattern 'local:8*0': repeat 1 to"),
        ("local:8*x", "'x' in 'local:8*x'"),
        (f"local:8*{MAX_LAYERS + 1}", f"repeat 1 to {MAX_LAYERS} times"),
        ("dense,local:8/strided:x", "in 'strided:x' of pattern 'dense,local:8/strided:x'"),
    ],
)
def test_every_mistake_has_its_sentence(text, sentence):
    with pytest.raises(UserError) as raised:
        parse_pattern(text)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.text(alphabet="local:128,*/+@xsriddefun-. ", max_size=25))
def test_no_text_raises_anything_else(text):
    try:
        stack = parse_pattern(text)
    except UserError:
        return
    assert parse_pattern(str(stack)) == stack
