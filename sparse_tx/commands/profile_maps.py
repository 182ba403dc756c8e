"""``sparse-tx profile --maps``: what modules for feature maps cost beside one another."""

from sparse_tx.commands.reports import report_console, report_folder
from sparse_tx.commands.shell import CommandParser
from sparse_tx.errors import UserError
from sparse_tx.profiler.maps import (
    PATTERNS,
    REDUCTION,
    parse_map_patterns,
    parse_maps,
    profile_maps,
)
from sparse_tx.profiler.provenance import provenance
from sparse_tx.profiler.report.map_files import map_tables, write_map_report

FLAG = "--maps"
DESCRIPTION = """Say what attention for feature maps costs: parameters, multiply-accumulates and
attention maps of non-local blocks, position and channel attention, SE and CBAM, by exact counts
beside a 3x3 convolution, and from which size on one costs more than another."""


def asks_for_maps(argv: list[str]) -> bool:
    """Whether the command is called for maps, not for lengths of text."""
    return any(arg.partition("=")[0] == FLAG for arg in argv)


def run(argv: list[str]) -> int:
    """Print the comparison, and leave its files where ``--out`` says.

    Raises:
        UserError: maps, patterns or a reduction that cannot be, or a folder that cannot be written.
    """
    args = _parser().parse_args(argv)
    for name in ("maps", "patterns", "out"):
        if (value := getattr(args, name)) is not None and not value.strip():
            raise UserError(f"--{name} is {value!r}; give a value, or leave the flag out")
    shapes, patterns = parse_maps(args.maps), parse_map_patterns(args.patterns)
    profile = profile_maps(shapes, patterns, reduction=args.reduction, provenance=provenance())
    if args.out is not None:
        report_folder(args.out)
    console = report_console()
    for part in map_tables(profile):
        console.print(part)
    if args.out is not None:
        for path in write_map_report(profile, args.out).values():
            console.print(str(path), markup=False, soft_wrap=True)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog=f"sparse-tx profile {FLAG}", description=DESCRIPTION)
    add = parser.add_argument
    add(FLAG, type=str, help="Height x width x channels, one or more, such as 97x97x512,48x48x256.")
    add(
        "--patterns",
        type=str,
        default=PATTERNS,
        help="Of position attention, between ';': the word W is the map's width.",
    )
    add("--reduction", type=int, default=REDUCTION, help="Of the gates for channels, SE and CBAM.")
    add("--out", type=str, help="Folder for HTML page, PNG, CSV and JSON.")
    return parser
