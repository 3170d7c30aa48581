"""Equivalence of repositories: the same random calls return the same results and raise the same exceptions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.support import cases
from tests.support.databases import Storage
from tests.support.strategies import artifacts, json_values, plain_texts
from vibeforge_sessions import Session, SessionFilter, SessionPhase, SessionRepository, SessionRepositoryError
from vibeforge_sessions.model import validation
from vibeforge_sessions.testing import NewRepository
from vibeforge_sessions.testing.base import exact

IDS = ["a", "A", "b", "bad id"]
START = datetime(2026, 1, 1, tzinfo=UTC)

ids = st.sampled_from(IDS)
slot_numbers = st.integers(0, 3)
messages = plain_texts | st.text(st.characters(), max_size=5)
task_ids = st.sampled_from(["t1", "T1", "", "t\n1"])
phases = st.sampled_from([None, SessionPhase.EXECUTION, "FAILED", "UNKNOWN", ""])
orders: Any = st.sampled_from(["created_at", "-created_at", "updated_at", "-updated_at"])
counts = st.sampled_from([-1, 0, 1, 2, 3, 100])
moments = st.none() | st.integers(-5, 40).map(lambda second: START + timedelta(seconds=second))
filters = st.none() | st.builds(
    SessionFilter,
    phases=st.none() | st.lists(st.sampled_from(["QUESTIONNAIRE", "EXECUTION", "FAILED", "UNKNOWN"]), max_size=3),
    created_from=moments,
    created_before=moments,
    updated_from=moments,
    updated_before=moments,
    has_errors=st.none() | st.booleans(),
)
fields = st.sampled_from(["answers", "intent_profile", "build_spec", "concept", "task_graph", "pending_clarification"])


class EquivalenceMachine(RuleBasedStateMachine):
    """State machine that drives two repositories and keeps up to four returned sessions of each, some of them stale."""

    pair: tuple[NewRepository, NewRepository]  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.repositories = tuple(new_repository() for new_repository in self.pair)
        self.slots: tuple[dict[int, Session], dict[int, Session]] = ({}, {})
        self.now = START
        self.fresh_ids = (itertools.count(), itertools.count())
        self.cursors: tuple[list[str], list[str]] = ([], [])

    def both(self, call: Callable[[SessionRepository, dict[int, Session], int], Any]) -> None:
        """Make the call on both repositories at the same time, and compare the outcomes and the kept sessions."""
        outcomes = []
        for side, (repository, slots) in enumerate(zip(self.repositories, self.slots, strict=True)):
            self.tick = itertools.count()
            try:
                outcome = ("returned", shape(call(repository, slots, side)))
            except SessionRepositoryError as error:
                outcome = ("raised", (type(error), error.args))
            except (KeyError, ZeroDivisionError) as error:
                outcome = ("raised", type(error))
            outcomes.append((outcome, {number: shape(session) for number, session in slots.items()}))
        assert outcomes[0] == outcomes[1]

    def clock(self) -> datetime:
        """Return a time that is equal for both repositories and advances by a microsecond per reading."""
        return self.now + timedelta(microseconds=next(self.tick))

    @rule(seconds=st.integers(-3, 10))
    def time_passes(self, seconds: int) -> None:  # negative values set the clock back
        self.now += timedelta(seconds=seconds)

    @rule(slot=slot_numbers, session_id=ids)
    def create(self, slot: int, session_id: str) -> None:
        self.both(lambda repository, slots, _: keep(slots, slot, repository.create_session(session_id=session_id)))

    @rule(slot=slot_numbers)
    def create_kept(self, slot: int) -> None:
        self.both(lambda repository, slots, _: repository.create_session(slots[slot]))

    @rule(slot=slot_numbers, session_id=ids)
    def construct_without_storing(self, slot: int, session_id: str) -> None:
        def construct(slots: dict[int, Session]) -> Session:
            session = Session()
            session.session_id = session_id
            keep(slots, slot, session)
            return session

        self.both(lambda _, slots, __: construct(slots))

    @rule(slot=slot_numbers, session_id=ids, recent=st.none() | counts)
    def get(self, slot: int, session_id: str, recent: int | None) -> None:
        self.both(lambda repository, slots, _: keep(slots, slot, repository.get_session(session_id, recent=recent)))

    @rule(slot=slot_numbers, field=fields, value=artifacts, answer=json_values)
    def change(self, slot: int, field: str, value: Any, answer: Any) -> None:
        self.both(lambda _, slots, __: setattr(slots[slot], field, value))
        self.both(lambda _, slots, __: setattr(slots[slot], "clarification_answer", answer))

    @rule(slot=slot_numbers, phase=st.sampled_from([*SessionPhase, "UNKNOWN"]))
    def change_phase(self, slot: int, phase: Any) -> None:
        self.both(lambda _, slots, __: slots[slot].update_phase(phase))

    @rule(slot=slot_numbers, task_id=task_ids, message=messages, phase=phases)
    def add_entries(self, slot: int, task_id: str, message: str, phase: Any) -> None:
        self.both(lambda _, slots, __: slots[slot].add_error(task_id, message, phase))
        self.both(lambda _, slots, __: slots[slot].add_log(message))

    @rule(slot=slot_numbers, name=st.sampled_from(["error_history", "logs"]))
    def clear_history(self, slot: int, name: str) -> None:
        self.both(lambda _, slots, __: getattr(slots[slot], name).clear())

    @rule(slot=slot_numbers)
    def round_trip(self, slot: int) -> None:
        self.both(lambda _, slots, __: keep(slots, slot, Session.from_dict(slots[slot].to_dict())))

    @rule(slot=slot_numbers)
    def update(self, slot: int) -> None:
        self.both(lambda repository, slots, _: repository.update_session(slots[slot]))

    @rule(session_id=ids, phase=phases)
    def modify(self, session_id: str, phase: Any) -> None:
        self.both(
            lambda repository, _, __: repository.modify_session(session_id, lambda s: s.add_error("m", "m", phase))
        )

    @rule(session_id=ids)
    def modify_and_fail(self, session_id: str) -> None:
        self.both(lambda repository, _, __: repository.modify_session(session_id, lambda _: 1 / 0))

    @rule(session_id=ids)
    def delete(self, session_id: str) -> None:
        self.both(lambda repository, _, __: repository.delete_session(session_id))

    @rule(session_id=ids, task_id=task_ids, message=messages, phase=phases)
    def append_error(self, session_id: str, task_id: str, message: str, phase: Any) -> None:
        self.both(lambda repository, _, __: repository.append_error(session_id, task_id, message, phase))

    @rule(session_id=ids, message=messages)
    def append_log(self, session_id: str, message: str) -> None:
        self.both(lambda repository, _, __: repository.append_log(session_id, message))

    @rule(session_id=ids, after=counts, limit=counts, task_id=st.none() | task_ids, phase=phases)
    def list_errors(self, session_id: str, after: int, limit: int, task_id: str | None, phase: Any) -> None:
        options = {"after": after, "limit": limit, "task_id": task_id, "phase": phase}
        self.both(lambda repository, _, __: repository.list_errors(session_id, **options))

    @rule(session_id=ids, after=counts, limit=counts)
    def list_logs(self, session_id: str, after: int, limit: int) -> None:
        self.both(lambda repository, _, __: repository.list_logs(session_id, after=after, limit=limit))

    @rule(criteria=filters)
    def list_sessions(self, criteria: SessionFilter | None) -> None:
        self.both(lambda repository, _, __: repository.list_sessions(criteria))

    @rule(criteria=filters, order=orders, limit=counts, data=st.data())
    def find(self, criteria: SessionFilter | None, order: Any, limit: int, data: st.DataObject) -> None:
        which = data.draw(st.none() | st.integers(0, len(self.cursors[0]) - 1)) if self.cursors[0] else None

        def find(repository: SessionRepository, side: int) -> Any:
            cursor = None if which is None else self.cursors[side][which]
            page = repository.find_sessions(criteria, order=order, limit=limit, cursor=cursor)
            if page.next_cursor is not None:
                self.cursors[side].append(page.next_cursor)
            return page

        self.both(lambda repository, _, side: find(repository, side))

    @rule(order=orders, limit=st.integers(1, 2))
    def page_through(self, order: Any, limit: int) -> None:
        def read_all_pages(repository: SessionRepository) -> list[Any]:
            pages: list[Any] = []
            cursor = None
            while not pages or cursor is not None:
                page = repository.find_sessions(order=order, limit=limit, cursor=cursor)
                cursor = page.next_cursor
                pages.append(page)
            return pages

        self.both(lambda repository, _, __: read_all_pages(repository))

    @invariant()
    def stored_sessions_are_equal(self) -> None:
        self.both(
            lambda repository, _, __: [repository.get_session(session_id) for session_id in repository.list_sessions()]
        )


def keep(slots: dict[int, Session], slot: int, session: Session | None) -> Session | None:
    """Put the session into a slot; None empties the slot."""
    slots.pop(slot, None)
    if session is not None:
        slots[slot] = session
    return session


def shape(value: Any) -> Any:
    """Return the comparable parts of a value, without the random write ids."""
    if isinstance(value, Session):
        public = {name: getattr(value, name) for name in Session.model_fields if name != "error_history"}
        history = [(entry, entry.phase, type(entry.phase), entry.position) for entry in value.error_history]
        return exact(public), history, value.omitted_errors, value.omitted_logs
    if isinstance(value, list):
        return [shape(item) for item in value]
    return value


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


PAIRS = [
    ("memory", "sqlite"),
    ("memory", "postgresql"),
    ("memory", "mariadb"),
    ("sqlite", "postgresql"),
    ("sqlite", "mariadb"),
]


@pytest.mark.parametrize(("one", "other"), cases(PAIRS, PAIRS[:3]))
def test_same_calls_have_same_outcomes(
    one: str, other: str, request: pytest.FixtureRequest, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    storages: list[Storage] = [request.getfixturevalue(name) for name in (one, other)]
    makers = [stack.enter_context(storage.repositories()) for storage in storages]
    drive(makers[0], makers[1], monkeypatch)


def drive(one: NewRepository, other: NewRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the machine on two kinds of repository that share one clock."""

    class Pair(EquivalenceMachine):
        pair = (one, other)

        def __init__(self) -> None:
            self.tick = itertools.count()
            self.serial = itertools.count()
            super().__init__()
            monkeypatch.setattr(validation, "utc_now", self.clock)

    run_state_machine_as_test(Pair, settings=settings(stateful_step_count=40))
