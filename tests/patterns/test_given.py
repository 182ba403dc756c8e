"""What may be given as a pattern, and maps that a pattern is not for."""

import pytest

from sparse_tx.errors import UserError, UserTypeError
from sparse_tx.patterns import Local, parse_layer, parse_pattern
from sparse_tx.patterns.given import as_stack, require_width


def test_all_that_says_the_same_is_the_same():
    for given in ("local:5", Local(5), parse_layer("local:5"), parse_pattern("local:5")):
        assert as_stack(given) == parse_pattern("local:5")
    assert len(as_stack("local:5,dense*3").layers) == 4


def test_what_is_no_pattern():
    for given in (None, 5, Local, ["local:5"]):
        with pytest.raises(UserTypeError, match=r"pattern of X is .*; give .* such as 'rows:7'"):
            as_stack(given, "pattern of X", such_as="rows:7")
    with pytest.raises(UserError, match="did you mean 'local'"):
        as_stack("lokal:5")


def test_rows_are_as_wide_as_those_of_the_map():
    require_width(as_stack("rows:7,columns:7,local:3"), (5, 7))
    require_width(as_stack("local:3,dense"), (5, 7))
    with pytest.raises(UserError) as raised:
        require_width(as_stack("rows:7,columns:9"), (2, 5, 7), "pattern of X")
    assert str(raised.value) == (
        "pattern of X 'rows:7,columns:9' is for maps with rows of 9 positions, and those of a map"
        " of 2x5x7 have 7; write 7 for 9"
    )
