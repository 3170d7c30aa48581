"""Rendering: tables that are printed page by page; sessions as table rows, lines, JSON objects and pages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vibeforge_sessions.cli.output import clock, format_age, safe
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository.query import SessionSummary
from vibeforge_sessions.repository.serialization import ARTIFACTS, Record

_IDS: Final = 12
"""Number of task ids that are shown, from the end of the list."""
_TASKS: Final = ("completed_task_ids", "failed_task_ids")
_NOT_JSON: Final = object()

# --- tables, their cells, and bars; every cell is made `safe` for a terminal ---

_WIDTH_WITHOUT_TERMINAL: Final = 2_200
"""Width without a terminal, so large that no line is wrapped: tools such as `grep` need complete lines."""
_GAP: Final = 2
_SPARK_STEPS: Final = " ▁▂▃▄▅▆▇█"
_SPARK_STEPS_IN_ASCII: Final = " .:-=+*#"
_PHASES: Final = {"COMPLETE": "green", "FAILED": "red", "EXECUTION": "cyan", "CLARIFICATION": "yellow"}


def console() -> Console:
    """Return a console with the width of the terminal. Characters that the encoding of stdout lacks are escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    return Console(width=width, markup=False, highlight=False, emoji=False)


def cell(value: object, style: str = "", *, lines: bool = False) -> Text:
    """Return a stored value as a table cell: a number is aligned to the right, and markup in a string has no effect.

    :param lines: keep the line ends of a string, and indent all lines after the first, because unindented lines could
        imitate other output.
    """
    if isinstance(value, int):
        return Text(f"{value:,}", style if value else "dim", justify="right")
    text = safe("" if value is None else clock(value) if isinstance(value, datetime) else str(value), lines=lines)
    return Text(text.replace("\n", "\n    "), style)


def phase(name: str) -> Text:
    """Return a phase in its color."""
    return cell(name, _PHASES.get(name, ""))


class Listing:
    """A table that is printed in pages. The first page determines the columns; later pages can only widen them.

    :param needed: number of columns that are always shown. On a narrow terminal, the other columns are left out,
        starting with the last one. By default all columns are shown.
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
    """Return a row of small bars, scaled to the greatest value. A blank means 0."""
    together = -(-len(series) // width) or 1
    sums = [sum(series[first : first + together]) for first in range(0, len(series), together)]
    steps = _SPARK_STEPS_IN_ASCII if out.options.ascii_only else _SPARK_STEPS
    most = max(sums, default=0)
    return "".join(steps[-(-each * (len(steps) - 1) // most)] if each else " " for each in sums)


# --- rows and lines ---

LISTED: Final = ("session", "phase", "updated", "errors", "held", "task", "made", "logs", "version", "created")


def summary_row(item: SessionSummary, out: Console) -> list[object]:
    """Return the cells of a session for the columns in `LISTED`."""
    made, missing = ("#", "-") if out.options.ascii_only else ("●", "○")
    return [
        cell(item.session_id, "bold"),
        phase(item.phase),
        item.updated_at,
        cell(item.error_count, "red"),
        cell("held" if item.held else "", "magenta"),
        item.active_task_id,
        "".join(made if name in item.artifacts else missing for name in ARTIFACTS),
        item.log_count,
        item.version,
        item.created_at,
    ]


def entry_line(entry: Mapping[str, Any], *, full: bool) -> Text:
    """Return the text of an error or a log line, given its JSON."""
    if "line" in entry:
        text = f"{entry['position']}  {entry['line']}"
    else:
        time = clock(datetime.fromisoformat(entry["timestamp"]))
        text = f"{entry['position']}  {time}  {entry['task_id']}  {entry['phase']}  {entry['error_message']}"
    text = text.rstrip("\n")
    return cell(text if full else shorten(text), lines=True)


def shorten(text: str, lines: int = 12, characters: int = 2_000) -> str:
    """Return the beginning of a string, and the number of omitted characters."""
    kept = "\n".join(text[:characters].split("\n")[:lines])
    left = len(text) - len(kept)
    return f"{kept}… ({left:,} characters more)" if left else text


# --- JSON ---


def summary_json(item: SessionSummary) -> dict[str, Any]:
    """Return the JSON of a summary."""
    return asdict(item) | {"artifacts": [name for name in ARTIFACTS if name in item.artifacts]}


def error_json(entry: ErrorEntry) -> dict[str, Any]:
    """Return the JSON of an entry, with its position."""
    return {"position": entry.position, **entry}


def log_json(lines: Sequence[str], after: int) -> list[dict[str, Any]]:
    """Return the JSON of log lines, each with its position."""
    return [{"position": position, "line": line} for position, line in enumerate(lines, after + 1)]


def record_json(record: Record) -> dict[str, Any]:
    """Return the JSON of a session without its histories."""
    found = asdict(record)
    del found["write_id"]
    content = found.pop("content")
    documents = content.pop("documents")
    values = {name: _value(text) for name, text in documents.items()}
    graph = values["task_graph"]
    return {
        **found,
        **content,
        **{name: list(map(str, values[name])) if isinstance(values[name], list) else None for name in _TASKS},
        # None if the plan does not have the form that VibeForge writes
        "tasks": _entries(graph.get("tasks")) if isinstance(graph, dict) else None,
        "documents": {
            name: None if text is None else {"bytes": len(text), "entries": _entries(values[name])}
            for name, text in documents.items()
            if name not in _TASKS
        },
    }


def _value(text: str | None) -> Any:
    try:
        return None if text is None else validation.decode_json(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _entries(value: object) -> int | None:
    """Return the number of keys or items of a JSON value; None if it is neither an object nor an array."""
    return len(value) if isinstance(value, (dict, list)) else None


# --- a page ---


def show_record(
    out: Console, record: Record, errors: Sequence[Mapping[str, Any]], logs: Sequence[Mapping[str, Any]], *, full: bool
) -> None:
    """Print a session with entries of its histories."""
    out.print(heading(record))
    out.print()
    Listing(out, "document", "bytes", "entries").add(
        [name, len(text), "not JSON" if (value := _value(text)) is _NOT_JSON else _entries(value)]
        for name, text in record.content.documents.items()
        if text is not None
    )
    for title, entries, count in (("errors", errors, record.error_count), ("log lines", logs, record.log_count)):
        if entries:
            out.print(f"\n{len(entries):,} of {count:,} {title}", style="bold")
        for entry in entries:
            out.print(entry_line(entry, full=full), soft_wrap=True)


def heading(record: Record) -> Table:
    """Return the fields of a session, except its documents, one per line."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    now = validation.utc_now()
    for name, value in record_json(record).items():
        if isinstance(value, datetime):
            table.add_row(name, f"{clock(value)} ({format_age(now - value)} ago)")
        elif isinstance(value, list):
            more = f"{len(value) - _IDS:,} others, " if len(value) > _IDS else ""
            table.add_row(name, cell(more + ", ".join(value[-_IDS:])))
        elif value is not None and name != "documents":
            table.add_row(name, phase(str(value)))
    return table
