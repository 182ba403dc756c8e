"""The flags by which a command is told of a trained model."""

from sparse_tx.checkpoint import Which
from sparse_tx.commands.shell import CommandParser


def add_checkpoint(parser: CommandParser, *, required: bool = True) -> None:
    """Add ``--checkpoint`` and ``--which``, as ``find_checkpoint`` takes them."""
    parser.add_argument(
        "--checkpoint",
        type=str,
        required=required,
        help="A trained model: a run directory, or one checkpoint of it.",
    )
    parser.add_argument(
        "--which", type=Which, default="latest", help="Of a run: its latest checkpoint or its best."
    )
