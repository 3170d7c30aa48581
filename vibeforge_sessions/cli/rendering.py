"""Sessions as table rows, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vibeforge_sessions.cli.tables import Cell, Column, Listing, bar, phase, shorten, size
from vibeforge_sessions.cli.times import ago, clock
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository.query import SessionSummary
from vibeforge_sessions.repository.serialization import ARTIFACTS, DOCUMENTS, Record

_LINES, _CHARACTERS = 12, 2_000
"""Lines and characters of a long text that are shown by default."""
_IDS: Final = 12
"""Number of task ids that are shown, from the end of the list."""
_TASKS: Final = ("completed_task_ids", "failed_task_ids")
_BAR: Final = 20

LISTED: Final = (
    Column("session"),
    Column("phase"),
    Column("updated", needed=False),
    Column("errors", right=True, needed=False),
    Column("held", needed=False),
    Column("task", needed=False),
    Column("made", needed=False),
    Column("logs", right=True, needed=False),
    Column("version", right=True, needed=False),
    Column("created", needed=False),
)
RECORDS: Final = (Column("session"), Column("phase"), Column("updated"), Column("errors", right=True), Column("held"))
ERRORS: Final = (
    Column("#", right=True),
    Column("time"),
    Column("task"),
    Column("phase", needed=False),
    Column("message", folds=True),
)
LOGS: Final = (Column("#", right=True), Column("line", folds=True))


# --- rows ---


def summary_row(item: SessionSummary, out: Console) -> list[Cell]:
    """Return the row of `LISTED`."""
    made, missing = ("#", "-") if out.options.ascii_only else ("●", "○")
    return [
        Cell(item.session_id, "bold"),
        phase(item.phase),
        Cell(clock(item.updated_at)),
        _count(item.error_count, "red"),
        Cell("held" if item.held else "", "magenta"),
        Cell(item.active_task_id or ""),
        Cell("".join(made if name in item.artifacts else missing for name in ARTIFACTS)),
        _count(item.log_count),
        Cell(str(item.version)),
        Cell(clock(item.created_at)),
    ]


def record_row(record: Record) -> list[Cell]:
    """Return the row of `RECORDS`."""
    return [
        Cell(record.session_id, "bold"),
        phase(record.content.phase),
        Cell(clock(record.updated_at)),
        _count(record.error_count, "red"),
        Cell("held" if record.held_at else "", "magenta"),
    ]


def error_row(entry: ErrorEntry, *, full: bool) -> list[Cell]:
    """Return the row of `ERRORS`."""
    return [
        Cell(str(entry.position)),
        Cell(clock(entry.timestamp)),
        Cell(entry.task_id, "bold"),
        phase(entry["phase"]),
        Cell(entry.error_message.rstrip("\n") if full else _short(entry.error_message), lines=True),
    ]


def log_row(position: int, line: str, *, full: bool) -> list[Cell]:
    """Return the row of `LOGS`."""
    return [Cell(str(position)), Cell(line.rstrip("\n") if full else _short(line), lines=True)]


def _count(number: int, style: str = "") -> Cell:
    return Cell(f"{number:,}", style if number else "dim")


def _short(text: str) -> str:
    return shorten(text.rstrip("\n"), _LINES, _CHARACTERS)


# --- JSON ---


def summary_json(item: SessionSummary) -> dict[str, Any]:
    """Return a summary as plain JSON values."""
    return {
        **asdict(item),
        "created_at": item.created_at.isoformat(),
        "updated_at": item.updated_at.isoformat(),
        "artifacts": [name for name in ARTIFACTS if name in item.artifacts],
    }


def error_json(entry: ErrorEntry) -> dict[str, Any]:
    """Return an entry as plain JSON values, with its position."""
    return {"position": entry.position, **entry}


def record_json(record: Record, errors: Sequence[ErrorEntry], logs: Iterable[tuple[int, str]]) -> dict[str, Any]:
    """Return the content of `show_record` as plain JSON values."""
    content = record.content
    return {
        "session_id": record.session_id,
        "phase": content.phase,
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
        "held_at": None if record.held_at is None else record.held_at.isoformat(),
        "version": record.version,
        "current_question_index": content.current_question_index,
        "active_task_id": content.active_task_id,
        **{name: _ids(record, name) for name in _TASKS},
        "tasks": _planned(record),
        "documents": {
            name: None if text is None else {"bytes": len(text), "entries": _entries(text)}
            for name, text in content.documents.items()
            if name not in _TASKS
        },
        "error_count": record.error_count,
        "log_count": record.log_count,
        "errors": [error_json(entry) for entry in errors],
        "logs": [{"position": position, "line": line} for position, line in logs],
    }


# --- a page ---


def show_record(
    out: Console, record: Record, errors: Sequence[ErrorEntry], logs: Sequence[tuple[int, str]], *, full: bool
) -> None:
    """Print a session."""
    out.print(heading(out, record))
    out.print()
    documents = Listing(out, Column("document"), Column("size", right=True), Column("entries", right=True))
    documents.add(
        [Cell(name), Cell(size(len(text))), Cell(_described(text))]
        for name in DOCUMENTS
        if (text := record.content.documents[name]) is not None and name not in _TASKS
    )
    if errors:
        out.print(f"\n{_of(len(errors), record.error_count)} errors", style="bold")
        Listing(out, *ERRORS).add([error_row(entry, full=full) for entry in errors])
    if logs:
        out.print(f"\n{_of(len(logs), record.log_count)} log lines", style="bold")
        Listing(out, *LOGS).add([log_row(position, line, full=full) for position, line in logs])


def heading(out: Console, record: Record) -> Table:
    """Return a summary of a session in a few lines."""
    now = validation.utc_now()
    content = record.content
    rows = [
        ("session", Cell(record.session_id, "bold")),
        ("phase", phase(content.phase)),
        ("created", Cell(f"{clock(record.created_at)} ({ago(record.created_at, now)})")),
        ("updated", Cell(f"{clock(record.updated_at)} ({ago(record.updated_at, now)}), version {record.version}")),
        ("history", Cell(f"{_of(None, record.error_count)} errors, {_of(None, record.log_count)} log lines")),
        ("question", Cell(str(content.current_question_index))),
        ("tasks", Cell(_tasks(out, record))),
        ("active", Cell(content.active_task_id or "", "cyan")),
        ("completed", Cell(_some(_ids(record, "completed_task_ids")), "green")),
        ("failed", Cell(_some(_ids(record, "failed_task_ids")), "red")),
        ("held", Cell("" if record.held_at is None else f"since {clock(record.held_at)}", "magenta")),
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, cell in rows:
        if cell.text:
            table.add_row(Text(name), cell.shown())
    return table


def _tasks(out: Console, record: Record) -> str:
    done, failed = (_ids(record, name) for name in _TASKS)
    if done is None or failed is None:
        return "the task ids cannot be read"
    planned = _planned(record)
    if not (done or failed or planned):
        return ""
    text = f"{len(done):,} completed, {len(failed):,} failed"
    if planned:
        return f"{bar(len(done), max(planned, len(done)), _BAR, out)} {text}, of {planned:,}".lstrip()
    return text


def _ids(record: Record, name: str) -> list[str] | None:
    found = _value(record.content.documents[name])
    return list(map(str, found)) if isinstance(found, list) else None


def _some(ids: Sequence[str] | None) -> str:
    if not ids:
        return ""
    return ("… " if len(ids) > _IDS else "") + ", ".join(ids[-_IDS:])


def _planned(record: Record) -> int | None:
    """Return the number of tasks in the plan; None if it does not have the form that VibeForge writes."""
    graph = _value(record.content.documents["task_graph"])
    tasks = graph.get("tasks") if isinstance(graph, dict) else None
    return len(tasks) if isinstance(tasks, (list, dict)) else None


def _entries(text: str) -> int | None:
    """Return the number of keys or items of a document; None if it has none, or is not JSON."""
    value = _value(text)
    return len(value) if isinstance(value, (dict, list)) else None


def _described(text: str) -> str:
    entries = _entries(text)
    if entries is not None:
        return f"{entries:,}"
    return "" if text == "null" or _value(text) is not None else "not JSON"


def _value(text: str | None) -> Any:
    try:
        return None if text is None else validation.decode_json(text)
    except (ValueError, RecursionError):
        return None


def _of(shown: int | None, number: int) -> str:
    return f"{number:,}" if shown is None else f"{shown:,} of {number:,}"
