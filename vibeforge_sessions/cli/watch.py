"""Command ``sessions watch``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from vibeforge_sessions.cli.options import Every, Json, Schema, SessionId, Url
from vibeforge_sessions.cli.rendering import heading
from vibeforge_sessions.cli.sessions import repository_on, sessions
from vibeforge_sessions.cli.tables import Cell, console, phase
from vibeforge_sessions.cli.terminal import safe, safe_json
from vibeforge_sessions.cli.times import clock
from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import SessionPhase
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.serialization import Record

FAILED: Final = 9
"""Exit code if the session has ended in FAILED."""
_INTERRUPTED: Final = 130
_ENDS: Final = {SessionPhase.COMPLETE.value: 0, SessionPhase.FAILED.value: FAILED}
_PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a session."""

    kind: str
    """``phase``, ``task``, ``error``, ``log``, ``held``, ``released``, or ``recreated`` for a new incarnation."""
    time: datetime
    text: str
    position: int | None = None
    task_id: str | None = None
    phase: str | None = None

    def cell(self) -> Cell:
        """Return the event as text of one or more lines."""
        if self.kind == "log":
            return Cell(self.text, lines=True)
        if self.kind == "error":
            return Cell(
                f"{clock(self.time)} error {self.position} of {self.task_id} in {self.phase}: {self.text}",
                "red",
                lines=True,
            )
        style = phase(self.text).style if self.kind == "phase" else "dim"
        return Cell(f"{clock(self.time)} {self.kind} {self.text}".rstrip(), style)

    def json(self) -> dict[str, Any]:
        """Return the event as plain JSON values."""
        found = {"event": self.kind, "time": self.time.isoformat(), "text": self.text}
        more = {"position": self.position, "task_id": self.task_id, "phase": self.phase}
        return found | {name: value for name, value in more.items() if value is not None}


class Watch:
    """The last known state of a session. Each poll reads its record and the new history entries."""

    def __init__(self, repository: SessionRepository[Any], session_id: str) -> None:
        self._repository = repository
        self._session_id = session_id
        self.record = self._read()
        self._positions = self.record.counts

    @property
    def ended(self) -> int | None:
        """Exit code for the final phase of the session; None while it has not ended."""
        return _ENDS.get(self.record.content.phase)

    def poll(self) -> Iterator[Event]:
        """Yield the changes since the last poll. History entries come first, so that the final phase comes last."""
        before, self.record = self.record, self._read()
        after = self.record
        if after.created_at != before.created_at or any(
            new < old for new, old in zip(after.counts, before.counts, strict=True)
        ):
            self._positions = (0, 0)
            yield Event("recreated", after.created_at, "")
        yield from self._appended()
        now = after.updated_at
        if after.content.active_task_id != before.content.active_task_id:
            yield Event("task", now, after.content.active_task_id or "none")
        if (after.held_at is None) != (before.held_at is None):
            yield Event("released" if after.held_at is None else "held", after.held_at or validation.utc_now(), "")
        if after.content.phase != before.content.phase:
            yield Event("phase", now, after.content.phase)

    def _appended(self) -> Iterator[Event]:
        errors, logs = self._positions
        while found := self._repository.list_errors(self._session_id, after=errors, limit=_PAGE):
            for entry in found:
                errors = entry.position or 0
                yield Event(
                    "error", entry.timestamp, entry.error_message.rstrip("\n"), errors, entry.task_id, entry["phase"]
                )
        while lines := self._repository.list_logs(self._session_id, after=logs, limit=_PAGE):
            for line in lines:
                logs += 1
                yield Event("log", self.record.updated_at, line.rstrip("\n"), logs)
        self._positions = errors, logs

    def _read(self) -> Record:
        record = self._repository.get_record(self._session_id)
        if record is None:
            raise SessionNotFoundError(self._session_id)
        return record


@sessions.command()
def watch(url: Url, session_id: SessionId, every: Every = 1.0, schema: Schema = None, as_json: Json = False) -> None:
    """Print the changes of a session until it is COMPLETE, FAILED (exit code 9), or until Ctrl-C (130).

    On a terminal, the current state is shown below the changes. With --json, each change is one object per line.
    """
    out = console()
    try:
        with repository_on(url, schema) as repository:
            watched = Watch(repository, session_id)
            with _live_page(out, watched, live=out.is_terminal and not as_json) as refresh:
                record = watched.record
                first = Event("phase", record.updated_at, record.content.phase)
                _print(out, first, as_json=as_json)
                while (code := watched.ended) is None:
                    time.sleep(every)
                    for event in watched.poll():
                        _print(out, event, as_json=as_json)
                    refresh()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    raise typer.Exit(code)


@contextmanager
def _live_page(out: Console, watched: Watch, *, live: bool) -> Iterator[Any]:
    """Show the session below the printed events; provide a function that refreshes it."""
    if not live:
        yield lambda: None
        return

    def page() -> Group:
        footer = Text(f"read at {clock(validation.utc_now())}, Ctrl-C ends", style="dim")
        return Group(Rule(style="dim"), heading(out, watched.record), footer)

    with Live(page(), console=out, auto_refresh=False) as shown:
        yield lambda: shown.update(page(), refresh=True)


def _print(out: Console, event: Event, *, as_json: bool) -> None:
    if as_json:
        typer.echo(safe_json(event.json()))
    elif out.is_terminal:
        out.print(event.cell().shown())
    else:
        typer.echo(safe(event.cell().text, lines=True))
