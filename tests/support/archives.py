"""Sessions for exports and imports, and archives as bytes and lines."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from vibeforge_sessions import ErrorEntry, InMemorySessionRepository, SessionRepository
from vibeforge_sessions.archive import Report, export_sessions, import_sessions
from vibeforge_sessions.archive.serialization import encode_line, end_of
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.testing.base import full_session

LONG_AGO = datetime(2001, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
SECRET = "s3cret"


def fill(repository: SessionRepository, count: int = 3, entries: int = 0) -> None:
    """Store sessions with unusual versions, times and documents, with histories, and with a hold."""
    for number in range(count):
        session = full_session(f"s{number}")
        session.answers = {"z": [1.0, -0.0, 2**70, 1e22, None], "a": "\x00 \ud800 Ünïcode ☃ 😀", "secret": SECRET}
        session.error_history += [
            ErrorEntry(LONG_AGO + timedelta(seconds=each), f"t{each % 7}", f"it broke ␀\n{SECRET} {each}", "EXECUTION")
            for each in range(entries)
        ]
        session.logs += [f"line {each} \u2028 ☃ {SECRET}" for each in range(entries)]
        repository.create_session(session)
        change(repository, f"s{number}", created_at=LONG_AGO + timedelta(minutes=count - number), version=number + 2)
    repository.hold_session("s0")
    repository.create_session(session_id="empty")


def change(repository: SessionRepository, session_id: str, phase: str | None = None, **fields: Any) -> None:
    """Store a session with other fields, which only a restore can do."""
    record = record_of(repository, session_id)
    content = record.content if phase is None else dataclasses.replace(record.content, phase=phase)
    changed = dataclasses.replace(record, content=content, **fields)
    repository.restore_record(changed, *histories(repository, session_id), replacing=record)


def record_of(repository: SessionRepository[Any], session_id: str) -> Record:
    """Return the stored record, which must exist."""
    record = repository.get_record(session_id)
    assert record is not None
    return record


def histories(repository: SessionRepository, session_id: str) -> tuple[list[ErrorEntry], list[str]]:
    """Return all errors and all log lines."""
    return repository.list_errors(session_id, limit=100_000), repository.list_logs(session_id, limit=100_000)


def exported(repository: SessionRepository[Any], **options: Any) -> bytes:
    """Return all sessions as an archive; every session must have been exported."""
    file = io.BytesIO()
    report = export_sessions(repository, file, **options)
    assert (report.failed, report.gone) == (0, 0), report
    return file.getvalue()


def imported(archive: bytes, repository: SessionRepository[Any] | None = None, **options: Any) -> Report:
    """Import an archive, into memory by default."""
    target = InMemorySessionRepository() if repository is None else repository
    return import_sessions(target, io.BytesIO(archive), **options)


def filled_archive(count: int = 3, entries: int = 0) -> list[bytes]:
    """Return the lines of an archive."""
    repository = InMemorySessionRepository()
    fill(repository, count, entries)
    return exported(repository).splitlines(keepends=True)


def edited(lines: list[bytes], index: int, edit: Callable[[dict[str, Any]], object]) -> list[bytes]:
    """Return the lines with one changed line that remains readable."""
    data = json.loads(lines[index])
    edit(data)
    return [*lines[:index], json.dumps(data, separators=(",", ":")).encode() + b"\n", *lines[index + 1 :]]


def closed(record: Record, *lines: bytes) -> list[bytes]:
    """Return the lines of an archive, followed by the matching closing line."""
    import hashlib  # noqa: PLC0415

    return [*lines, encode_line(end_of(record, hashlib.sha256(b"".join(lines)).hexdigest()))]
