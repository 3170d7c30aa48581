"""`SQLAlchemySessionRepository`: sessions in SQLite, PostgreSQL or MariaDB."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, orm

from vibeforge_sessions.errors import CorruptSessionError, SessionRepositoryError, StorageError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import log_line
from vibeforge_sessions.model.session import ErrorEntry, S, Session, phases_of
from vibeforge_sessions.repository import changeset, restoration, serialization
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import (
    Query,
    SessionFilter,
    SessionOrder,
    SessionPage,
    check_limit,
    check_recent,
)
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql import migrate as migrations
from vibeforge_sessions.sql.dialects.base import POOLER
from vibeforge_sessions.sql.engine import create_engine
from vibeforge_sessions.sql.operations import in_doubt, reads, writes
from vibeforge_sessions.sql.transactions.connection_executor import ThroughSQLAlchemy
from vibeforge_sessions.sql.transactions.error_translation import has_wrong_schema
from vibeforge_sessions.sql.transactions.executor import Executor
from vibeforge_sessions.sql.transactions.runner import transactions_of

__all__ = ["SQLAlchemySessionRepository", "open_database"]

_DEFAULT = RetryPolicy()
_LONGEST_EXTRA = 86_400.0
"""How many seconds more a history may take to be restored, however long it says that it is."""

P = ParamSpec("P")
T = TypeVar("T")


class SQLAlchemySessionRepository(SessionRepository[S]):
    """Sessions in a database, under the whole contract of `SessionRepository`.

    The constructor neither connects nor makes tables: run the migrations first (`vibeforge_sessions.sql.migrate`),
    or let `open_repository` see to it.

    :param bind: an engine, the host's own or one of `vibeforge_sessions.sql.create_engine`: each call takes a
        connection and is a transaction of its own; the engine is never closed. Or a `Connection` or an `orm.Session`
        of the host: each call is a savepoint in the host's transaction, which the host commits or rolls back. Nothing
        is tried again there, and after a rollback the sessions that were written must be read again. Such a repository
        belongs to the thread that the connection belongs to.
    :param session_type: the class of session it stores, `Session` or a subclass.
    :param fast_path: with an engine of `create_engine` that nobody watches (no listeners to its events, no logging of
        its statements), run the statements, compiled once, on the driver's connection, in a quarter of the time. False
        sends every statement through SQLAlchemy's `Connection` all the same.
    :param retry: how long a call may take, and how it is tried again. In a host's transaction nothing is tried again,
        and a call may take as long.
    """

    def __init__(
        self,
        bind: Engine | Connection | orm.Session,
        *,
        session_type: type[S] = Session,  # type: ignore[assignment]
        fast_path: bool = True,
        retry: RetryPolicy = _DEFAULT,
    ) -> None:
        self._transactions = transactions_of(bind, fast_path=fast_path, retry=retry)
        self._session_type = session_type
        self._behind_pooler = isinstance(bind, Engine) and POOLER in bind.get_execution_options()
        self._owned: Engine | None = None
        self._phases: dict[str, str] = {
            str(phase.value): phase for phase in phases_of(serialization.check_session_type(session_type))
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._transactions})"

    def close(self) -> None:
        if self._owned is not None:
            self._owned.dispose()

    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        session = changeset.new_session(session, session_id, self._session_type)
        write = changeset.plan_create(session)
        record = self._write(writes.create, write)
        transaction = self._transactions.transaction_of(record.session_id)
        changeset.mark_stored(session, write, record, transaction=transaction)
        copy = serialization.decode_session(self._session_type, record, session.error_history, session.logs)
        return changeset.mark_uncommitted(copy, transaction)

    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        session_id, recent = validation.check_session_id(session_id), check_recent(recent)
        found = self._read(reads.get, session_id, recent)
        if found is None:
            return None
        record, columns, logs = found
        errors: list[ErrorEntry] = []
        if columns:
            positions, timestamps, task_ids, messages, phases = columns
            known: Iterable[str] = map(self._phases.get, phases, phases)
            errors = list(map(ErrorEntry, timestamps, task_ids, messages, known, positions))
        session = serialization.decode_session(self._session_type, record, errors, logs)
        return changeset.mark_uncommitted(session, self._transactions.transaction_of(session_id))

    def update_session(self, session: S) -> None:
        changeset.check_session(session, self._session_type)
        if not session.version:
            self.create_session(session)
            return
        if changeset.is_uncommitted(session):
            found = self._read(reads.find_state, session.session_id, changeset.possible_states(session))
            changeset.adopt_state(session, found, self._transactions.transaction_of(session.session_id))
        if changeset.needs_content(session):
            write_id = changeset.baseline_of(session).write_id
            record = self._read(reads.get_current_record, session.session_id, session.version, write_id)
            changeset.adopt_content(session, record)
        write = changeset.plan_update(session)
        if write is not None:
            record = self._write(writes.update, write)
            transaction = self._transactions.transaction_of(session.session_id)
            changeset.mark_stored(session, write, record, transaction=transaction)

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        session_id = validation.check_session_id(session_id)
        seen = None if unchanged_since is None else restoration.check_seen(unchanged_since, "unchanged_since")
        return self._write(writes.delete, writes.Deletion(session_id, seen))

    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002
        query = Query.of(filter, "created_at", 1, None)
        return self._read(reads.list_ids, query.filter)

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        query = Query.of(filter, order, limit, cursor)
        return query.page(self._read(reads.find, query))

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        session_id, now = validation.check_session_id(session_id), validation.utc_now()
        task_id, message = validation.storable_task_id(task_id), validation.storable_text(error_message)
        row = {
            "session_id": session_id,
            "timestamp": now,
            "task_id": task_id,
            "error_message": message,
            "phase": None if phase is None else validation.storable_phase(phase),
            "write_id": validation.new_write_id(),
        }
        position, text = self._write(writes.append_error, row)
        return ErrorEntry(now, task_id, message, self._known_phase(text), position)

    def append_log(self, session_id: str, message: str) -> str:
        session_id, line = validation.check_session_id(session_id), log_line(message)
        row = {"session_id": session_id, "message": line, "write_id": validation.new_write_id()}
        self._write(writes.append_log, row, validation.utc_now())
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
        session_id = validation.check_session_id(session_id)
        after, limit = validation.check_integer(after, "after", least=0), check_limit(limit)
        task_id = None if task_id is None else validation.storable_task_id(task_id)
        phase = None if phase is None else validation.storable_phase(phase)
        return [
            ErrorEntry(timestamp, task, message, self._known_phase(text), position)
            for position, timestamp, task, message, text, _ in self._read(
                reads.list_errors, session_id, after, limit, task_id, phase
            )
        ]

    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        session_id = validation.check_session_id(session_id)
        after, limit = validation.check_integer(after, "after", least=0), check_limit(limit)
        return self._read(reads.list_logs, session_id, after, limit)

    def hold_session(self, session_id: str) -> None:
        self._write(writes.hold, validation.check_session_id(session_id), validation.utc_now())

    def release_session(self, session_id: str) -> None:
        self._write(writes.hold, validation.check_session_id(session_id), None)

    def get_record(self, session_id: str) -> Record | None:
        return self._read(reads.get_record, validation.check_session_id(session_id))

    def restore_record(
        self,
        record: Record,
        errors: Iterable[ErrorEntry] = (),
        logs: Iterable[str] = (),
        *,
        replacing: Record | None = None,
    ) -> None:
        record = restoration.plan_restore(record)
        seen = None if replacing is None else restoration.check_seen(replacing, "replacing")
        whole = writes.Restoring(record, errors, logs, seen)
        extra = min(_LONGEST_EXTRA, sum(record.counts) / 1_000)
        self._run(writes.restore, (whole,), {}, write=True, at_once=False, extra=extra)

    def _known_phase(self, text: str) -> str:
        return self._phases.get(text, text)

    def _write(self, unit: Callable[Concatenate[Executor, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        # a statement that deletes from the histories has to begin after the one that has locked the session's row; a
        # hold that came late would be one that somebody has released since; and an append that is lost behind a pooler
        # can be told of only if it was a transaction
        appends = unit in {writes.append_error, writes.append_log}
        at_once = unit not in {writes.delete, writes.hold} and not (appends and self._behind_pooler)
        return self._run(unit, args, kwargs, write=True, at_once=at_once)

    def _read(self, unit: Callable[Concatenate[Executor, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(unit, args, kwargs, write=False, at_once=True)

    def _run(
        self,
        unit: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        write: bool,
        at_once: bool,
        extra: float = 0,
    ) -> T:
        def work(executor: Executor) -> T:
            return unit(executor, *args, **kwargs)

        def settle(executor: ThroughSQLAlchemy, *, may_come: bool) -> T:
            settled: T = in_doubt.SETTLING[unit](executor, *args, **kwargs, may_come=may_come)
            return settled

        try:
            return self._transactions.run(
                work, write=write, at_once=at_once, settle=settle if write else None, extra=extra
            )
        except StorageError as error:
            if not error.transaction_lost and has_wrong_schema(error):
                migrations.check(self._transactions.bind)  # raises what is missing, and the command to run
            raise
        except SessionRepositoryError:
            raise
        except (TypeError, ValueError):  # from a column's type: somebody has changed a row by hand
            session_id = next(filter(None, map(_session_id_of, args)), None)
            # not chained: these errors show what stands in the column
            raise CorruptSessionError(session_id, "a value is not of its column's type") from None


def _session_id_of(argument: object) -> str | None:
    if isinstance(argument, (changeset.Write, writes.Deletion)):
        return argument.session_id
    if isinstance(argument, writes.Restoring):
        return argument.record.session_id
    if isinstance(argument, dict):
        return str(argument["session_id"])
    return argument if isinstance(argument, str) else None


def open_database(
    url: str, *, migrate: bool, session_type: type[S], schema: str | None = None, retry: RetryPolicy | None = None
) -> SQLAlchemySessionRepository[S]:
    """Return a repository with an engine of its own, once the schema is found to be right (see `open_repository`)."""
    engine = create_engine(url, schema=schema)
    try:
        (migrations.upgrade if migrate else migrations.check)(engine)  # upgraded is checked, too
    except BaseException:
        engine.dispose()
        raise
    repository = SQLAlchemySessionRepository(engine, session_type=session_type, retry=retry or _DEFAULT)
    repository._owned = engine  # noqa: SLF001 (its maker)
    return repository
