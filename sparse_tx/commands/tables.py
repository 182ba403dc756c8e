"""Tables as text, as wide as they need to be: a number cut short by the terminal tells nothing."""

from rich.table import Table

from sparse_tx.commands.console import PlainConsole

WIDEST = 200


def table_lines(table: Table) -> list[str]:
    """The lines of a table, without blanks at their ends."""
    console = PlainConsole(width=WIDEST, markup=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]
