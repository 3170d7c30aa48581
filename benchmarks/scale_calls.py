"""Calls on a database of any size. Each function prepares its call, and returns the part that is timed."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from benchmarks.filling import PROBE, PROBED, YEAR, session_ids
from vibeforge_sessions import RetryPolicy, Session, SessionFilter, SessionPhase, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.sql.admin import statistics

_TIMEOUT: Final = 900.0


class Place:
    """Database that was filled with a given number of sessions."""

    def __init__(self, url: str, number: int, **options: Any) -> None:
        self.url = url
        self.engine = create_engine(url, **options)
        # slow calls are measured and not ended
        self.repository = SQLAlchemySessionRepository(self.engine, retry=RetryPolicy(deadline=4 * _TIMEOUT))
        self._ids = session_ids(number)
        self._chance = random.Random(number)
        self._spare = 0

    def any(self, kind: int | None = None) -> str:
        """Return the id of a random session that is not deleted; `kind` selects its number of errors (see `SHARES`)."""
        index = self._chance.randrange(len(self._ids) // 10) * 10
        return self._ids[index + (self._chance.choice((0, 1, 2, 4, 5, 6, 8, 9)) if kind is None else kind)]

    def ended(self) -> str:
        """Return the id of a session in phase COMPLETE."""
        return self.any(5)

    def spare(self) -> str:
        """Return the id of a new session that can be deleted."""
        self._spare += 1
        session = Session(session_id=f"spare-{self._spare}", answers={"audience": "two friends"})
        self.repository.create_session(session)
        return session.session_id

    def close(self) -> None:
        """Close the connections to the database."""
        self.engine.dispose()


Ready = Callable[[Place], Callable[[], object]]


def _get(kind: int, **more: Any) -> Ready:
    def ready(place: Place) -> Callable[[], object]:
        session_id = place.any(kind)
        return lambda: place.repository.get_session(session_id, **more)

    return ready


def _of_probe(name: str, **given: Any) -> Ready:
    return lambda place: lambda: getattr(place.repository, name)(PROBE, **given)


def _find(order: str = "-created_at", limit: int = 50, **asked: Any) -> Ready:
    return lambda place: lambda: place.repository.find_sessions(SessionFilter(**asked), order=order, limit=limit)  # type: ignore[arg-type]


def _find_on(place: Place) -> Callable[[], object]:
    asked = SessionFilter(created_before=_ago(YEAR / 2))
    cursor = place.repository.find_sessions(asked).next_cursor
    return lambda: place.repository.find_sessions(asked, cursor=cursor)


def _list_an_hour(place: Place) -> Callable[[], object]:
    # the same number of sessions in each database: 114 of a million
    hour = YEAR / len(place._ids) * 114
    asked = SessionFilter(created_from=_ago(YEAR / 2), created_before=_ago(YEAR / 2 - hour))
    return lambda: place.repository.list_sessions(asked)


def _create(place: Place) -> Callable[[], object]:
    session = Session(answers={"audience": "two friends"})
    return lambda: place.repository.create_session(session)


def _update(place: Place) -> Callable[[], object]:
    session = place.repository.get_session(place.any(6))
    assert session is not None
    session.update_phase(SessionPhase.COMPLETE if session.phase == "FAILED" else SessionPhase.FAILED)
    return lambda: place.repository.update_session(session)


def _modify(place: Place) -> Callable[[], object]:
    session_id = place.any(6)
    return lambda: place.repository.modify_session(session_id, lambda session: session.add_answer("seen", "yes"))


def _append_error(place: Place) -> Callable[[], object]:
    session_id = place.any()
    return lambda: place.repository.append_error(session_id, "compile_api", "SyntaxError: '(' was never closed")


def _append_log(place: Place) -> Callable[[], object]:
    session_id = place.any()
    return lambda: place.repository.append_log(session_id, "the next step is done")


def _delete(place: Place) -> Callable[[], object]:
    session_id = place.any(7)
    return lambda: place.repository.delete_session(session_id)


def _record(place: Place) -> Callable[[], object]:
    session_id = place.any()
    return lambda: place.repository.get_record(session_id)


def _restore(place: Place) -> Callable[[], object]:
    session_id = place.spare()
    record = place.repository.get_record(session_id)
    assert record is not None
    return lambda: place.repository.restore_record(record, replacing=record)


def _delete_unchanged(place: Place) -> Callable[[], object]:
    session_id = place.spare()
    record = place.repository.get_record(session_id)
    return lambda: place.repository.delete_session(session_id, unchanged_since=record)


def _hold(place: Place) -> Callable[[], object]:
    session_id = place.any(8)

    def call() -> None:
        place.repository.hold_session(session_id)
        place.repository.release_session(session_id)

    return call


def _statistics(ask: Callable[..., object], **given: Any) -> Ready:
    return lambda place: lambda: ask(place.engine, timeout=_TIMEOUT, **given)


def _errors_since(window: timedelta, every: str) -> Ready:
    return lambda place: (
        lambda: statistics.count_errors(
            place.engine,
            since=_ago(window),
            every=every,  # type: ignore[arg-type]
            timeout=_TIMEOUT,
        )
    )


def _ago(length: timedelta) -> datetime:
    return datetime.now(UTC) - length


CALLS: Final[dict[str, Ready]] = {
    "create_session": _create,
    "get_session, of 10 errors": _get(6),
    "get_session, of 50 errors": _get(9),
    "get_session, recent=20 of 10,000": _of_probe("get_session", recent=20),
    "get_session, of 10,000 errors and logs": _of_probe("get_session"),
    "update_session, the phase": _update,
    "modify_session, an answer": _modify,
    "append_error": _append_error,
    "append_error, to 10,000": _of_probe("append_error", task_id="compile_api", error_message="it broke"),
    "append_log": _append_log,
    "list_errors, the first 100 of 10,000": _of_probe("list_errors"),
    "list_errors, the last 100 of 10,000": _of_probe("list_errors", after=PROBED - 100),
    "list_errors, of a task": _of_probe("list_errors", task_id="test_api"),
    "list_logs, the last 100 of 10,000": _of_probe("list_logs", after=PROBED - 100),
    "find_sessions, 50 newest": _find(),
    "find_sessions, 1,000 newest": _find(limit=1_000),
    "find_sessions, a page in the middle": _find_on,
    "find_sessions, of EXECUTION": _find(phases=["EXECUTION"]),
    "find_sessions, of COMPLETE": _find(phases=["COMPLETE"]),
    "find_sessions, of two phases": _find(phases=["COMPLETE", "FAILED"]),
    "find_sessions, with errors": _find(has_errors=True),
    "find_sessions, last touched": _find("-updated_at"),
    "find_sessions, last touched of EXECUTION": _find("-updated_at", phases=["EXECUTION"]),
    "find_sessions, last touched of COMPLETE": _find("-updated_at", phases=["COMPLETE"]),
    "find_sessions, longest untouched of EXECUTION": _find(
        "updated_at", phases=["EXECUTION"], updated_before=_ago(timedelta(days=30))
    ),
    "find_sessions, last touched of a phase that none is in": _find("-updated_at", phases=["NONE"]),
    "find_sessions, of a phase that none is in": _find(phases=["NONE"]),
    "list_sessions, of an hour": _list_an_hour,
    "list_sessions, of EXECUTION": lambda place: (
        lambda: place.repository.list_sessions(SessionFilter(phases=["EXECUTION"]))
    ),
    "list_sessions": lambda place: place.repository.list_sessions,
    "hold_session and release_session": _hold,
    "get_record": _record,
    "restore_record, replacing": _restore,
    "delete_session": _delete,
    "delete_session, unchanged_since": _delete_unchanged,
    "statistics.count_phases": _statistics(statistics.count_phases),
    "statistics.count_ages, updated_at": _statistics(statistics.count_ages),
    "statistics.count_ages, created_at": _statistics(statistics.count_ages, of="created_at"),
    "statistics.count_errors, 24 hours by the hour": _errors_since(timedelta(hours=24), "hour"),
    "statistics.count_errors, 7 days": _errors_since(timedelta(days=7), "day"),
    "statistics.count_errors, 28 days": _errors_since(timedelta(days=28), "day"),
    "statistics.count_errors, of all time": _statistics(statistics.count_errors),
    "statistics.table_sizes": _statistics(statistics.table_sizes),
}
