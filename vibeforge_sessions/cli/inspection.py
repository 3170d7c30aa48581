"""Commands ``sessions list``, ``show``, ``errors``, ``logs`` and ``delete``. Only ``delete`` writes."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import typer

from vibeforge_sessions.cli import options, rendering
from vibeforge_sessions.cli.groups import Repository, record_of, sessions
from vibeforge_sessions.cli.output import ask_confirmation, clock, safe, safe_json, show
from vibeforge_sessions.cli.rendering import Listing, console
from vibeforge_sessions.repository.query import MAX_PAGE, SessionFilter

_PAGE: Final = 200
"""Number of entries that are read at once. The number is small because messages may be large."""

Entry = dict[str, Any]
"""The JSON of an entry of a history."""


@sessions.command("list")
def list_(
    repository: Repository,
    asked: SessionFilter,
    order: options.Order = "-created_at",
    limit: options.Limit = 50,
    all_: options.All = False,
    cursor: Annotated[str | None, typer.Option(help="Start of the page, as printed after the page before.")] = None,
    as_json: options.Json = False,
) -> None:
    """List sessions, newest first; with --json one object per line. At most one page of them is in memory."""
    out = console()
    listing = Listing(out, *rendering.LISTED, needed=2)
    remaining: float = float("inf") if all_ else limit
    while remaining > 0:
        page = repository.find_sessions(asked, order=order, limit=int(min(remaining, MAX_PAGE)), cursor=cursor)
        if as_json:
            for item in page.items:
                typer.echo(safe_json(rendering.summary_json(item)))
        else:
            listing.add(rendering.summary_row(item, out) for item in page.items)
        remaining, cursor = remaining - len(page.items), page.next_cursor
        if cursor is None:
            return
    typer.echo(f"more: --cursor {cursor}", err=True)


@sessions.command("show")
def show_session(
    repository: Repository,
    session_id: options.SessionId,
    last: Annotated[int, options.LAST] = 5,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """Show one session: its state, tasks and documents, and its last errors and logs."""
    record = record_of(repository, session_id)
    after_error, after_log = max(0, record.error_count - last), max(0, record.log_count - last)
    found = repository.list_errors(session_id, after=after_error, limit=last)
    lines = repository.list_logs(session_id, after=after_log, limit=last)
    errors, logs = list(map(rendering.error_json, found)), rendering.log_json(lines, after_log)
    if as_json:
        show({**rendering.record_json(record), "errors": errors, "logs": logs})
    else:
        rendering.show_record(console(), record, errors, logs, full=full)


@sessions.command()
def errors(
    repository: Repository,
    session_id: options.SessionId,
    after: options.After = 0,
    limit: options.Limit = 50,
    last: options.Last = None,
    all_: options.All = False,
    task: Annotated[str | None, typer.Option(help="Only entries of this task.")] = None,
    phase: Annotated[str | None, typer.Option(help="Only entries of this phase.")] = None,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """Show the error history of a session, oldest first; with --json one object per line."""
    if last is not None and task is None and phase is None:  # without a filter, positions have no gaps
        after = max(after, record_of(repository, session_id).error_count - last)

    def read(position: int) -> list[Entry]:
        found = repository.list_errors(session_id, after=position, limit=_PAGE, task_id=task, phase=phase)
        return list(map(rendering.error_json, found))

    _print_history(read, after, limit=None if all_ else limit, last=last, full=full, as_json=as_json)


@sessions.command()
def logs(
    repository: Repository,
    session_id: options.SessionId,
    after: options.After = 0,
    limit: options.Limit = 50,
    last: options.Last = None,
    all_: options.All = False,
    full: options.Full = False,
    as_json: options.Json = False,
) -> None:
    """Show the log lines of a session, oldest first; with --json one object per line."""
    if last is not None:
        after = max(after, record_of(repository, session_id).log_count - last)

    def read(position: int) -> list[Entry]:
        return rendering.log_json(repository.list_logs(session_id, after=position, limit=_PAGE), position)

    _print_history(read, after, limit=None if all_ else limit, last=last, full=full, as_json=as_json)


@sessions.command()
def delete(
    repository: Repository, session_ids: options.SessionIds, yes: options.Yes = False, as_json: options.Json = False
) -> None:
    """Show sessions, ask for confirmation, and delete them with their histories, even if they are held."""
    shown = set(session_ids)
    if not yes:
        found = [record for record in map(repository.get_record, session_ids) if record is not None]
        shown = {record.session_id for record in found}
        for record in found:
            held = ", held" if record.held_at else ""
            text = f"{record.session_id}: {record.content.phase}, {record.error_count:,} errors, last updated "
            typer.echo(safe(f"{text}{clock(record.updated_at)}{held}"), err=True)
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


def _print_history(
    read: Callable[[int], list[Entry]], after: int, *, limit: int | None, last: int | None, full: bool, as_json: bool
) -> None:
    """Print the entries of a history after a position; if more exist, print the next ``--after`` on stderr.

    :param read: returns a page of the entries after a position.
    :param last: print only this number of entries at the end, instead of `limit` entries at the beginning.
    """
    out, entries = console(), _entries(read, after)
    if last is not None:
        entries, limit = iter(deque(entries, maxlen=last)), None
    for entry in itertools.islice(entries, limit):
        after = entry["position"]
        if as_json:
            typer.echo(safe_json(entry))
        else:
            out.print(rendering.entry_line(entry, full=full), soft_wrap=True)
    if next(entries, None) is not None:
        typer.echo(f"more: --after {after}", err=True)


def _entries(read: Callable[[int], list[Entry]], after: int) -> Iterator[Entry]:
    while page := read(after):
        yield from page
        after = page[-1]["position"]
        if len(page) < _PAGE:
            return
