"""Command ``sessions watch``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from vibeforge_sessions.cli import options
from vibeforge_sessions.cli.groups import Repository, record_of, sessions
from vibeforge_sessions.cli.output import clock, safe_json
from vibeforge_sessions.cli.rendering import cell, console, heading
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import SessionPhase
from vibeforge_sessions.repository.base import SessionRepository

FAILED: Final = 9
"""Exit code if the session has ended in FAILED."""
_ENDS: Final = {SessionPhase.COMPLETE.value: 0, SessionPhase.FAILED.value: FAILED}
_STYLES: Final = {"error": "red", "log": "", "phase": "bold"}
_PAGE: Final = 200


Change = dict[str, Any]
"""The JSON of a change.

Its ``event`` is ``phase``, ``task``, ``error``, ``log``, ``held``, ``released``, or ``recreated`` for a new
incarnation. All changes have a ``time`` and a ``text``. Errors and log lines also have a ``position``, and errors have
a ``task_id`` and a ``phase``.
"""


class Watch:
    """The last known state of a session. Each poll reads its record and the new history entries."""

    def __init__(self, repository: SessionRepository[Any], session_id: str) -> None:
        self._repository = repository
        self._session_id = session_id
        self.record = record_of(repository, session_id)
        self._errors, self._logs = self.record.counts

    def poll(self) -> Iterator[Change]:
        """Yield the changes since the last poll. History entries come first, so that the final phase comes last."""
        before, after = self.record, record_of(self._repository, self._session_id)
        self.record, now = after, after.updated_at
        if after.created_at != before.created_at or any(map(int.__lt__, after.counts, before.counts)):
            self._errors = self._logs = 0
            yield _change("recreated", after.created_at)
        yield from self._appended()
        if after.content.active_task_id != before.content.active_task_id:
            yield _change("task", now, after.content.active_task_id or "none")
        if (after.held_at is None) != (before.held_at is None):
            yield _change("released" if after.held_at is None else "held", after.held_at or validation.utc_now())
        if after.content.phase != before.content.phase:
            yield _change("phase", now, after.content.phase)

    def _appended(self) -> Iterator[Change]:
        while found := self._repository.list_errors(self._session_id, after=self._errors, limit=_PAGE):
            for entry in found:
                self._errors = entry.position or 0
                where = {"position": entry.position, "task_id": entry.task_id, "phase": entry["phase"]}
                yield _change("error", entry.timestamp, entry.error_message.rstrip("\n"), **where)
        while lines := self._repository.list_logs(self._session_id, after=self._logs, limit=_PAGE):
            for line in lines:
                self._logs += 1
                yield _change("log", self.record.updated_at, line.rstrip("\n"), position=self._logs)


def _change(event: str, time: datetime, text: str = "", **where: Any) -> Change:
    return {"event": event, "time": time, **where, "text": text}


def _line(change: Change) -> Text:
    values = (clock(value) if isinstance(value, datetime) else str(value) for value in change.values())
    return cell("  ".join(filter(None, values)), _STYLES.get(change["event"], "dim"), lines=True)


@sessions.command()
def watch(
    repository: Repository, session_id: options.SessionId, every: options.Every = 1.0, as_json: options.Json = False
) -> None:
    """Print the changes of a session until it is COMPLETE, FAILED (exit code 9), or until Ctrl-C (130).

    On a terminal, the current state is shown below the changes. With --json, each change is one object per line.
    """
    out = console()
    watched = Watch(repository, session_id)

    def page() -> Group:
        footer = Text(f"read at {clock(validation.utc_now())}, Ctrl-C ends", style="dim")
        return Group(Rule(style="dim"), heading(watched.record), footer)

    live = Live(console=out, auto_refresh=False, get_renderable=page) if out.is_terminal and not as_json else None
    with live or nullcontext():
        changes: Iterable[Change] = [_change("phase", watched.record.updated_at, watched.record.content.phase)]
        while True:
            for change in changes:
                if as_json:
                    typer.echo(safe_json(change))
                else:
                    out.print(_line(change), soft_wrap=True)
            if live is not None:
                live.refresh()
            if watched.record.content.phase in _ENDS:
                raise typer.Exit(_ENDS[watched.record.content.phase])
            time.sleep(every)
            changes = watched.poll()
