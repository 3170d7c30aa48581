"""Selection of sessions by a prune: filter, age, holds and concurrent changes, on each kind of storage."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.retention import COUNTED, DAY, DONE, MONTH, TOUCHES, Busy, ids_of, pruned, put, put_many
from vibeforge_sessions import (
    CorruptSessionError,
    InMemorySessionRepository,
    InvalidArgumentError,
    SessionFilter,
    SessionRepository,
)
from vibeforge_sessions.model.validation import utc_now
from vibeforge_sessions.repository.query import SessionOrder, SessionPage
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.retention import PruneProblem, prune

PHASES = ["COMPLETE", "FAILED", "EXECUTION", "UNKNOWN_PHASE"]


# --- phase and age ---


@dataclasses.dataclass(frozen=True)
class StoredSession:
    """Description of a session, and whether a prune deletes it."""

    phase: str
    days: int
    held: bool
    errors: int

    def matches(self, phases: list[str], days: int, *, has_errors: bool | None) -> bool:
        old = self.days > days and not self.held and self.phase in phases
        return old and (has_errors is None or has_errors == (self.errors > 0))


STORED = st.builds(
    StoredSession,
    phase=st.sampled_from(PHASES),
    days=st.integers(-3, 9),
    held=st.booleans(),
    errors=st.integers(0, 2),
)


@settings(max_examples=25)
@given(
    all_stored=st.lists(STORED, max_size=9),
    phases=st.lists(st.sampled_from(PHASES), min_size=1, max_size=3),
    days=st.integers(1, 6),
    batch_size=st.integers(1, 4),
    has_errors=st.sampled_from([None, None, True, False]),
)
def test_prune_deletes_exactly_sessions_that_match(
    repository: SessionRepository,
    all_stored: list[StoredSession],
    phases: list[str],
    days: int,
    batch_size: int,
    has_errors: bool | None,
) -> None:
    for session_id in repository.list_sessions():
        repository.delete_session(session_id)
    matching: dict[str, Record] = {}
    kept: list[str] = []
    for number, each in enumerate(all_stored):
        age = each.days * DAY - timedelta(hours=1)  # away from the age limit, which moves while the test runs
        record = put(repository, f"s{number}", each.phase, age, held=each.held, errors=each.errors)
        if each.matches(phases, days, has_errors=has_errors):
            matching[f"s{number}"] = record
        else:
            kept.append(f"s{number}")
    criteria = SessionFilter(phases=phases, has_errors=has_errors)
    held = sum(
        dataclasses.replace(each, held=False).matches(phases, days, has_errors=has_errors) for each in all_stored
    )
    expected = {phase: sum(record.content.phase == phase for record in matching.values()) for phase in PHASES}
    for dry_run in (True, False):
        report = pruned(repository, criteria, older_than=days * DAY, batch_size=batch_size, dry_run=dry_run)
        assert report.phases == {phase: count for phase, count in expected.items() if count}
        assert (report.total, report.held) == (len(matching), held - len(matching))
        assert (report.touched, report.gone, report.failed, report.archived) == (0, 0, 0, 0)
        assert report.errors == sum(record.error_count for record in matching.values())
        assert report.logs == len(matching)
        texts = [text for record in matching.values() for text in record.content.documents.values() if text is not None]
        assert report.document_bytes == sum(map(len, texts))
        times = [record.updated_at for record in matching.values()]
        assert (report.oldest, report.newest) == ((min(times), max(times)) if times else (None, None))
        assert ids_of(repository) == sorted([*kept, *matching] if dry_run else kept)
    assert pruned(repository, criteria, older_than=days * DAY).total == 0


def test_filter_time_and_age_both_apply(repository: SessionRepository) -> None:
    record = put(repository, "s")
    put(repository, "young", age=DAY)
    for before, expected in ((record.updated_at, 0), (record.updated_at + timedelta(microseconds=1), 1)):
        assert pruned(repository, dataclasses.replace(DONE, updated_before=before)).total == expected
    assert pruned(repository, dataclasses.replace(DONE, updated_before=utc_now() + DAY)).total == 0
    assert ids_of(repository) == ["young"]


def test_maximum_age_matches_nothing(repository: SessionRepository) -> None:
    put(repository, "s")
    report = pruned(repository, older_than=timedelta.max)
    assert (report.total, report.before) == (0, datetime.min.replace(tzinfo=UTC))


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"asked": SessionFilter()}, "phases"),
        ({"asked": SessionFilter(phases=[])}, "phases"),
        ({"asked": SessionFilter(updated_before=utc_now())}, "phases"),
        ({"asked": None}, "filter"),
        ({"asked": ["COMPLETE"]}, "filter"),
        ({"older_than": timedelta(0)}, "older_than"),
        ({"older_than": -MONTH}, "older_than"),
        ({"older_than": 30}, "older_than"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1001}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"pause": -1}, "pause"),
        ({"pause": float("nan")}, "pause"),
        ({"pause": float("inf")}, "pause"),
    ],
    ids=[
        *("no_criteria", "no_phases", "time_without_phases", "none_as_filter", "list_as_filter"),
        *("zero_age", "negative_age", "number_as_age", "zero_batch", "oversized_batch", "float_batch"),
        *("negative_pause", "nan_pause", "infinite_pause"),
    ],
)
def test_invalid_rule_raises(changed: dict[str, Any], path: str) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    put(repository, "s")
    with pytest.raises(InvalidArgumentError) as caught:
        pruned(repository, **changed)
    assert caught.value.argument == path
    assert ids_of(repository) == ["s"]


def test_age_is_required() -> None:
    repository: SessionRepository = InMemorySessionRepository()
    with pytest.raises(TypeError):
        prune(repository, DONE)  # type: ignore[call-arg]


class FilterIgnoringRepository(Busy):
    """Repository that ignores filters."""

    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        return super().find_sessions(None, order=order, limit=limit, cursor=cursor)


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry_run", "deletion"])
def test_found_sessions_are_checked_against_the_rule_again(dry_run: bool) -> None:
    store: SessionRepository = InMemorySessionRepository()
    put(store, "old")
    put(store, "young", age=DAY)
    put(store, "in-the-future", age=-DAY)
    put(store, "running", phase="EXECUTION")
    put(store, "without-errors", errors=0)
    report = pruned(
        FilterIgnoringRepository(store, "", print), SessionFilter(phases=["COMPLETE"], has_errors=True), dry_run=dry_run
    )
    assert (report.total, report.touched) == (1, 4)
    assert ids_of(store) == sorted(
        ["running", "in-the-future", "without-errors", "young"] + (["old"] if dry_run else [])
    )


# --- concurrent changes and batches ---


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("moment", ["found", "read", "delete"])
def test_session_changed_after_it_was_found_is_kept(repository: SessionRepository, touch: str, moment: str) -> None:
    ids = put_many(repository, 5)
    touched = {ids[1], ids[3]}

    def hook(session_id: str) -> None:
        if session_id in touched:
            TOUCHES[touch](repository, session_id)

    report = pruned(Busy(repository, moment, hook), batch_size=2)
    assert {name: getattr(report, name) for name in ("held", "touched", "gone")} == {
        "held": 0, "touched": 0, "gone": 0, COUNTED[touch]: 2
    }  # fmt: skip
    assert report.total == 3
    assert ids_of(repository) == ([] if touch == "gone" else sorted(touched))
    for session_id in ids_of(repository):
        session = repository.get_session(session_id)
        assert session is not None
        assert len(session.error_history) == 1 + (touch == "error")


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry_run", "deletion"])
def test_batches_cover_each_session_once(repository: SessionRepository, dry_run: bool) -> None:
    now = utc_now()
    ids = put_many(repository, 23)
    for number, session_id in enumerate(ids):
        if number % 3 == 0:
            repository.hold_session(session_id)
    criteria = dataclasses.replace(DONE, created_before=now)
    totals: list[tuple[int, int]] = []
    report = pruned(
        repository,
        criteria,
        batch_size=4,
        dry_run=dry_run,
        on_batch=lambda report: totals.append((report.total, report.held)),
    )
    assert [sum(total) for total in totals] == [4, 8, 12, 16, 20, 23]
    assert (report.total, report.held) == (15, 8)
    assert ids_of(repository) == (ids if dry_run else ids[::3])
    if not dry_run:
        again = pruned(repository, criteria, batch_size=4)
        assert (again.total, again.held) == (0, 8)
        for session_id in ids[::3]:
            repository.release_session(session_id)
        assert pruned(repository, criteria, batch_size=4).total == 8


def test_sessions_with_equal_times_are_all_found(repository: SessionRepository) -> None:
    record = put(repository, "s0")
    for number in range(1, 9):
        same = dataclasses.replace(record, session_id=f"s{number}", error_count=0, log_count=0)
        repository.restore_record(same)
        if number % 2:
            repository.hold_session(f"s{number}")
    report = pruned(repository, batch_size=2)
    assert (report.total, report.held) == (5, 4)


def test_oldest_sessions_are_deleted_first(repository: SessionRepository) -> None:
    ids = put_many(repository, 9)

    def stop(_report: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(repository, batch_size=4, on_batch=stop)
    assert ids_of(repository) == ids[4:]
    assert pruned(repository, batch_size=4).total == 5


# --- unreadable sessions ---


def test_unreadable_session_is_kept_and_reported() -> None:
    store: SessionRepository = InMemorySessionRepository()
    ids = put_many(store, 6)

    def damaged(session_id: str) -> None:
        if session_id in {ids[1], ids[4]}:
            raise CorruptSessionError(session_id, "its documents are missing")

    for dry_run in (True, False):
        report = pruned(Busy(store, "read", damaged), batch_size=2, dry_run=dry_run)
        assert (report.total, report.failed) == (4, 2)
        assert [problem.session_id for problem in report.problems] == [ids[1], ids[4]]
        assert isinstance(report.problems[0], PruneProblem)
        assert "its documents are missing" in report.problems[0].reason
    assert ids_of(store) == [ids[1], ids[4]]


def test_reported_problems_are_limited_to_1000() -> None:
    store: SessionRepository = InMemorySessionRepository()
    put_many(store, 1003)

    def damaged(session_id: str) -> None:
        raise CorruptSessionError(session_id, "?")

    report = pruned(Busy(store, "read", damaged), batch_size=1000)
    assert (report.failed, len(report.problems)) == (1003, 1000)
