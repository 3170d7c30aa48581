"""Broken variants of the worked example; `test_spi` checks that the contract detects each of them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest

from examples.file_repository import FileSessionRepository
from vibeforge_sessions import ErrorEntry, Session, SessionNotFoundError, SessionRepository
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.repository.spi import StoredSession
from vibeforge_sessions.testing import NewRepository, SessionRepositoryContract


class SharesSessionObjects(FileSessionRepository):
    """A cache without copies: the holder of a session sees changes of other callers, stored or not."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self._handed_out: dict[str, Session] = {}

    def get_session(self, session_id: str, *, recent: int | None = None) -> Session | None:
        session = super().get_session(session_id, recent=recent)
        if session is None or recent is not None:
            return session
        shared = self._handed_out.setdefault(session_id, session)
        return shared if shared.version == session.version else session


class IgnoresVersion(FileSessionRepository):
    """A repository where the last writer wins."""

    def _current(self, session: Session) -> StoredSession:
        return self._load(session.session_id)


class ReadsOutsideTheLock(FileSessionRepository):
    """A repository that loses one of two concurrent appends."""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        yield

    def _save(self, stored: StoredSession) -> None:
        time.sleep(0.001)  # widens the race window
        with super()._writing():
            super()._save(stored)


class AltersDocuments(FileSessionRepository):
    """A repository that sorts the keys of documents, and converts whole floats to integers."""

    def _save(self, stored: StoredSession) -> None:
        content = stored.record.content
        documents = {name: text and _altered(text) for name, text in content.documents.items()}
        record = dataclasses.replace(stored.record, content=dataclasses.replace(content, documents=documents))
        super()._save(dataclasses.replace(stored, record=record))


def _altered(text: str) -> str:
    def number(digits: str) -> float | int:
        value = float(digits)
        return int(value) if value.is_integer() else value

    return json.dumps(json.loads(text, parse_float=number), sort_keys=True)


class KeepsHistoryOfDeletedSession(FileSessionRepository):
    """A repository whose new session has the errors of a deleted session with the same id."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self._left: dict[str, list[ErrorEntry]] = {}

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        try:
            self._left[session_id] = self.list_errors(session_id, limit=20)
        except SessionNotFoundError:
            return False
        return super().delete_session(session_id, unchanged_since=unchanged_since)

    def create_session(self, session: Session | None = None, *, session_id: str | None = None) -> Session:
        created = super().create_session(session, session_id=session_id)
        for entry in self._left.pop(created.session_id, ()):
            self.append_error(created.session_id, entry.task_id, entry.error_message, entry.phase)
        return created


class DecreasesStoredTime(FileSessionRepository):
    """A repository that stores the appender's time, even if it is behind the stored time."""

    def append_log(self, session_id: str, message: str) -> str:
        line = super().append_log(session_id, message)
        with self._writing():
            stored = self._load(session_id)
            stored.record = dataclasses.replace(stored.record, updated_at=stored.record.created_at)
            self._save(stored)
        return line


class Broken(SessionRepositoryContract):
    """The contract for a repository that violates it."""

    repository_type: ClassVar[type[FileSessionRepository]]

    @pytest.fixture
    def new_repository(self, tmp_path: Path) -> NewRepository:
        numbers = count()

        def new(**options: Any) -> SessionRepository:
            return self.repository_type(tmp_path / str(next(numbers)), **options)

        return new


for _broken in FileSessionRepository.__subclasses__():
    globals()[f"Test{_broken.__name__}"] = type(f"Test{_broken.__name__}", (Broken,), {"repository_type": _broken})
