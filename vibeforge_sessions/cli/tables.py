"""Tables that are printed page by page, bars and sizes. Every cell is made `safe` for a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vibeforge_sessions.cli.terminal import safe

_WIDTH_WITHOUT_TERMINAL: Final = 2_200
"""Width without a terminal. It is so large that no text is folded, for tools such as `grep`."""
_GAP: Final = 2
_LEAST_FOLDED_WIDTH: Final = 24
"""Minimum width of a folded column."""
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_SPARK_STEPS: Final = " ▁▂▃▄▅▆▇█"
_SPARK_STEPS_IN_ASCII: Final = " .:-=+*#"
_PHASES: Final = {"COMPLETE": "green", "FAILED": "red", "EXECUTION": "cyan", "CLARIFICATION": "yellow"}
_KILO: Final = 1024


@dataclass(frozen=True, slots=True)
class Cell:
    """A stored text, its style, and whether its line breaks are kept."""

    text: str
    style: str = ""
    lines: bool = False

    def shown(self) -> Text:
        """Return a text object of rich, in which markup has no effect."""
        return Text(safe(self.text, lines=self.lines), style=self.style)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a `Listing`."""

    title: str
    right: bool = False
    needed: bool = True
    """Whether the column is shown on a narrow terminal. The other columns are left out, the last one first."""
    folds: bool = False
    """Whether the column gets the remaining width, and its text is folded to that."""


def phase(name: str) -> Cell:
    """Return a phase in its color."""
    return Cell(name, _PHASES.get(name, ""))


def console(*, stderr: bool = False) -> Console:
    """Return a console of the width of the terminal. Characters that its encoding lacks are escaped."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


class Listing:
    """A table that is printed in pages. The first page decides the columns and their widths."""

    def __init__(self, out: Console, *columns: Column) -> None:
        self._out = out
        self._columns = columns
        self._widths: dict[int, int] = {}
        """Width of each shown column."""

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print more rows. The first call also prints the titles."""
        texts = [[cell.shown() for cell in row] for row in rows]
        first = not self._widths
        if first:
            self._widths = self._choose_columns(texts)
        table = Table(box=box.SIMPLE_HEAD, show_header=first, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for index in self._widths:
            column, widest = self._columns[index], _widest(texts, index)
            remaining = self._out.width - _total_width(self._widths) + self._widths[index] if column.folds else widest
            self._widths[index] = max(self._widths[index], min(widest, remaining))
            align: Literal["left", "right"] = "right" if column.right else "left"
            table.add_column(column.title, justify=align, width=self._widths[index], overflow="fold")
        for row in texts:
            table.add_row(*(row[index] for index in self._widths))
        self._out.print(table)

    def _choose_columns(self, texts: Sequence[Sequence[Text]]) -> dict[int, int]:
        """Return the columns that fit on the terminal, and their widths."""
        columns = dict(enumerate(self._columns))
        wanted = {index: max(len(each.title), _widest(texts, index)) for index, each in columns.items()}
        widths = {
            index: min(wanted[index], _LEAST_FOLDED_WIDTH) if each.folds else wanted[index]
            for index, each in columns.items()
        }
        for index in reversed(columns):
            if _total_width(widths) > self._out.width and not columns[index].needed:
                del widths[index]
        return widths


def _total_width(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _widest(texts: Sequence[Sequence[Text]], index: int) -> int:
    return max((max(map(cell_len, row[index].plain.split("\n"))) for row in texts), default=0)


def bar(value: int, most: int, width: int, out: Console) -> str:
    """Return a bar whose length is the ratio of `value` to `most`. A value above 0 gives a visible bar."""
    if not most or not value:
        return ""
    eighths = max(1, round(value / most * width * 8))
    if out.options.ascii_only:
        return "#" * max(1, eighths // 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def spark(series: Sequence[int], width: int, out: Console) -> str:
    """Return a row of small bars, scaled to the greatest number. A blank means 0."""
    together = -(-len(series) // width) or 1
    sums = [sum(series[first : first + together]) for first in range(0, len(series), together)]
    steps = _SPARK_STEPS_IN_ASCII if out.options.ascii_only else _SPARK_STEPS
    most = max(sums, default=0)
    return "".join(steps[-(-number * (len(steps) - 1) // most)] if number else " " for number in sums)


def size(number: int) -> str:
    """Return a number of bytes in a readable unit, with about three digits."""
    amount = float(number)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < _KILO:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"  # noqa: PLR2004
        amount /= _KILO
    return f"{amount:.1f} TB"


def shorten(text: str, lines: int, characters: int) -> str:
    """Return the beginning of a text, and the number of omitted characters."""
    kept = "\n".join(text[:characters].split("\n")[:lines])
    left = len(text) - len(kept)
    return f"{kept}… ({left:,} characters more)" if left else text
