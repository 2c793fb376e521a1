"""Tables for people, made with rich.

Where stdout is no terminal a table is as wide as it needs to be: it is for grep then, and a line
must not break. What cannot be printed is shown as an escape sequence of Python.
"""

import io
import shutil
import sys
from collections.abc import Iterable, Sequence

import click

_WIDE = 10_000


def show_table(
    title: str, rows: Iterable[Sequence[str]], *, columns: Sequence[str] = (), numbers: int = 0
) -> None:
    """Print *rows* under *title* and, if there are any, the headings *columns*.

    The last *numbers* columns are aligned to the right.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    lines = [[_printable(cell) for cell in row] for row in rows]
    count = len(columns) or max((len(line) for line in lines), default=0)
    table = Table(box=None, show_header=bool(columns), pad_edge=False)
    for index in range(count):
        table.add_column(
            columns[index] if columns else "",
            justify="right" if index >= count - numbers else "left",
            no_wrap=True,
            overflow="fold",
        )
    for line in lines:
        table.add_row(*map(escape, line))
    text = io.StringIO()
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else _WIDE
    console = Console(file=text, width=width, force_terminal=is_terminal)
    console.print(Text(_printable(title), style="bold"), soft_wrap=True)
    console.print(table)
    shown = [line.rstrip() for line in text.getvalue().splitlines()]
    click.echo("\n".join(shown))


def _printable(text: str) -> str:
    """*text* without control characters: names and labels may hold what a terminal obeys."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
