"""Sessions as table rows, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vibeforge_sessions.cli.tables import Listing, bar, cell, number, phase, shorten, size
from vibeforge_sessions.cli.times import clock, format_age
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository.query import SessionSummary
from vibeforge_sessions.repository.serialization import ARTIFACTS, Record

_LINES, _CHARACTERS = 12, 2_000
"""Lines and characters of a long text that are shown by default."""
_IDS: Final = 12
"""Number of task ids that are shown, from the end of the list."""
_TASKS: Final = ("completed_task_ids", "failed_task_ids")
_BAR: Final = 20
_NOT_JSON: Final = object()

# --- rows ---

LISTED: Final = ("session", "phase", "updated", "errors", "held", "task", "made", "logs", "version", "created")
ERRORS: Final = ("#", "time", "task", "phase", "message")
LOGS: Final = ("#", "line")


def summary_row(item: SessionSummary, out: Console) -> list[Text]:
    """Return the row of `LISTED`."""
    made, missing = ("#", "-") if out.options.ascii_only else ("●", "○")
    return [
        cell(item.session_id, "bold"),
        phase(item.phase),
        cell(clock(item.updated_at)),
        number(item.error_count, "red"),
        cell("held" if item.held else "", "magenta"),
        cell(item.active_task_id or ""),
        cell("".join(made if name in item.artifacts else missing for name in ARTIFACTS)),
        number(item.log_count),
        number(item.version),
        cell(clock(item.created_at)),
    ]


def error_row(entry: Mapping[str, Any], *, full: bool) -> list[Text]:
    """Return the row of `ERRORS` for the JSON of an entry."""
    return [
        number(entry["position"]),
        cell(clock(datetime.fromisoformat(entry["timestamp"]))),
        cell(entry["task_id"], "bold"),
        phase(entry["phase"]),
        _long(entry["error_message"], full=full),
    ]


def log_row(entry: Mapping[str, Any], *, full: bool) -> list[Text]:
    """Return the row of `LOGS` for the JSON of a line."""
    return [number(entry["position"]), _long(entry["line"], full=full)]


def _long(text: str, *, full: bool) -> Text:
    text = text.rstrip("\n")
    return cell(text if full else shorten(text, _LINES, _CHARACTERS), lines=True)


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
    content = record.content
    values = {name: _value(text) for name, text in content.documents.items()}
    graph = values["task_graph"]
    return {
        "session_id": record.session_id,
        "phase": content.phase,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "held_at": record.held_at,
        "version": record.version,
        "current_question_index": content.current_question_index,
        "active_task_id": content.active_task_id,
        **{name: list(map(str, values[name])) if isinstance(values[name], list) else None for name in _TASKS},
        # None if the plan does not have the form that VibeForge writes
        "tasks": _entries(graph.get("tasks")) if isinstance(graph, dict) else None,
        "documents": {
            name: None if text is None else {"bytes": len(text), "entries": _entries(values[name])}
            for name, text in content.documents.items()
            if name not in _TASKS
        },
        "error_count": record.error_count,
        "log_count": record.log_count,
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
    out.print(heading(out, record))
    out.print()
    Listing(out, "document", "size", "entries").add(
        [cell(name), number(size(len(text))), number(_described(text))]
        for name, text in record.content.documents.items()
        if text is not None and name not in _TASKS
    )
    if errors:
        out.print(f"\n{len(errors):,} of {record.error_count:,} errors", style="bold")
        Listing(out, *ERRORS, folds=True).add(error_row(entry, full=full) for entry in errors)
    if logs:
        out.print(f"\n{len(logs):,} of {record.log_count:,} log lines", style="bold")
        Listing(out, *LOGS, folds=True).add(log_row(entry, full=full) for entry in logs)


def _described(text: str) -> str:
    value = _value(text)
    entries = _entries(value)
    return "not JSON" if value is _NOT_JSON else "" if entries is None else f"{entries:,}"


def heading(out: Console, record: Record) -> Table:
    """Return a summary of a session in a few lines."""
    found, now = record_json(record), validation.utc_now()
    created, updated = (
        f"{clock(time)} ({format_age(now - time)} ago)" for time in (record.created_at, record.updated_at)
    )
    rows = {
        "session": cell(record.session_id, "bold"),
        "phase": phase(record.content.phase),
        "created": cell(created),
        "updated": cell(f"{updated}, version {record.version}"),
        "history": cell(f"{record.error_count:,} errors, {record.log_count:,} log lines"),
        "question": cell(str(record.content.current_question_index)),
        "tasks": cell(_progress(out, found)),
        "active": cell(record.content.active_task_id or "", "cyan"),
        "completed": cell(_last(found["completed_task_ids"]), "green"),
        "failed": cell(_last(found["failed_task_ids"]), "red"),
        "held": cell("" if record.held_at is None else f"since {clock(record.held_at)}", "magenta"),
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    return table


def _progress(out: Console, found: Mapping[str, Any]) -> str:
    completed, failed, planned = found["completed_task_ids"], found["failed_task_ids"], found["tasks"]
    if completed is None or failed is None:
        return "the task ids cannot be read"
    if not (completed or failed or planned):
        return ""
    text = f"{len(completed):,} completed, {len(failed):,} failed"
    if planned:
        return f"{bar(len(completed), max(planned, len(completed)), _BAR, out)} {text}, of {planned:,}".lstrip()
    return text


def _last(ids: Sequence[str] | None) -> str:
    ids = ids or []
    return ("… " if len(ids) > _IDS else "") + ", ".join(ids[-_IDS:])
