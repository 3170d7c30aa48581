"""Commands ``sessions list``, ``show``, ``errors``, ``logs`` and ``delete``. Only ``delete`` writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import typer

from vibeforge_sessions.cli import rendering
from vibeforge_sessions.cli.options import (
    After,
    All,
    CreatedBefore,
    CreatedFrom,
    Cursor,
    Full,
    HasErrors,
    Json,
    Last,
    Limit,
    OfPhase,
    Order,
    Phases,
    Schema,
    SessionId,
    SessionIds,
    Task,
    UpdatedBefore,
    UpdatedFrom,
    Url,
    Yes,
)
from vibeforge_sessions.cli.output import ask_confirmation
from vibeforge_sessions.cli.sessions import repository_on, sessions
from vibeforge_sessions.cli.tables import Listing, console
from vibeforge_sessions.cli.terminal import safe, safe_json
from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import MAX_PAGE, SessionFilter
from vibeforge_sessions.repository.serialization import Record

_PAGE: Final = 200
"""Entries that are read at once. The page is short because messages may be large."""
_RECENT: Final = 5

T = TypeVar("T")
Repository = SessionRepository[Any]


@sessions.command("list")
def list_(
    url: Url,
    phase: Phases = None,
    created_from: CreatedFrom = None,
    created_before: CreatedBefore = None,
    updated_from: UpdatedFrom = None,
    updated_before: UpdatedBefore = None,
    has_errors: HasErrors = None,
    order: Order = "-created_at",
    limit: Limit = 50,
    all_: All = False,
    cursor: Cursor = None,
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """List sessions, newest first; with --json one object per line. At most one page of them is in memory."""
    out = console()
    listing = Listing(out, *rendering.LISTED)
    with repository_on(url, schema) as repository:
        asked = SessionFilter(
            phases=phase or None,
            created_from=created_from,
            created_before=created_before,
            updated_from=updated_from,
            updated_before=updated_before,
            has_errors=has_errors,
        )
        remaining: float = float("inf") if all_ else limit
        while remaining > 0:
            page = repository.find_sessions(asked, order=order, limit=int(min(remaining, MAX_PAGE)), cursor=cursor)
            if as_json:
                _print_lines(map(rendering.summary_json, page.items))
            elif page.items or cursor is None:
                listing.add([rendering.summary_row(item, out) for item in page.items])
            remaining, cursor = remaining - len(page.items), page.next_cursor
            if cursor is None:
                return
        typer.echo(f"more: --cursor {cursor}", err=True)


@sessions.command("show")
def show_session(
    url: Url,
    session_id: SessionId,
    last: Last = _RECENT,
    full: Full = False,
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show one session: its state, tasks and documents, and its last errors and logs."""
    with repository_on(url, schema) as repository:
        record = _record(repository, session_id)
        recent = _RECENT if last is None else last
        errors = repository.list_errors(session_id, after=max(0, record.error_count - recent), limit=recent)
        first_log = max(0, record.log_count - recent)
        logs = list(enumerate(repository.list_logs(session_id, after=first_log, limit=recent), first_log + 1))
    if as_json:
        typer.echo(safe_json(rendering.record_json(record, errors, logs), indent=2))
    else:
        rendering.show_record(console(), record, errors, logs, full=full)


@sessions.command()
def errors(
    url: Url,
    session_id: SessionId,
    after: After = 0,
    limit: Limit = 50,
    last: Last = None,
    all_: All = False,
    task: Task = None,
    phase: OfPhase = None,
    full: Full = False,
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show the error history of a session, oldest first; with --json one object per line."""
    out = console()
    listing = Listing(out, *rendering.ERRORS)
    with repository_on(url, schema) as repository:

        def read(position: int, count: int) -> list[tuple[int, ErrorEntry]]:
            found = repository.list_errors(session_id, after=position, limit=count, task_id=task, phase=phase)
            return [(entry.position or 0, entry) for entry in found]

        total = None if task or phase or last is None else _record(repository, session_id).error_count
        for part in _parts(read, after=after, limit=limit, last=last, whole=all_, total=total):
            if as_json:
                _print_lines(rendering.error_json(entry) for _, entry in part)
            else:
                listing.add([rendering.error_row(entry, full=full) for _, entry in part])


@sessions.command()
def logs(
    url: Url,
    session_id: SessionId,
    after: After = 0,
    limit: Limit = 50,
    last: Last = None,
    all_: All = False,
    full: Full = False,
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show the log lines of a session, oldest first; with --json one object per line."""
    out = console()
    listing = Listing(out, *rendering.LOGS)
    with repository_on(url, schema) as repository:

        def read(position: int, count: int) -> list[tuple[int, str]]:
            return list(enumerate(repository.list_logs(session_id, after=position, limit=count), position + 1))

        total = None if last is None else _record(repository, session_id).log_count
        for part in _parts(read, after=after, limit=limit, last=last, whole=all_, total=total):
            if as_json:
                _print_lines({"position": position, "line": line} for position, line in part)
            else:
                listing.add([rendering.log_row(position, line, full=full) for position, line in part])


@sessions.command()
def delete(url: Url, session_ids: SessionIds, yes: Yes = False, schema: Schema = None, as_json: Json = False) -> None:
    """Show sessions, ask for confirmation, and delete them with their histories, even if they are held."""
    with repository_on(url, schema) as repository:
        shown = set(session_ids)
        if not yes:
            records = [repository.get_record(session_id) for session_id in session_ids]
            found = {record.session_id: record for record in records if record is not None}
            shown = set(found)
            if found:
                Listing(console(stderr=True), *rendering.RECORDS).add(map(rendering.record_row, found.values()))
            if found and not ask_confirmation():
                raise typer.Exit(1)
        missing = 0
        for session_id in session_ids:
            deleted = session_id in shown and repository.delete_session(session_id)
            missing += not deleted
            if as_json:
                typer.echo(safe_json({"session_id": session_id, "deleted": deleted}))
            elif deleted:
                typer.echo(f"deleted {safe(session_id)}")
            else:
                typer.echo(f"there is no session {safe(session_id)!r}", err=True)
    if missing:
        raise typer.Exit(1)


def _record(repository: Repository, session_id: str) -> Record:
    record = repository.get_record(session_id)
    if record is None:
        raise SessionNotFoundError(session_id)
    return record


def _parts(
    read: Callable[[int, int], list[tuple[int, T]]],
    *,
    after: int,
    limit: int,
    last: int | None,
    whole: bool,
    total: int | None,
) -> Iterator[Sequence[tuple[int, T]]]:
    """Yield a history in parts, each entry with its position. Print on stderr the option that continues it.

    :param read: returns a number of entries after a position.
    :param last: yield only this number of entries at the end.
    :param total: the number of all entries, if known. Then only the last ones are read.
    """
    if last is not None and total is not None:
        after = max(after, total - last)
    if last is not None:
        yield list(deque((each for part in _pages(read, after) for each in part), maxlen=last))
        return
    remaining: float = float("inf") if whole else limit
    begun = False
    for part in _pages(read, after):
        if remaining <= 0:
            typer.echo(f"more: --after {after}", err=True)
            return
        kept = part[: int(min(remaining, len(part)))]
        yield kept
        begun, remaining, after = True, remaining - len(kept), kept[-1][0]
        if len(kept) < len(part):
            typer.echo(f"more: --after {after}", err=True)
            return
    if not begun:
        yield []


def _pages(read: Callable[[int, int], list[tuple[int, T]]], after: int) -> Iterator[list[tuple[int, T]]]:
    while part := read(after, _PAGE):
        yield part
        after = part[-1][0]
        if len(part) < _PAGE:
            return


def _print_lines(values: Iterable[Any]) -> None:
    text = "".join([f"{safe_json(value)}\n" for value in values])
    if text:
        typer.echo(text, nl=False)
