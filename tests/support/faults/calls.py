"""The writing calls, prepared so that they can be disturbed, and the state that each leaves without disturbance."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from vibeforge_sessions import InMemorySessionRepository, Session, SessionPhase, SessionRepository
from vibeforge_sessions.model.session import ErrorEntry
from vibeforge_sessions.sql.tables import documents, errors, logs, sessions
from vibeforge_sessions.testing.base import assert_same, full_session, stored

Repository = SessionRepository[Session]
State = dict[str, Any]


class Begun(NamedTuple):
    """A prepared call that only has to be executed."""

    make: Callable[[], Any]
    session: Session | None = None
    """The session that the call stores, if it stores one."""


class Call(NamedTuple):
    """A kind of call."""

    begin: Callable[[Repository, str], Begun]
    exists: bool = True
    """Whether the session exists before the call."""


# --- calls ---


def _create(repository: Repository, session_id: str) -> Begun:
    return Begun(lambda: repository.create_session(session_id=session_id))


def _create_whole(repository: Repository, session_id: str) -> Begun:
    session = full_session(session_id)
    session.add_error("t5", "and again")
    return Begun(lambda: repository.create_session(session), session)


def _updating(*changes: Callable[[Session], object]) -> Callable[[Repository, str], Begun]:
    def begin(repository: Repository, session_id: str) -> Begun:
        session = stored(repository, session_id)
        for change in changes:
            change(session)
        return Begun(lambda: repository.update_session(session), session)

    return begin


def _phase(session: Session) -> None:
    session.update_phase(SessionPhase.EXECUTION)


def _answer(session: Session) -> None:
    session.add_answer("new", [1, "two"])
    session.concept = {"title": "new"}


def _entries(session: Session) -> None:
    session.add_error("new", "new")
    session.add_error("new", "newer")
    session.add_log("new")


def _append_error(repository: Repository, session_id: str) -> Begun:
    return Begun(lambda: repository.append_error(session_id, "appended", "it broke again"))


def _append_log(repository: Repository, session_id: str) -> Begun:
    return Begun(lambda: repository.append_log(session_id, "appended"))


def _delete(repository: Repository, session_id: str) -> Begun:
    return Begun(lambda: repository.delete_session(session_id))


def _modify(repository: Repository, session_id: str) -> Begun:
    def change(session: Session) -> None:
        session.current_question_index += 1
        session.add_answer("modified", session.current_question_index)
        session.add_error("modified", "once")

    return Begun(lambda: repository.modify_session(session_id, change))


def _delete_unchanged(repository: Repository, session_id: str) -> Begun:
    record = repository.get_record(session_id)
    return Begun(lambda: repository.delete_session(session_id, unchanged_since=record))


def _hold(repository: Repository, session_id: str) -> Begun:
    return Begun(lambda: repository.hold_session(session_id))


def _restore(repository: Repository, session_id: str) -> Begun:
    """Restore a session from another repository in place of the stored one."""
    elsewhere = InMemorySessionRepository()
    # one entry per history: drivers split the message of several entries differently each time
    elsewhere.create_session(full_session(session_id))
    record, replaced = elsewhere.get_record(session_id), repository.get_record(session_id)
    assert record is not None
    record = dataclasses.replace(record, version=41)
    errors, lines = elsewhere.list_errors(session_id), elsewhere.list_logs(session_id)
    return Begun(lambda: repository.restore_record(record, errors, lines, replacing=replaced))


CALLS = {
    "create": Call(_create, exists=False),
    "create with histories": Call(_create_whole, exists=False),
    "update of the row": Call(_updating(_phase)),
    "update with documents": Call(_updating(_phase, _answer)),
    "update with entries": Call(_updating(_phase, _answer, _entries)),
    "append_error": Call(_append_error),
    "append_log": Call(_append_log),
    "delete": Call(_delete),
    "modify": Call(_modify),
    "delete if unchanged": Call(_delete_unchanged),
    "hold": Call(_hold),
    "restore": Call(_restore, exists=False),
    "replace": Call(_restore),
}


# --- stored state ---


def state_of(engine: Engine, session_id: str) -> State | None:
    """Return everything that is stored of a session, in a form that is equal for equal writes.

    Fail if the stored session is incomplete: positions have gaps, counters are wrong, or rows belong to no session.
    Times are left out. Write ids are replaced by numbers, because only their equality matters.
    """
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        rows = [
            connection.execute(select(table).where(table.c.session_id == session_id).order_by(*table.primary_key)).all()
            for table in (sessions, documents, errors, logs)
        ]
    hot, texts, error_rows, log_rows = ([dict(row._mapping) for row in each] for each in rows)
    assert len(hot) == len(texts), "a session without documents, or documents without a session"
    if not hot:
        assert not error_rows, "errors without a session"
        assert not log_rows, "logs without a session"
        return None
    for entries, counter in ((error_rows, "error_count"), (log_rows, "log_count")):
        assert [entry["position"] for entry in entries] == list(range(1, hot[0][counter] + 1)), counter
    labels: dict[str, int] = {}
    for row in (*error_rows, *log_rows, *hot):
        row["write_id"] = labels.setdefault(row["write_id"], len(labels))
        for name in ("session_id", "created_at", "updated_at", "timestamp"):
            row.pop(name, None)
        if "message" in row:
            row["message"] = re.sub(r"^\[[^]]*\] ", "", row["message"])
    del texts[0]["session_id"]
    hot[0]["held_at"] = hot[0]["held_at"] is not None
    return {"session": hot[0], "documents": texts[0], "errors": error_rows, "logs": log_rows}


def check_answer(begun: Begun, answer: Any, direct: Repository, session_id: str) -> None:
    """Assert that the answer of a call is stored, and that its session can be updated afterwards."""
    if isinstance(answer, ErrorEntry):
        assert answer.position is not None
        assert direct.list_errors(session_id, after=answer.position - 1, limit=1) == [answer]
    elif isinstance(answer, str):
        assert direct.list_logs(session_id)[-1] == answer
    elif isinstance(answer, bool):
        assert answer
        assert direct.get_session(session_id) is None
    for session in (begun.session, answer):
        if isinstance(session, Session):
            assert_same(stored(direct, session_id), session)
    session = answer if isinstance(answer, Session) else begun.session
    if session is not None:
        session.add_answer("later", 1)
        direct.update_session(session)
