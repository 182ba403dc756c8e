"""What ``sparse-tx pattern --map`` says of a map: its size, and the position that is looked at."""

from sparse_tx.errors import UserError

# Of more positions, counting would take minutes.
LARGEST = 1 << 22


def map_size(text: str | None, of_texts: dict[str, int | None]) -> tuple[int, int] | None:
    """Rows and columns that ``--map`` gives; None where it is not given.

    Args:
        text: such as ``28x28``.
        of_texts: flags that have no meaning for maps, with their values.

    Raises:
        UserError: it is no size, of too many positions, or one of the flags has a value.
    """
    if text is None:
        return None
    H, W = _two_numbers("--map", text, "x", "28x28")
    if not 1 <= H * W <= LARGEST:
        raise UserError(f"--map is {text}; it must have 1 to {LARGEST:,} positions")
    for name, value in of_texts.items():
        if value is not None:
            raise UserError(f"--{name} belongs to texts and --map {text} to maps; leave one out")
    return H, W


def map_query(text: str | None, size: tuple[int, int] | None) -> int:
    """The position that ``--query`` gives; a third of the way down and along when not given.

    Raises:
        UserError: it is no position of the map, or there is no map.
    """
    if size is None:
        if text is not None:
            raise UserError(f"--query {text} of which map? Add --map, for example --map 28x28")
        return 0
    H, W = size
    if text is None:
        return H // 3 * W + W // 3
    row, column = _two_numbers("--query", text, ",", "0,5")
    if row >= H or column >= W:
        raise UserError(
            f"--query {text} is outside of the map, whose last place is {H - 1},{W - 1}"
        )
    return row * W + column


def _two_numbers(flag: str, text: str, separator: str, example: str) -> tuple[int, int]:
    numbers = [number.strip() for number in text.lower().split(separator)]
    if len(numbers) != 2 or not all(n.isdecimal() and n.isascii() for n in numbers):
        raise UserError(f"{flag} is '{text}'; write two whole numbers as in {example}")
    return int(numbers[0]), int(numbers[1])
