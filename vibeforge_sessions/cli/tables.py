"""How things look on a terminal: tables that may be printed in pieces, bars, sizes. Every cell is made `safe`."""

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

_PIPE: Final = 2_200
"""The width where there is no terminal: nothing that is shown of a text is folded, for `grep` and the like."""
_GAP: Final = 2
_FOLDED: Final = 24
"""The least width of a column that is folded."""
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_STEPS: Final = " ▁▂▃▄▅▆▇█"
_STEPS_IN_ASCII: Final = " .:-=+*#"
_PHASES: Final = {"COMPLETE": "green", "FAILED": "red", "EXECUTION": "cyan", "CLARIFICATION": "yellow"}
_KILO: Final = 1024


@dataclass(frozen=True, slots=True)
class Cell:
    """A stored text, how it is to look, and whether its lines are kept."""

    text: str
    style: str = ""
    lines: bool = False

    def shown(self) -> Text:
        """Return it as rich takes it: no markup in it means anything."""
        return Text(safe(self.text, lines=self.lines), style=self.style)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a `Listing`."""

    title: str
    right: bool = False
    needed: bool = True
    """Whether it stays where the terminal is too narrow; those that do not are left out from the last on."""
    folds: bool = False
    """Whether it takes what room is left, and is folded to that."""


def phase(name: str) -> Cell:
    """Return a phase in its colour."""
    return Cell(name, _PHASES.get(name, ""))


def console(*, stderr: bool = False) -> Console:
    """Return where to print: as wide as the terminal, and a character that it does not know is escaped."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


class Listing:
    """A table that is printed in pieces: the columns of the first one, and their widths, are those of all."""

    def __init__(self, out: Console, *columns: Column) -> None:
        self._out = out
        self._columns = columns
        self._widths: dict[int, int] = {}
        """Of those that are shown."""

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print more rows; the first call prints the titles, too."""
        texts = [[cell.shown() for cell in row] for row in rows]
        first = not self._widths
        if first:
            self._widths = self._chosen(texts)
        table = Table(box=box.SIMPLE_HEAD, show_header=first, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for index in self._widths:
            column, widest = self._columns[index], _widest(texts, index)
            room = self._out.width - _room(self._widths) + self._widths[index] if column.folds else widest
            self._widths[index] = max(self._widths[index], min(widest, room))
            align: Literal["left", "right"] = "right" if column.right else "left"
            table.add_column(column.title, justify=align, width=self._widths[index], overflow="fold")
        for row in texts:
            table.add_row(*(row[index] for index in self._widths))
        self._out.print(table)

    def _chosen(self, texts: Sequence[Sequence[Text]]) -> dict[int, int]:
        """Return the columns that the terminal has room for, and their widths."""
        columns = dict(enumerate(self._columns))
        wanted = {index: max(len(each.title), _widest(texts, index)) for index, each in columns.items()}
        widths = {
            index: min(wanted[index], _FOLDED) if each.folds else wanted[index] for index, each in columns.items()
        }
        for index in reversed(columns):
            if _room(widths) > self._out.width and not columns[index].needed:
                del widths[index]
        return widths


def _room(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _widest(texts: Sequence[Sequence[Text]], index: int) -> int:
    return max((max(map(cell_len, row[index].plain.split("\n"))) for row in texts), default=0)


def bar(value: int, most: int, width: int, out: Console) -> str:
    """Return a bar as long as `value` is of `most`; what is not nothing is seen."""
    if not most or not value:
        return ""
    eighths = max(1, round(value / most * width * 8))
    if out.options.ascii_only:
        return "#" * max(1, eighths // 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def spark(series: Sequence[int], width: int, out: Console) -> str:
    """Return a row of small bars, each as high as its number is of the greatest; a blank is nothing."""
    together = -(-len(series) // width) or 1
    sums = [sum(series[first : first + together]) for first in range(0, len(series), together)]
    steps = _STEPS_IN_ASCII if out.options.ascii_only else _STEPS
    most = max(sums, default=0)
    return "".join(steps[-(-number * (len(steps) - 1) // most)] if number else " " for number in sums)


def size(number: int) -> str:
    """Return bytes as people read them: three digits or so."""
    amount = float(number)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < _KILO:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"  # noqa: PLR2004
        amount /= _KILO
    return f"{amount:.1f} TB"


def cut(text: str, lines: int, characters: int) -> str:
    """Return the beginning of a text, and how much more there is."""
    kept = "\n".join(text[:characters].split("\n")[:lines])
    left = len(text) - len(kept)
    return f"{kept}… ({left:,} characters more)" if left else text
