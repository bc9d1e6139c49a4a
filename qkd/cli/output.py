"""Tables and text on stdout: within the width of a terminal; elsewhere, where nothing is narrow, as wide as they are."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

LEAST_WIDTH = 120  # columns of a table of facts that goes to a file or a pipe


def print_facts(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Names and values; a value that is too long for the terminal goes on below itself."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    click.echo(title)
    table = Table(box=SIMPLE, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, value)
    console = Console(highlight=False, markup=False)
    console.width = console.width if console.is_terminal else max(console.width, LEAST_WIDTH)
    console.print(table)


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """A table whose cells are never cut: ``left`` columns to the left, numbers to the right.

    Where it is wider than the terminal the first column is numbered and its names follow below.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    whole = _table(header, lines, left)
    if console.is_terminal and _width(whole) > console.width:
        numbers = {name: str(i) for i, name in enumerate(dict.fromkeys(line[0] for line in lines), 1)}
        whole = _table(header, [[numbers[line[0]], *line[1:]] for line in lines], left)
    else:
        numbers = {}
    # with a height too, because rich takes a terminal of unknown type to be 80 columns wide otherwise
    Console(width=_width(whole), height=1000, highlight=False, markup=False).print(whole)
    for name, number in numbers.items():
        click.echo(f"{number}: {name}")


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 0, 0, 0), pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def _width(table: Table) -> int:
    """The columns a table takes where nothing of it is cut."""
    from rich.console import Console

    return Console(width=1000).measure(table).maximum


def print_wrapped(text: str, indent: str = "") -> None:
    """Text whose lines are broken at the width of a terminal, with an indent from the second line on."""
    from rich.console import Console

    console = Console()
    for line in text.splitlines() if console.is_terminal else ():
        hanging = indent or " " * (len(line) - len(line.lstrip()) + 2)
        folded = textwrap.wrap(line, console.width, subsequent_indent=hanging, break_long_words=False)
        click.echo("\n".join(folded or [""]))
    if not console.is_terminal:
        click.echo(text)
