"""``sparse-tx compress``: a file as small as a model's predictions make it."""

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
from sparse_tx.generation.compression import compress

DESCRIPTION = """Compress a file, whatever its bytes are, by what a model predicts of them. The size
proves the model's bits per byte. Nothing is lost, but only the same checkpoint gives the file back,
by decompress, on the same kind of machine."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 2 after a mistake in what was given, 130 after Ctrl-C."""
    return run_command(_compress, argv)


def _compress(argv: list[str]) -> int:
    args = make_parser("compress", DESCRIPTION, f"FILE{EXTENSION}").parse_args(argv)
    if args.file == "-" and args.out is None:
        raise UserError("the file is stdin; say with --out where the result goes, - for stdout")
    out = choose_output(args.out or args.file + EXTENSION, args.overwrite)
    data = read_file(args.file)
    model, tokenizer = load_model(args)
    began = perf_counter()
    try:
        with progress_bar("compressing") as show:
            result = compress(model, tokenizer, data, on_progress=show)
    except UserError as error:
        raise UserError(f"'{args.file}' cannot be compressed: {error}") from error
    give_output(out, result)
    seconds = perf_counter() - began
    note(f"{len(data):,} bytes in, {len(result):,} out: {out}, {len(data) / seconds:,.0f} bytes/s")
    if data:
        note(f"{8 * len(result) / len(data):.4f} bits per byte, {len(result) / len(data):.2%}")
    return 0
