"""Oracles that know nothing of the package: the paper's sets written out as comprehensions."""

import numpy as np
from hypothesis import strategies as st

ODD_LENGTHS = (1, 2, 13, 63, 64, 100, 127)

# One of each word and of each way to merge, at sizes that share no factor with the lengths above
# or with each other, where they do not have to.
HEADS = (
    "dense",
    "local:1",
    "local:7",
    "local:1000",
    "strided:1",
    "strided:7",
    "strided:1000",
    "block:1",
    "block:11",
    "block:1000",
    "summary:8:2",
    "summary:8:3@1",
    "summary:11:11",
    "summary:1000:1",
    "fixed:8:2",
    "fixed:11:3@2",
    "local:7+strided:5",
    "local:5+summary:12:2",
    "block:12+summary:12:3@1",
    "strided:3+strided:5",
    "summary:6:3@0+summary:6:3@1",
    "local:4+strided:6+summary:10:2@2",
)


def paper_set(notation: str, T: int, head: int = 0) -> set[tuple[int, int]]:
    """The (query, key) pairs of one head's notation, by the definitions of the README's table."""
    causal = [(i, j) for i in range(T) for j in range(i + 1)]
    pairs = set()
    for piece in notation.split("+"):
        body, _, pin = piece.partition("@")
        word, *sizes = body.split(":")
        n = [int(size) for size in sizes]
        if word in ("summary", "fixed"):
            columns = _summary_columns(*n, subblock=int(pin) if pin else head)
        match word:
            case "dense":
                pairs |= set(causal)
            case "local":
                pairs |= {(i, j) for i, j in causal if i - n[0] < j}
            case "strided":
                pairs |= {(i, j) for i, j in causal if (i - j) % n[0] == 0}
            case "block":
                pairs |= {(i, j) for i, j in causal if i // n[0] == j // n[0]}
            case "summary":
                pairs |= {(i, j) for i, j in causal if j % n[0] in columns}
            case "fixed":
                pairs |= {
                    (i, j) for i, j in causal if i // n[0] == j // n[0] or j % n[0] in columns
                }
            case _:
                raise ValueError(word)
    return pairs


def _summary_columns(length: int, columns: int, subblock: int) -> set[int]:
    """Sub-blocks are dealt from the block's end; what is too short to be one is left over."""
    from_end = list(range(length))[::-1]
    subblocks = [from_end[n * columns : (n + 1) * columns] for n in range(length // columns)]
    return set(subblocks[subblock % len(subblocks)])


def paper_mask(notation: str, T: int, head: int = 0) -> np.ndarray:
    """``paper_set`` as a ``(T, T)`` bool array, queries as rows."""
    mask = np.zeros((T, T), dtype=bool)
    for query, key in paper_set(notation, T, head):
        mask[query, key] = True
    return mask


@st.composite
def set_notations(draw) -> str:
    """Notations of a single set, with sizes up to 20 and sometimes a pinned sub-block."""
    word = draw(st.sampled_from(["dense", "local", "strided", "block", "summary", "fixed"]))
    if word == "dense":
        return word
    size = draw(st.integers(1, 20))
    if word not in ("summary", "fixed"):
        return f"{word}:{size}"
    columns = draw(st.integers(1, size))
    pin = draw(st.none() | st.integers(0, size // columns - 1))
    return f"{word}:{size}:{columns}" + ("" if pin is None else f"@{pin}")


def head_notations(most: int = 3) -> st.SearchStrategy[str]:
    """Notations of one head: unions of up to ``most`` sets."""
    return st.lists(set_notations(), min_size=1, max_size=most).map("+".join)


def cut_before_first_stop(data, stops):
    """What is left of ``data``, and whether a stop string ended it: by looking at every prefix."""
    for end in range(len(data) + 1):
        found = [stop for stop in stops if data[:end].endswith(stop)]
        if found:
            return data[: end - max(map(len, found))], True
    return data, False


# The sets of maps, and those of texts without the triangle; widths and edges that share no factor.
MAP_HEADS = (
    "dense",
    "rows:5",
    "columns:5",
    "crisscross:5",
    "tiles:5:2",
    "tiles:7:3",
    "tiles:7:7",
    "lattice:5:2",
    "lattice:7:3",
    "local:1",
    "local:4",
    "local:1000",
    "strided:3",
    "block:11",
    "summary:8:3@1",
    "summary:1000:1",
    "fixed:8:2",
    "rows:7+tiles:7:3",
    "tiles:7:3+lattice:7:3",
    "local:3+columns:5",
    "lattice:5:2+summary:8:2+local:2",
)


def two_sided_set(notation: str, T: int, head: int = 0) -> set[tuple[int, int]]:
    """The (query, key) pairs of one head's notation without the triangle."""
    every = [(i, j) for i in range(T) for j in range(T)]
    return {
        pair
        for piece in notation.split("+")
        for pair in every
        if _related(*pair, *_word_and_sizes(piece, head))
    }


def _word_and_sizes(piece: str, head: int) -> tuple[str, list[int], set[int]]:
    """A set's word, its sizes and, of a summary, its columns."""
    body, _, pin = piece.partition("@")
    word, *sizes = body.split(":")
    n = [int(size) for size in sizes]
    if word in ("summary", "fixed"):
        return word, n, _summary_columns(*n, subblock=int(pin) if pin else head)
    return word, n, set()


def _related(i: int, j: int, word: str, n: list[int], columns: set[int]) -> bool:
    (row, column), (other_row, other_column) = (divmod(p, n[0] if n else 1) for p in (i, j))
    match word:
        case "dense":
            return True
        case "local":
            return abs(i - j) < n[0]
        case "strided":
            return abs(i - j) % n[0] == 0
        case "block" | "rows":
            return row == other_row
        case "columns":
            return column == other_column
        case "crisscross":
            return row == other_row or column == other_column
        case "tiles":
            return row // n[1] == other_row // n[1] and column // n[1] == other_column // n[1]
        case "lattice":
            return (row - other_row) % n[1] == 0 and (column - other_column) % n[1] == 0
        case "summary":
            return j % n[0] in columns
        case "fixed":
            return row == other_row or j % n[0] in columns
    raise ValueError(word)


def two_sided_mask(notation: str, T: int, head: int = 0) -> np.ndarray:
    """``two_sided_set`` as a ``(T, T)`` bool array, queries as rows."""
    mask = np.zeros((T, T), dtype=bool)
    for query, key in two_sided_set(notation, T, head):
        mask[query, key] = True
    return mask
