"""Old sessions, archives, and repositories with concurrent callers, for tests of retention."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from vibeforge_sessions import ErrorEntry, InMemorySessionRepository, Session, SessionFilter, SessionRepository
from vibeforge_sessions.archive import import_sessions
from vibeforge_sessions.model.validation import utc_now
from vibeforge_sessions.repository.delegating import DelegatingSessionRepository
from vibeforge_sessions.repository.query import SessionOrder, SessionPage
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.retention import PruneReport, prune
from vibeforge_sessions.testing.base import full_session

DAY = timedelta(days=1)
MONTH = timedelta(days=30)
DONE = SessionFilter(phases=["COMPLETE"])

Hook = Callable[[str], object]


def template() -> tuple[Record, list[ErrorEntry], list[str]]:
    """Return a session with a value in every field and both histories, as it is stored."""
    repository: SessionRepository = InMemorySessionRepository()
    session = repository.create_session(full_session())
    record = repository.get_record(session.session_id)
    assert record is not None
    return record, session.error_history, session.logs


TEMPLATE = template()


def put(
    repository: SessionRepository[Any],
    session_id: str,
    phase: str = "COMPLETE",
    age: timedelta = 40 * DAY,
    *,
    held: bool = False,
    errors: int = 1,
    message: str = "x" * 50,
) -> Record:
    """Store a session whose last update has this age."""
    record, [entry], logs = TEMPLATE
    now = utc_now()
    record = dataclasses.replace(
        record,
        session_id=session_id,
        content=dataclasses.replace(record.content, phase=phase),
        created_at=now - age - DAY,
        updated_at=now - age,
        held_at=now if held else None,
        error_count=errors,
    )
    entries = [ErrorEntry(entry.timestamp, "t", f"{number} {message}", phase, number + 1) for number in range(errors)]
    repository.restore_record(record, entries, logs)
    return record


def put_many(repository: SessionRepository[Any], count: int, **options: Any) -> list[str]:
    """Store old sessions, the oldest first."""
    ids = [f"s{number:05}" for number in range(count)]
    for number, session_id in enumerate(ids):
        put(repository, session_id, age=40 * DAY - timedelta(seconds=number), **options)
    return ids


def pruned(repository: SessionRepository[Any], asked: SessionFilter = DONE, **options: Any) -> PruneReport:
    """Prune sessions that were not updated for a month."""
    return prune(repository, asked, **{"older_than": MONTH, "pause": 0, **options})


def ids_of(repository: SessionRepository[Any]) -> list[str]:
    """Return the ids of all sessions, in order."""
    return sorted(repository.list_sessions())


def update(repository: SessionRepository[Any], session_id: str) -> None:
    def change(session: Session) -> None:
        session.add_answer("new", 1)

    repository.modify_session(session_id, change)


def recreate(repository: SessionRepository[Any], session_id: str) -> None:
    repository.delete_session(session_id)
    put(repository, session_id, age=50 * DAY)  # before all others, so that a prune does not find it on a later page


def update_with_an_equal_time(repository: SessionRepository[Any], session_id: str) -> None:
    """Store the next version of a session with its stored time, as a writer with a slow clock does."""
    record = repository.get_record(session_id)
    assert record is not None
    new = dataclasses.replace(record, version=record.version + 1)
    repository.restore_record(
        new, repository.list_errors(session_id), repository.list_logs(session_id), replacing=record
    )


TOUCHES: dict[str, Callable[[SessionRepository[Any], str], object]] = {
    "update": update,
    "error": lambda repository, session_id: repository.append_error(session_id, "t", "m"),
    "log": lambda repository, session_id: repository.append_log(session_id, "m"),
    "recreated": recreate,
    "equal time": update_with_an_equal_time,
    "hold": lambda repository, session_id: repository.hold_session(session_id),
    "gone": lambda repository, session_id: repository.delete_session(session_id),
}
"""Actions of another caller on a session."""
COUNTED = {name: name if name == "gone" else "touched" for name in TOUCHES} | {"hold": "held"}
"""The field of the report that counts such a session."""


class Busy(DelegatingSessionRepository[Session]):
    """A repository where another caller acts once at a given moment of each session.

    :param moment: ``found``: after it was listed; ``read``: after its record was read; ``archive``: while its histories
        are read for an archive; ``delete``: after it was archived and before it is deleted.
    """

    def __init__(self, repository: SessionRepository[Session], moment: str, hook: Hook) -> None:
        self._repository = repository
        self._moment = moment
        self._hook = hook
        self._done: set[str] = set()

    @property
    def repository(self) -> SessionRepository[Session]:
        return self._repository

    def _at(self, moment: str, session_ids: Iterable[str]) -> None:
        for session_id in session_ids if moment == self._moment else ():
            if session_id not in self._done:
                self._done.add(session_id)
                self._hook(session_id)

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        page = super().find_sessions(filter, order=order, limit=limit, cursor=cursor)
        self._at("found", [item.session_id for item in page.items])
        return page

    def get_record(self, session_id: str) -> Record | None:
        record = super().get_record(session_id)
        self._at("read", [session_id])
        return record

    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        self._at("archive", [session_id])
        return super().list_logs(session_id, after=after, limit=limit)

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        self._at("delete", [session_id])
        return super().delete_session(session_id, unchanged_since=unchanged_since)


def imported(path: Path) -> SessionRepository:
    """Return the content of a complete archive."""
    repository: SessionRepository = InMemorySessionRepository()
    report = import_sessions(repository, path, on_conflict="newer")
    assert report.problems == []
    return repository


@contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """Limit the size of the files of this process, which has the effect of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
