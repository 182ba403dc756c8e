"""``sparse-tx decompress``: what compress was given, exactly, or nothing."""

from time import perf_counter

from sparse_tx.commands.compressed_files import (
    EXTENSION,
    choose_output,
    give_output,
    load_model,
    make_parser,
    progress_bar,
    read_file,
)
from sparse_tx.commands.shell import note, run_command
from sparse_tx.errors import UserError
from sparse_tx.generation.compression import Compressed, decompress

DESCRIPTION = """Give back the file that compress was given, exactly, or nothing. It takes the
checkpoint that compressed it, and about twice as long."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 2 after a mistake in what was given, 130 after Ctrl-C."""
    return run_command(_decompress, argv)


def _decompress(argv: list[str]) -> int:
    args = make_parser("decompress", DESCRIPTION, f"FILE without {EXTENSION}").parse_args(argv)
    if args.out is None and not args.file.endswith(EXTENSION):
        raise UserError(
            f"the name '{args.file}' does not end with {EXTENSION}; say with --out where the result"
            " goes, - for stdout"
        )
    out = choose_output(args.out or args.file.removesuffix(EXTENSION), args.overwrite)
    content = read_file(args.file)
    try:
        file = Compressed.from_bytes(content)  # before a model is loaded
    except UserError as error:
        raise UserError(f"'{args.file}' cannot be decompressed: {error}") from error
    model, tokenizer = load_model(args)
    began = perf_counter()
    try:
        with progress_bar("decompressing") as show:
            data = decompress(model, tokenizer, file, on_progress=show)
    except UserError as error:
        raise UserError(f"'{args.file}' cannot be decompressed: {error}") from error
    give_output(out, data)
    note(f"{len(data):,} bytes: {out}, {len(data) / (perf_counter() - began):,.0f} bytes/s")
    return 0
