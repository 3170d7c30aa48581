"""`SQLAlchemySessionRepository`: sessions in SQLite, PostgreSQL or MariaDB."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from vibeforge_sessions import codec, values
from vibeforge_sessions.errors import CorruptSessionError, SessionRepositoryError, StorageError
from vibeforge_sessions.history import log_line
from vibeforge_sessions.model import ErrorEntry, Session, phases_of
from vibeforge_sessions.query import (
    Query,
    SessionFilter,
    SessionOrder,
    SessionPage,
    check_limit,
    check_recent,
)
from vibeforge_sessions.repository import SessionRepository, pause_after
from vibeforge_sessions.sql import migrate as migrations
from vibeforge_sessions.sql import units
from vibeforge_sessions.sql.engine import create_engine
from vibeforge_sessions.sql.transaction import is_transient, is_wrong_schema, make_ready_for_threads, transaction

__all__ = ["SQLAlchemySessionRepository", "open_database"]

ATTEMPTS: Final = 20
"""How often a unit of work is tried that the database rolls back in favour of another, as in a deadlock."""

P = ParamSpec("P")
T = TypeVar("T")


class SQLAlchemySessionRepository(SessionRepository):
    """Sessions in a database, under the whole contract of `SessionRepository`.

    The constructor neither connects nor makes tables: run the migrations first (`vibeforge_sessions.sql.migrate`),
    or let `open_repository` see to it.

    :param engine: the host's own, or one of `vibeforge_sessions.sql.create_engine`. The repository takes a
        connection for the time of one call and never closes the engine.
    :param session_type: the class of session it stores, `Session` or a subclass.
    """

    def __init__(self, engine: Engine, *, session_type: type[Session] = Session) -> None:
        if not isinstance(engine, Engine):
            raise TypeError(f"engine must be an sqlalchemy.Engine, not {type(engine).__name__}")
        make_ready_for_threads(engine)
        self._engine = engine
        self._session_type = session_type
        self._owns_engine = False
        self._phases = {str(phase.value): phase for phase in phases_of(codec.check_session_type(session_type))}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._engine.dialect.name})"

    def close(self) -> None:
        if self._owns_engine:
            self._engine.dispose()

    def create_session(self, session: Session | None = None, *, session_id: str | None = None) -> Session:
        session = codec.new_session(session, session_id, self._session_type)
        write = codec.plan_create(session)
        record = self._write(units.create, write)
        codec.mark_stored(session, write, record)
        return codec.decode_session(self._session_type, record, session.error_history, session.logs)

    def get_session(self, session_id: str, *, recent: int | None = None) -> Session | None:
        session_id, recent = values.check_session_id(session_id), check_recent(recent)
        found = self._read(units.get, session_id, recent)
        if found is None:
            return None
        record, errors, logs = found
        return codec.decode_session(self._session_type, record, self._entries(errors), [row.message for row in logs])

    def update_session(self, session: Session) -> None:
        codec.check_session(session, self._session_type)
        if not session.version:
            self.create_session(session)
            return
        if codec.needs_content(session):
            write_id = codec.baseline_of(session).write_id
            record = self._read(units.get_current_record, session.session_id, session.version, write_id)
            codec.adopt_content(session, record.content)
        write = codec.plan_update(session)
        if write is not None:
            codec.mark_stored(session, write, self._write(units.update, write))

    def delete_session(self, session_id: str) -> bool:
        return self._write(units.delete, values.check_session_id(session_id))

    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002
        query = Query.of(filter, "created_at", 1, None)
        return self._read(units.list_ids, query.filter)

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        query = Query.of(filter, order, limit, cursor)
        return query.page(self._read(units.find, query))

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        session_id = values.check_session_id(session_id)
        entry = ErrorEntry(
            timestamp=values.utc_now(),
            task_id=values.storable_task_id(task_id),
            error_message=values.storable_text(error_message),
            phase="" if phase is None else values.storable_phase(phase),
        )
        position, text = self._write(
            units.append_error, session_id, entry, uuid.uuid4().hex, of_phase=phase is not None
        )
        return ErrorEntry(entry.timestamp, entry.task_id, entry.error_message, self._phases.get(text, text), position)

    def append_log(self, session_id: str, message: str) -> str:
        session_id, line = values.check_session_id(session_id), log_line(message)
        self._write(units.append_log, session_id, line, values.utc_now(), uuid.uuid4().hex)
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
        session_id = values.check_session_id(session_id)
        after, limit = values.check_integer(after, "after", least=0), check_limit(limit)
        task_id = None if task_id is None else values.storable_task_id(task_id)
        phase = None if phase is None else values.storable_phase(phase)
        return self._entries(self._read(units.list_errors, session_id, after, limit, task_id, phase))

    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        session_id = values.check_session_id(session_id)
        after, limit = values.check_integer(after, "after", least=0), check_limit(limit)
        return self._read(units.list_logs, session_id, after, limit)

    def _entries(self, rows: Iterable[Sequence[Any]]) -> list[ErrorEntry]:
        known = self._phases
        return [
            ErrorEntry(timestamp, task_id, message, known.get(phase, phase), position)
            for position, timestamp, task_id, message, phase in rows
        ]

    def _write(self, unit: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._explained(*args):
            for attempt in itertools.count(1):
                try:
                    with transaction(self._engine, write=True) as connection:
                        return unit(connection, *args, **kwargs)
                except StorageError as error:
                    if attempt == ATTEMPTS or not is_transient(self._engine, error):
                        raise
                pause_after(attempt)
        raise AssertionError("unreachable")

    def _read(self, unit: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._explained(*args), transaction(self._engine, write=False) as connection:
            return unit(connection, *args, **kwargs)

    @contextmanager
    def _explained(self, *args: object) -> Iterator[None]:
        """Say what is wrong with the database's tables or rows, where that is why a unit of work failed."""
        try:
            yield
        except StorageError as error:
            if isinstance(error.__cause__, DBAPIError) and is_wrong_schema(self._engine, error.__cause__):
                migrations.check(self._engine)  # raises what is missing, and the command to run
            raise
        except SessionRepositoryError:
            raise
        except (TypeError, ValueError):  # from a column's type: somebody has changed a row by hand
            ids = (arg.session_id if isinstance(arg, codec.Write) else arg for arg in args)
            session_id = next((arg for arg in ids if isinstance(arg, str)), None)
            # not chained: these errors show what stands in the column
            raise CorruptSessionError(session_id, "a value is not of its column's type") from None


def open_database(
    url: str, *, migrate: bool, session_type: type[Session], schema: str | None = None
) -> SQLAlchemySessionRepository:
    """Return a repository with an engine of its own, once the schema is found to be right (see `open_repository`)."""
    engine = create_engine(url, schema=schema)
    try:
        (migrations.upgrade if migrate else migrations.check)(engine)  # upgraded is checked, too
    except BaseException:
        engine.dispose()
        raise
    repository = SQLAlchemySessionRepository(engine, session_type=session_type)
    repository._owns_engine = True  # noqa: SLF001 (its maker)
    return repository
