"""Implementation of `SessionRepository` with JSON files in a folder; it passes the complete contract.

Use it as a starting point for a store that this package does not support. It is durable, and safe for concurrent
threads and processes on one machine. Each write rewrites the complete history of its session, and each listing reads
every file. It requires ``fcntl``, so it runs on Linux and macOS.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from vibeforge_sessions import (
    CorruptSessionError,
    ErrorEntry,
    Session,
    SessionExistsError,
    SessionFilter,
    SessionNotFoundError,
    SessionOrder,
    SessionPage,
    SessionRepository,
    StorageError,
)
from vibeforge_sessions.repository.spi import (
    Content,
    Query,
    Record,
    S,
    StoredSession,
    adopt_content,
    changeset_for_create,
    changeset_for_update,
    check_after,
    check_expected_record,
    check_limit,
    check_recent,
    check_replacing,
    check_session,
    check_session_id,
    check_session_type,
    mark_stored,
    needs_content,
    new_session,
    phases_of,
    select,
    summary_of,
)


class FileSessionRepository(SessionRepository[S]):
    """Repository with one JSON file per session.

    :param folder: the folder of the files; it is created if it does not exist.
    :param session_type: the class of the stored sessions, `Session` or a subclass.
    """

    def __init__(self, folder: Path, *, session_type: type[S] = Session) -> None:  # type: ignore[assignment]
        self._session_type = check_session_type(session_type)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    # --- sessions: validate, compute the changeset, store it under the lock, mark the caller's session as stored ---

    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        session = new_session(session, session_id, self._session_type)
        changeset = changeset_for_create(session)
        with self._writing():
            if self._path(changeset.session_id).exists():
                raise SessionExistsError(changeset.session_id)
            stored = StoredSession.from_changeset(changeset)
            self._save(stored)
        mark_stored(session, changeset, stored.record)
        return stored.to_session(self._session_type)

    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        session_id, recent = check_session_id(session_id), check_recent(recent)
        try:
            return self._load(session_id).to_session(self._session_type, recent)
        except SessionNotFoundError:
            return None

    def update_session(self, session: S) -> None:
        check_session(session, self._session_type)
        if not session.version:
            self.create_session(session)
            return
        if needs_content(session):
            adopt_content(session, self._current(session).record)
        changeset = changeset_for_update(session)
        if changeset is None:
            return
        with self._writing():
            stored = self._current(session)
            stored.update(changeset)
            self._save(stored)
        mark_stored(session, changeset, stored.record)

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        path = self._path(check_session_id(session_id))
        expected = check_expected_record(unchanged_since, "unchanged_since")
        with self._writing():
            if not path.exists():
                return False
            if expected is not None and not self._load(session_id).is_deletable(expected):
                return False
            path.unlink()
            _sync(self._folder)
        return True

    # --- listings ---

    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002 (the contract's name)
        query = Query.of(filter, "created_at", 1, None)
        return [record.session_id for record in select(query, self._records())]

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002 (the contract's name)
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        query = Query.of(filter, order, limit, cursor)
        return query.page([summary_of(record) for record in select(query, self._records())[: limit + 1]])

    # --- histories ---

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        session_id = check_session_id(session_id)
        with self._writing():
            stored = self._load(session_id)
            entry = stored.append_error(task_id, error_message, phase, self._session_type)
            self._save(stored)
        return entry

    def append_log(self, session_id: str, message: str) -> str:
        session_id = check_session_id(session_id)
        with self._writing():
            stored = self._load(session_id)
            line = stored.append_log(message)
            self._save(stored)
        return line

    def list_errors(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int = 100,
        task_id: str | None = None,
        phase: str | None = None,
    ) -> list[ErrorEntry]:
        session_id = check_session_id(session_id)
        after, limit = check_after(after), check_limit(limit)
        return self._load(session_id).list_errors(after=after, limit=limit, task_id=task_id, phase=phase)

    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        session_id = check_session_id(session_id)
        after, limit = check_after(after), check_limit(limit)
        return self._load(session_id).list_logs(after=after, limit=limit)

    # --- holds, export and restore ---

    def hold_session(self, session_id: str) -> None:
        self._hold(session_id, held=True)

    def release_session(self, session_id: str) -> None:
        self._hold(session_id, held=False)

    def _hold(self, session_id: str, *, held: bool) -> None:
        session_id = check_session_id(session_id)
        with self._writing():
            stored = self._load(session_id)
            stored.hold(held=held)
            self._save(stored)

    def get_record(self, session_id: str) -> Record | None:
        try:
            return self._load(check_session_id(session_id)).record
        except SessionNotFoundError:
            return None

    def restore_record(
        self,
        record: Record,
        errors: Iterable[ErrorEntry] = (),
        logs: Iterable[str] = (),
        *,
        replacing: Record | None = None,
    ) -> None:
        restored = StoredSession.from_record(record, errors, logs)
        session_id = restored.record.session_id
        with self._writing():
            check_replacing(session_id, self.get_record(session_id), replacing)
            self._save(restored)

    # --- files: a reader needs no lock, because a file is replaced atomically and never changed in place ---

    def _path(self, session_id: str) -> Path:
        # hexadecimal, because some file systems ignore case, and because "." is a valid id
        return self._folder / f"{session_id.encode('ascii').hex()}.json"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Exclude other writers. Each call opens the lock file itself, so the lock also excludes other threads."""
        with _storage_errors(), (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _load(self, session_id: str) -> StoredSession:
        with _storage_errors():
            try:
                text = self._path(session_id).read_bytes()
            except FileNotFoundError:
                raise SessionNotFoundError(session_id) from None
        try:
            return stored_from(text, self._session_type)
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptSessionError(session_id, "the file is not a session of this repository") from error

    def _current(self, session: Session) -> StoredSession:
        stored = self._load(session.session_id)
        stored.check_unchanged(session)
        return stored

    def _save(self, stored: StoredSession) -> None:
        """Replace the file atomically and durably, so that an acknowledged write survives a power failure."""
        path = self._path(stored.record.session_id)
        new = path.with_suffix(".new")
        with new.open("w", encoding="ascii") as file:
            file.write(text_of(stored))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        _sync(self._folder)

    def _records(self) -> Iterator[Record]:
        for path in self._folder.glob("*.json"):
            try:
                yield self._load(bytes.fromhex(path.stem).decode("ascii")).record
            except SessionNotFoundError:
                continue  # deleted since the folder was read


def text_of(stored: StoredSession) -> str:
    """Return the content of a file. The documents are JSON text already and are stored as strings."""
    errors = [dict(entry) for entry in stored.errors]
    data = {"record": dataclasses.asdict(stored.record), "errors": errors, "logs": stored.logs}
    return json.dumps(data, default=datetime.isoformat)


def stored_from(text: bytes, session_type: type[Session]) -> StoredSession:
    """Return the stored session that a file contains."""
    data = json.loads(text)
    fields, phases = data["record"], phases_of(session_type)
    for name in ("created_at", "updated_at", "held_at"):
        fields[name] = None if fields[name] is None else datetime.fromisoformat(fields[name])
    record = Record(**{**fields, "content": Content(**fields["content"])})
    errors = [ErrorEntry.of(entry, phases).at(position) for position, entry in enumerate(data["errors"], 1)]
    if record.counts != (len(errors), len(data["logs"])):
        raise ValueError("entries are missing")
    return StoredSession(record, errors, data["logs"])


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Raise an `OSError` as a `StorageError` without the path, which the message of the `OSError` contains."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"the file could not be read or written: {os.strerror(error.errno or 0)}") from error


def _sync(folder: Path) -> None:
    """Flush a folder to the disk, so that the creation or deletion of a file in it is durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
