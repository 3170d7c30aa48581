"""Contract tests of `list_sessions` and `find_sessions`."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from vibeforge_sessions import (
    InvalidArgumentError,
    Session,
    SessionFilter,
    SessionOrder,
    SessionPhase,
    SessionRepository,
    SessionSummary,
)
from vibeforge_sessions.testing.base import SESSION_ID, full_session, stored

START = datetime(2026, 1, 1, tzinfo=UTC)
ORDERS: tuple[SessionOrder, ...] = get_args(SessionOrder)
MALFORMED_CURSORS = {
    "empty": "",
    "space": " ",
    "letter": "x",
    "text": "not a cursor",
    "symbol": "☃",
    "nul": "\0",
    "too_long": "a" * 10_000,
    "integer": 7,
    "bytes": b"x",
    "encoded_empty": base64.urlsafe_b64encode(b"").decode(),
    "encoded_too_few_parts": base64.urlsafe_b64encode(b"a|b").decode(),
    "encoded_invalid_id": base64.urlsafe_b64encode(b"0123456789abcdef|2026-01-01T00:00:00+00:00|a b").decode(),
    "encoded_invalid_time": base64.urlsafe_b64encode(b"0123456789abcdef|yesterday|a").decode(),
    "encoded_bytes": base64.urlsafe_b64encode(b"\xff|\xff|\xff").decode(),
}


def fill(repository: SessionRepository, count: int, *, per_second: int = 1) -> list[str]:
    """Store sessions, `per_second` of them with the same creation time; return their ids, oldest first."""
    ids = [f"s{number:03}" for number in range(count)]
    for number, session_id in enumerate(ids):
        at = START + timedelta(seconds=number // per_second)
        repository.create_session(Session(session_id=session_id, created_at=at, updated_at=at))
    return ids


def pages(
    repository: SessionRepository,
    conditions: SessionFilter | None = None,
    *,
    order: SessionOrder = "-created_at",
    limit: int,
) -> Iterator[list[str]]:
    """Yield the ids of each page."""
    cursor = None
    while True:
        page = repository.find_sessions(conditions, order=order, limit=limit, cursor=cursor)
        yield [item.session_id for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return


def found(repository: SessionRepository, conditions: SessionFilter | None = None) -> list[str]:
    """Return the ids that match a filter, and assert that both listings return the same ids."""
    ids = [item.session_id for item in repository.find_sessions(conditions, order="created_at", limit=1000).items]
    assert repository.list_sessions(conditions) == ids
    return ids


class ListingTests:
    """`list_sessions` and `find_sessions`."""

    def test_listings_of_no_one_and_many_sessions(self, repository: SessionRepository) -> None:
        page = repository.find_sessions()
        assert (page.items, page.next_cursor, repository.list_sessions()) == ((), None, [])
        ids = fill(repository, 1)
        assert repository.list_sessions() == ids
        page = repository.find_sessions(limit=1)
        assert ([item.session_id for item in page.items], page.next_cursor) == (ids, None)
        ids += [repository.create_session(session_id=session_id).session_id for session_id in ("z", "a")]
        assert repository.list_sessions() == ids
        assert [item.session_id for item in repository.find_sessions().items] == ids[::-1]

    def test_equal_times_are_ordered_by_id(self, repository: SessionRepository) -> None:
        ids = [
            "-",
            ".",
            "0",
            "9",
            ":",
            "A",
            "B",
            "_",
            "a",
            "b",
            "~",
        ]  # ids are compared byte by byte, independently of the database's locale
        for session_id in reversed(ids):
            repository.create_session(Session(session_id=session_id, created_at=START, updated_at=START))
        assert repository.list_sessions() == ids
        for order in ORDERS:
            expected = ids[::-1] if order.startswith("-") else ids
            assert [item for page in pages(repository, order=order, limit=3) for item in page] == expected

    def test_summary_shows_stored_values(self, repository: SessionRepository) -> None:
        given = full_session()
        given.build_spec = None
        repository.create_session(given)
        repository.append_log(SESSION_ID, "second")
        session = stored(repository)
        (summary,) = repository.find_sessions().items
        assert summary == SessionSummary(
            session_id=SESSION_ID,
            phase="QUESTIONNAIRE",
            created_at=session.created_at,
            updated_at=session.updated_at,
            version=1,
            error_count=1,
            log_count=2,
            active_task_id="t4",
            artifacts=frozenset({"intent_profile", "concept", "task_graph"}),
        )
        assert type(summary.phase) is str
        assert summary.created_at.tzinfo is UTC
        assert isinstance(repository.find_sessions().items, tuple)

    def test_empty_artifact_is_listed(self, repository: SessionRepository) -> None:
        repository.create_session(Session(session_id=SESSION_ID, concept={}))
        assert repository.find_sessions().items[0].artifacts == {"concept"}

    def test_filter_by_phase(self, repository: SessionRepository) -> None:
        ids = fill(repository, 4)
        for session_id, phase in zip(ids, ("EXECUTION", "FAILED", "EXECUTION", "IDEA"), strict=True):
            repository.modify_session(session_id, functools.partial(Session.update_phase, phase=SessionPhase(phase)))
        assert found(repository, SessionFilter(phases={SessionPhase.EXECUTION})) == [ids[0], ids[2]]
        assert found(repository, SessionFilter(phases=["EXECUTION", "IDEA", "IDEA"])) == [ids[0], ids[2], ids[3]]
        assert found(repository, SessionFilter(phases=())) == []
        assert found(repository, SessionFilter(phases=None)) == ids
        assert found(repository, SessionFilter(phases=["execution"])) == []
        assert found(repository, SessionFilter(phases=["", "\0", "\ud800", "NO_SUCH_PHASE", "x" * 999])) == []

    def test_filter_by_time(self, repository: SessionRepository) -> None:
        ids = fill(repository, 4)
        at = [START + timedelta(seconds=second) for second in range(4)]
        tick = timedelta(microseconds=1)
        assert found(repository, SessionFilter(created_from=at[1])) == ids[1:]
        assert found(repository, SessionFilter(created_from=at[1] + tick)) == ids[2:]
        assert found(repository, SessionFilter(created_before=at[1])) == ids[:1]
        assert found(repository, SessionFilter(created_before=at[1] + tick)) == ids[:2]
        assert found(repository, SessionFilter(created_from=at[1], created_before=at[3])) == ids[1:3]
        assert found(repository, SessionFilter(created_from=at[1], created_before=at[1])) == []
        assert found(repository, SessionFilter(created_from=at[3], created_before=at[0])) == []
        assert found(repository, SessionFilter(updated_from=at[2])) == ids[2:]
        assert found(repository, SessionFilter(updated_before=at[2])) == ids[:2]
        repository.append_log(ids[0], "touched now")
        assert found(repository, SessionFilter(updated_from=at[3] + tick)) == ids[:1]
        assert found(repository, SessionFilter(created_before=at[2], updated_before=at[2])) == ids[1:2]
        here = at[1].astimezone()
        assert found(repository, SessionFilter(created_from=here)) == ids[1:]

    def test_filter_by_presence_of_errors(self, repository: SessionRepository) -> None:
        ids = fill(repository, 3)
        repository.append_error(ids[1], "t", "m")
        assert found(repository, SessionFilter(has_errors=True)) == [ids[1]]
        assert found(repository, SessionFilter(has_errors=False)) == [ids[0], ids[2]]
        assert found(repository, SessionFilter(has_errors=True, phases=["FAILED"])) == []
        assert found(repository, SessionFilter()) == found(repository, None) == ids

    @pytest.mark.parametrize(
        "conditions",
        [
            {"phases": "EXECUTION"},
            {"phases": 7},
            {"phases": [7]},
            {"phases": [None]},
            {"created_from": datetime(2026, 1, 1)},  # noqa: DTZ001
            {"created_before": "2026-01-01"},
            {"updated_from": 0},
            {"has_errors": 1},
        ],
        ids=[
            "phases_text",
            "phases_integer",
            "phase_integer",
            "phase_none",
            "naive_time",
            "time_text",
            "time_integer",
            "has_errors_integer",
        ],
    )
    def test_invalid_filter_is_rejected(self, conditions: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            SessionFilter(**conditions)
        assert caught.value.argument in conditions

    def test_other_object_than_filter_is_rejected(self, repository: SessionRepository) -> None:
        for call in (repository.find_sessions, repository.list_sessions):
            with pytest.raises(InvalidArgumentError):
                call({"phases": []})  # type: ignore[arg-type]

    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 1000])
    @pytest.mark.parametrize("per_second", [1, 3])
    def test_pages_contain_each_session_once(
        self, repository: SessionRepository, order: SessionOrder, limit: int, per_second: int
    ) -> None:
        ids = fill(repository, 6, per_second=per_second)
        read = list(pages(repository, order=order, limit=limit))
        assert [item for page in read for item in page] == (ids[::-1] if order.startswith("-") else ids)
        assert all(len(page) == limit for page in read[:-1])
        assert 1 <= len(read[-1]) <= limit

    @pytest.mark.parametrize("order", ["created_at", "-created_at"])
    def test_pages_are_stable_during_creates_and_deletes(
        self, repository: SessionRepository, order: SessionOrder
    ) -> None:
        ids = fill(repository, 20, per_second=3)
        never_deleted = set(ids)
        read: list[str] = []
        for number, page in enumerate(pages(repository, order=order, limit=3)):
            read += page
            deleted = page[-1] if number % 2 else ids[(number * 7) % 20]  # the last id of a page is in its cursor
            if repository.delete_session(deleted):
                never_deleted.discard(deleted)
            for second in (-5, number, 30):
                at = START + timedelta(seconds=second)
                repository.create_session(Session(session_id=f"new{number}.{second}", created_at=at, updated_at=at))
            repository.append_log(page[0], "touched") if repository.get_session(page[0]) else None
        assert len(read) == len(set(read))
        assert never_deleted <= set(read)

    def test_order_by_updated_at_follows_writes(self, repository: SessionRepository) -> None:
        ids = fill(repository, 3)
        repository.append_error(ids[0], "t", "m")
        assert [item.session_id for item in repository.find_sessions(order="-updated_at").items] == [
            ids[0],
            ids[2],
            ids[1],
        ]
        assert [item.session_id for item in repository.find_sessions(order="updated_at").items] == [
            ids[1],
            ids[2],
            ids[0],
        ]

    def test_pages_with_filter(self, repository: SessionRepository) -> None:
        ids = fill(repository, 6)
        for session_id in ids[::2]:
            repository.append_error(session_id, "t", "m")
        conditions = SessionFilter(has_errors=True, phases=["QUESTIONNAIRE"])
        assert list(pages(repository, conditions, limit=1)) == [[ids[4]], [ids[2]], [ids[0]]]

    @pytest.mark.parametrize("cursor", MALFORMED_CURSORS.values(), ids=MALFORMED_CURSORS)
    def test_malformed_cursor_is_rejected(self, repository: SessionRepository, cursor: Any) -> None:
        fill(repository, 2)
        with pytest.raises(InvalidArgumentError) as caught:
            repository.find_sessions(cursor=cursor)
        assert caught.value.argument == "cursor"

    def test_damaged_cursor_is_rejected(self, repository: SessionRepository) -> None:
        fill(repository, 3)
        cursor = repository.find_sessions(limit=1).next_cursor
        assert cursor is not None
        for damaged in (cursor[:-4], cursor[4:], cursor[::-1], cursor + cursor, cursor.lower()):
            with pytest.raises(InvalidArgumentError):
                repository.find_sessions(cursor=damaged)

    @pytest.mark.parametrize("name", ["created_from", "created_before", "updated_from", "updated_before"])
    def test_cursor_of_other_time_filter_is_rejected(self, repository: SessionRepository, name: str) -> None:
        fill(repository, 3)
        far: Any = {"from": START, "before": START + timedelta(days=1)}[name.split("_")[1]]
        conditions = SessionFilter(**{name: far})
        cursor = repository.find_sessions(conditions, limit=1).next_cursor
        assert cursor is not None
        assert len(repository.find_sessions(conditions, cursor=cursor).items) == 2
        for other in (None, SessionFilter(**{name: far + timedelta(microseconds=1)})):
            with pytest.raises(InvalidArgumentError):
                repository.find_sessions(other, cursor=cursor)

    def test_cursor_of_other_filter_or_order_is_rejected(self, repository: SessionRepository) -> None:
        fill(repository, 3)
        conditions = SessionFilter(phases=["QUESTIONNAIRE", "IDEA"], created_from=START)
        cursor = repository.find_sessions(conditions, limit=1).next_cursor
        assert cursor is not None
        same = SessionFilter(phases=("IDEA", "QUESTIONNAIRE", "IDEA"), created_from=START.astimezone())
        assert len(repository.find_sessions(same, limit=5, cursor=cursor).items) == 2
        others: list[tuple[SessionFilter | None, SessionOrder]] = [
            (conditions, "created_at"),
            (conditions, "-updated_at"),
            (None, "-created_at"),
            (SessionFilter(), "-created_at"),
            (SessionFilter(phases=["QUESTIONNAIRE"], created_from=START), "-created_at"),
            (SessionFilter(phases=["QUESTIONNAIRE", "IDEA"], created_before=START), "-created_at"),
            (SessionFilter(phases=["QUESTIONNAIRE", "IDEA"], created_from=START, has_errors=False), "-created_at"),
        ]
        for other, order in others:
            with pytest.raises(InvalidArgumentError) as caught:
                repository.find_sessions(other, order=order, limit=1, cursor=cursor)
            assert caught.value.argument == "cursor"

    @pytest.mark.parametrize("limit", [0, -1, 1001, True, 1.0, "1", None])
    def test_limit_out_of_range_is_rejected(self, repository: SessionRepository, limit: Any) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            repository.find_sessions(limit=limit)
        assert caught.value.argument == "limit"

    @pytest.mark.parametrize("order", ["", "created", "phase", "--created_at", None, 7])
    def test_invalid_order_is_rejected(self, repository: SessionRepository, order: Any) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            repository.find_sessions(order=order)
        assert caught.value.argument == "order"
