"""`SQLAlchemySessionRepository`: sessions in SQLite, PostgreSQL or MariaDB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from sqlalchemy import Connection, Engine, orm

from vibeforge_sessions.errors import CorruptSessionError, SessionNotFoundError, SessionRepositoryError, StorageError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import log_line
from vibeforge_sessions.model.session import ErrorEntry, S, Session, phases_of
from vibeforge_sessions.repository import changeset, restoration, serialization
from vibeforge_sessions.repository.arguments import check_after, check_limit, check_recent, check_session_id
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import Query, SessionFilter, SessionOrder, SessionPage
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.sql import migrate as migrations
from vibeforge_sessions.sql.dialects.base import BEHIND_POOLER
from vibeforge_sessions.sql.engine import create_engine
from vibeforge_sessions.sql.operations.append import AppendEntry
from vibeforge_sessions.sql.operations.create import CreateSession
from vibeforge_sessions.sql.operations.delete import DeleteSession
from vibeforge_sessions.sql.operations.histories import ListEntries
from vibeforge_sessions.sql.operations.hold import HoldSession
from vibeforge_sessions.sql.operations.listing import FindSessions, ListSessions
from vibeforge_sessions.sql.operations.read import FindState, GetRecord, GetSession
from vibeforge_sessions.sql.operations.restore import RestoreRecord
from vibeforge_sessions.sql.operations.session_rows import ERRORS, LOGS
from vibeforge_sessions.sql.operations.update import UpdateSession
from vibeforge_sessions.sql.transactions import transactions_on
from vibeforge_sessions.sql.transactions.error_translation import has_wrong_schema
from vibeforge_sessions.sql.transactions.operation import Operation

_DEFAULT = RetryPolicy()

T = TypeVar("T")


class SQLAlchemySessionRepository(SessionRepository[S]):
    """Repository that stores sessions in a database and fulfills the complete contract of `SessionRepository`.

    The constructor neither connects nor creates tables: run the migrations first (`vibeforge_sessions.sql.migrate`),
    or use `open_repository`.

    :param bind: an engine, or a `Connection` or `orm.Session` of the caller.

        On an engine, each call takes a connection from the pool and runs in its own transaction. The engine may come
        from `vibeforge_sessions.sql.create_engine` or be the caller's own; the repository never disposes of it.

        On a `Connection` or `orm.Session`, the repository joins the caller's transaction: each call runs in a
        savepoint, and the caller commits or rolls back. No call is retried. After a rollback, a session that was
        written in the transaction does not count as stored: its next update stores its changes again or raises
        `StaleSessionError`. Use such a repository in the thread of its connection; several tasks may share it.
    :param session_type: the class of the stored sessions, `Session` or a subclass.
    :param fast_path: execute precompiled statements on the driver's connection if the engine comes from
        `create_engine`, has no event listeners and does not log its statements. A call then takes 44 to 68 % of the CPU
        time that it takes otherwise (``python -m benchmarks.execution_paths``). False executes each statement through
        SQLAlchemy's `Connection`.
    :param retry: the deadline and the retries of each call. In the caller's transaction, only the deadline applies.
    """

    def __init__(
        self,
        bind: Engine | Connection | orm.Session,
        *,
        session_type: type[S] = Session,  # type: ignore[assignment]
        fast_path: bool = True,
        retry: RetryPolicy = _DEFAULT,
    ) -> None:
        self._transactions = transactions_on(bind, precompiled=fast_path, retry=retry)
        self._is_joined = not isinstance(bind, Engine)
        self._session_type = session_type
        self._is_behind_pooler = isinstance(bind, Engine) and BEHIND_POOLER in bind.get_execution_options()
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
        write = changeset.changeset_for_create(session)
        record = self._run(CreateSession(write))
        transaction = self._transaction_of(record.session_id)
        changeset.mark_stored(session, write, record, transaction=transaction)
        copy = serialization.decode_session(self._session_type, record, session.error_history, session.logs)
        return changeset.mark_uncommitted(copy, transaction)

    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        session_id, recent = check_session_id(session_id), check_recent(recent)
        found = self._run(GetSession(session_id, recent))
        if found is None:
            return None
        record, columns, logs = found
        errors: list[ErrorEntry] = []
        if columns:
            positions, timestamps, task_ids, messages, phases = columns
            known: Iterable[str] = map(self._phases.get, phases, phases)
            errors = list(map(ErrorEntry, timestamps, task_ids, messages, known, positions))
        session = serialization.decode_session(self._session_type, record, errors, logs)
        return changeset.mark_uncommitted(session, self._transaction_of(session_id))

    def update_session(self, session: S) -> None:
        changeset.check_session(session, self._session_type)
        if not session.version:
            self.create_session(session)
            return
        baseline = changeset.baseline_of(session)
        if baseline.transaction is not None:
            states = changeset.possible_states(session)
            found = self._run(FindState(session.session_id, states, baseline.transaction))
            if found is not None:
                changeset.adopt_state(session, found, self._transaction_of(session.session_id))
        if baseline.content is None:
            record = self._run(GetRecord(session.session_id))
            if record is None:
                raise SessionNotFoundError(session.session_id)
            changeset.check_current(session, record)
            changeset.adopt_content(session, record)
        write = changeset.changeset_for_update(session)
        if write is not None:
            record = self._run(UpdateSession(write))
            transaction = self._transaction_of(session.session_id)
            changeset.mark_stored(session, write, record, transaction=transaction)

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        session_id = check_session_id(session_id)
        seen = restoration.check_expected_record(unchanged_since, "unchanged_since")
        return self._run(DeleteSession(session_id, seen))

    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002
        query = Query.of(filter, "created_at", 1, None)
        return self._run(ListSessions(query.filter))

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        query = Query.of(filter, order, limit, cursor)
        return query.page(self._run(FindSessions(query)))

    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        session_id, now = check_session_id(session_id), validation.utc_now()
        task_id, message = validation.storable_task_id(task_id), validation.storable_text(error_message)
        row = {
            "session_id": session_id,
            "timestamp": now,
            "task_id": task_id,
            "error_message": message,
            "phase": None if phase is None else validation.storable_phase(phase),
            "write_id": validation.new_write_id(),
        }
        position, text = self._run(AppendEntry(ERRORS, row, now, self._is_behind_pooler))
        return ErrorEntry(now, task_id, message, self._phases.get(str(text), str(text)), position)

    def append_log(self, session_id: str, message: str) -> str:
        session_id, line = check_session_id(session_id), log_line(message)
        row = {"session_id": session_id, "message": line, "write_id": validation.new_write_id()}
        self._run(AppendEntry(LOGS, row, validation.utc_now(), self._is_behind_pooler))
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
        filters = {}
        if task_id is not None:
            filters["task_id"] = validation.storable_task_id(task_id)
        if phase is not None:
            filters["phase"] = validation.storable_phase(phase)
        rows = self._run(ListEntries(ERRORS, session_id, after, limit, filters))
        return [
            ErrorEntry(timestamp, task, message, self._phases.get(str(text), str(text)), position)
            for position, timestamp, task, message, text, _ in rows
        ]

    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        session_id = check_session_id(session_id)
        after, limit = check_after(after), check_limit(limit)
        return [message for _, message, _ in self._run(ListEntries(LOGS, session_id, after, limit))]

    def hold_session(self, session_id: str) -> None:
        self._run(HoldSession(check_session_id(session_id), validation.utc_now()))

    def release_session(self, session_id: str) -> None:
        self._run(HoldSession(check_session_id(session_id), None))

    def get_record(self, session_id: str) -> Record | None:
        return self._run(GetRecord(check_session_id(session_id)))

    def restore_record(
        self,
        record: Record,
        errors: Iterable[ErrorEntry] = (),
        logs: Iterable[str] = (),
        *,
        replacing: Record | None = None,
    ) -> None:
        record = restoration.record_for_restore(record)
        seen = restoration.check_expected_record(replacing, "replacing")
        self._run(RestoreRecord(record, errors, logs, seen))

    def _transaction_of(self, session_id: str) -> str | None:
        return self._transactions.transaction_of(session_id) if self._is_joined else None

    def _run(self, operation: Operation[T]) -> T:
        try:
            return self._transactions.run(operation)
        except StorageError as error:
            if not error.transaction_lost and has_wrong_schema(error):
                migrations.check(self._transactions.bind)  # raises an error with the status and the command to run
            raise
        except SessionRepositoryError:
            raise
        except (TypeError, ValueError):  # raised by a column type: a row was changed by hand
            # not chained: these errors show the stored value
            raise CorruptSessionError(operation.about, "a value has a different type from its column") from None


def open_database(
    url: str, *, migrate: bool, session_type: type[S], schema: str | None = None, retry: RetryPolicy | None = None
) -> SQLAlchemySessionRepository[S]:
    """Check or upgrade the schema, and return a repository with its own engine (see `open_repository`)."""
    engine = create_engine(url, schema=schema)
    try:
        (migrations.upgrade if migrate else migrations.check)(engine)  # `upgrade` checks the schema as well
    except BaseException:
        engine.dispose()
        raise
    repository = SQLAlchemySessionRepository(engine, session_type=session_type, retry=retry or _DEFAULT)
    repository._owned = engine  # noqa: SLF001 (this function made the repository)
    return repository
