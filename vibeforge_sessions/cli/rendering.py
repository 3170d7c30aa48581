"""Sessions as table rows, as lines, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vibeforge_sessions.cli.tables import Listing, cell, phase
from vibeforge_sessions.cli.times import clock, format_age
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository.query import SessionSummary
from vibeforge_sessions.repository.serialization import ARTIFACTS, Record

_IDS: Final = 12
"""Number of task ids that are shown, from the end of the list."""
_TASKS: Final = ("completed_task_ids", "failed_task_ids")
_NOT_JSON: Final = object()

# --- rows and lines ---

LISTED: Final = ("session", "phase", "updated", "errors", "held", "task", "made", "logs", "version", "created")


def summary_row(item: SessionSummary, out: Console) -> list[object]:
    """Return the row of `LISTED`."""
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
    """Return the JSON of an error or of a log line as text."""
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
    """Return the number of keys or items of a JSON value; None if it has none."""
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
    """Return the fields of a session, except its documents, one in each line."""
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
