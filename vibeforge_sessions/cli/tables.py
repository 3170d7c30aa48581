"""Tables that are printed page by page, their cells, and bars. Every cell is made `safe` for a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from vibeforge_sessions.cli.terminal import safe
from vibeforge_sessions.cli.times import clock

_WIDTH_WITHOUT_TERMINAL: Final = 2_200
"""Width without a terminal. It is so large that no line is wrapped, for tools such as `grep`."""
_GAP: Final = 2
_SPARK_STEPS: Final = " ▁▂▃▄▅▆▇█"
_SPARK_STEPS_IN_ASCII: Final = " .:-=+*#"
_PHASES: Final = {"COMPLETE": "green", "FAILED": "red", "EXECUTION": "cyan", "CLARIFICATION": "yellow"}

size = decimal
"""Return a number of bytes in a readable unit."""


def console() -> Console:
    """Return a console of the width of the terminal. Characters that its encoding lacks are escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    return Console(width=width, markup=False, highlight=False, emoji=False)


def cell(value: object, style: str = "", *, lines: bool = False) -> Text:
    """Return a stored value for rich: a number is aligned to the right, and markup in a string has no effect.

    :param lines: keep the line ends of a string, and indent all lines after the first, because they could imitate other
        output.
    """
    if isinstance(value, int):
        return Text(f"{value:,}", style if value else "dim", justify="right")
    text = safe("" if value is None else clock(value) if isinstance(value, datetime) else str(value), lines=lines)
    return Text(text.replace("\n", "\n    "), style)


def phase(name: str) -> Text:
    """Return a phase in its color."""
    return cell(name, _PHASES.get(name, ""))


class Listing:
    """A table that is printed in pages. The first page decides the columns and their widths.

    :param needed: number of columns that are always shown. On a narrow terminal the others are left out, the last one
        first. By default all columns are shown.
    """

    def __init__(self, out: Console, *titles: str, needed: int | None = None) -> None:
        self._out = out
        self._titles = titles
        self._needed = needed or len(titles)
        self._widths: list[int] = []
        """Widths of the shown columns."""

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        """Print more rows. The first call also prints the titles."""
        page = [[each if isinstance(each, Text) else cell(each) for each in row] for row in rows]
        first = not self._widths
        columns = list(zip(map(Text, self._titles), *page, strict=True))
        widths = [max(cell_len(line) for text in column for line in text.plain.split("\n")) for column in columns]
        if first:
            while len(widths) > self._needed and sum(widths) + _GAP * (len(widths) - 1) > self._out.width:
                widths.pop()
        self._widths = widths if first else [max(pair) for pair in zip(self._widths, widths, strict=False)]
        table = Table(box=box.SIMPLE_HEAD, show_header=first, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for title, width, column in zip(self._titles, self._widths, columns, strict=False):
            table.add_column(title, justify=column[-1].justify or "left", width=width, overflow="fold")
        for row in page:
            table.add_row(*row[: len(self._widths)])
        self._out.print(table)


def bar(value: int, most: int, width: int, out: Console) -> str:
    """Return a bar whose length is the ratio of `value` to `most`. A value above 0 gives a visible bar."""
    length = max(1, round(value / most * width)) if value else 0
    return ("#" if out.options.ascii_only else "█") * length


def spark(series: Sequence[int], width: int, out: Console) -> str:
    """Return a row of small bars, scaled to the greatest number. A blank means 0."""
    together = -(-len(series) // width) or 1
    sums = [sum(series[first : first + together]) for first in range(0, len(series), together)]
    steps = _SPARK_STEPS_IN_ASCII if out.options.ascii_only else _SPARK_STEPS
    most = max(sums, default=0)
    return "".join(steps[-(-each * (len(steps) - 1) // most)] if each else " " for each in sums)
