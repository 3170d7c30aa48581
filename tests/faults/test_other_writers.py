"""Connections cut at the commit while another writer changes the session before the outcome is resolved.

The answer of the call is correct for every change of the other writer. If the outcome cannot be resolved, the call
reports that it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.support.faults.calls import Repository
from tests.support.faults.stage import ALL_DRIVERS, ASYNC_DRIVERS, DRIVERS, Outcome, Stage, staged
from vibeforge_sessions import ErrorEntry, Session, StaleSessionError
from vibeforge_sessions.testing.base import stored


@pytest.fixture(scope="module", params=ALL_DRIVERS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    driver = (DRIVERS | ASYNC_DRIVERS)[request.param]
    with staged(request.getfixturevalue(driver.server), driver) as stage:
        yield stage


# --- changes of the other writer ---


def appends(other: Repository, session_id: str) -> None:
    other.append_error(session_id, "other", "from another")
    other.append_log(session_id, "from another")


def updates(other: Repository, session_id: str) -> None:
    other.modify_session(session_id, lambda session: session.add_answer("other", session.version))


def updates_twice(other: Repository, session_id: str) -> None:
    updates(other, session_id)
    updates(other, session_id)


def deletes(other: Repository, session_id: str) -> None:
    assert other.delete_session(session_id)


def creates(other: Repository, session_id: str) -> None:
    other.create_session(Session(session_id=session_id, answers={"recreated": True}))


def creates_and_updates(other: Repository, session_id: str) -> None:
    creates(other, session_id)
    updates(other, session_id)


def recreates(other: Repository, session_id: str) -> None:
    deletes(other, session_id)
    creates(other, session_id)


def recreates_and_updates(other: Repository, session_id: str) -> None:
    recreates(other, session_id)
    updates(other, session_id)


def recreates_unchanged(other: Repository, session_id: str) -> None:
    session = stored(other, session_id)  # its created_at is kept
    deletes(other, session_id)
    other.create_session(session)


# --- cases and expected contents ---


class Case(NamedTuple):
    name: str
    done: bool
    """Whether the call was committed when the connection was cut."""
    other: Callable[[Repository, str], None]
    expected: dict[str, str]
    """Contents of the session afterwards, by the possible outcomes of the call."""


DONE, NOT_DONE = True, False
ROW, ENTRIES, WHOLE = "update of the row", "update with entries", "create with histories"
CASES = [
    # entries identify the write, even after other writes
    Case(ENTRIES, DONE, appends, {"answered": "2 new | new new other | 2"}),
    Case(ENTRIES, DONE, updates, {"answered": "3 new other | new new | 1"}),
    Case(ENTRIES, DONE, updates_twice, {"answered": "4 new other | new new | 1"}),
    Case(ENTRIES, DONE, deletes, {"unknown": "nothing"}),
    Case(ENTRIES, DONE, recreates, {"unknown": "1 recreated | | 0"}),
    Case(ENTRIES, DONE, recreates_and_updates, {"unknown": "2 other recreated | | 0"}),
    Case(ENTRIES, NOT_DONE, appends, {"answered": "2 new | other new new | 2"}),
    Case(ENTRIES, NOT_DONE, updates, {"StaleSessionError": "2 other | | 0"}),
    Case(ENTRIES, NOT_DONE, updates_twice, {"StaleSessionError": "3 other | | 0"}),
    Case(ENTRIES, NOT_DONE, deletes, {"unknown": "nothing"}),
    Case(ENTRIES, NOT_DONE, recreates, {"unknown": "1 recreated | | 0"}),
    # without entries only the write id of the row identifies the write, and a later update replaces it
    Case(ROW, DONE, appends, {"answered": "2 | other | 1"}),
    Case(ROW, DONE, updates, {"unknown": "3 other | | 0"}),
    Case(ROW, DONE, deletes, {"unknown": "nothing"}),
    Case(ROW, NOT_DONE, appends, {"answered": "2 | other | 1"}),
    Case(ROW, NOT_DONE, updates, {"StaleSessionError": "2 other | | 0"}),
    Case(ROW, NOT_DONE, updates_twice, {"unknown": "3 other | | 0"}),
    Case("append_error", DONE, appends, {"answered": "1 | appended other | 1"}),
    Case("append_error", DONE, updates, {"answered": "2 other | appended | 0"}),
    Case("append_error", DONE, deletes, {"unknown": "nothing"}),
    Case("append_error", DONE, recreates, {"unknown": "1 recreated | | 0"}),
    Case("append_error", NOT_DONE, appends, {"answered": "1 | other appended | 1"}),
    Case("append_error", NOT_DONE, updates, {"answered": "2 other | appended | 0"}),
    Case("append_error", NOT_DONE, deletes, {"unknown": "nothing"}),
    Case("append_log", DONE, appends, {"answered": "1 | other | 2"}),
    Case("append_log", NOT_DONE, appends, {"answered": "1 | other | 2"}),
    Case("append_log", DONE, deletes, {"unknown": "nothing"}),
    # True: the session was deleted; a session created since then is another incarnation and is kept
    Case("delete", DONE, creates, {"answered": "1 recreated | | 0"}),
    Case("delete", DONE, creates_and_updates, {"answered": "2 other recreated | | 0"}),
    Case("delete", NOT_DONE, appends, {"answered": "nothing"}),
    Case("delete", NOT_DONE, updates, {"answered": "nothing"}),
    Case("delete", NOT_DONE, deletes, {"answered": "nothing"}),
    Case("delete", NOT_DONE, recreates, {"answered": "1 recreated | | 0"}),
    Case("delete", NOT_DONE, recreates_unchanged, {"answered": "1 | | 0"}),
    Case("create", DONE, appends, {"answered": "1 | other | 1"}),
    Case("create", DONE, updates, {"unknown": "2 other | | 0"}),
    # the session may have been stored and deleted before
    Case("create", NOT_DONE, creates, {"unknown": "1 recreated | | 0"}),
    Case("create", NOT_DONE, creates_and_updates, {"unknown": "2 other recreated | | 0"}),
    Case(WHOLE, DONE, appends, {"answered": "1 | t5 other | 1"}),
    Case(WHOLE, DONE, updates, {"answered": "2 other | t5 | 0"}),
    Case(WHOLE, NOT_DONE, creates, {"unknown": "1 recreated | | 0"}),
    # modify applies its change again to a stale session
    Case("modify", DONE, updates, {"answered": "3 modified other | modified | 0"}),
    Case("modify", DONE, deletes, {"unknown": "nothing"}),
    Case("modify", NOT_DONE, appends, {"answered": "2 modified | other modified | 1"}),
    Case("modify", NOT_DONE, updates, {"answered": "3 modified other | modified | 0"}),
]


def contents(session: Session | None) -> str:
    """Return the version, answers, errors and number of logs that `full_session` does not have."""
    if session is None:
        return "nothing"
    answers = sorted(session.answers.keys() & {"new", "other", "recreated", "modified"})
    errors = [entry.task_id for entry in session.error_history if entry.task_id != "t3"]
    logs = [line for line in session.logs if not line.endswith(" started")]
    return " ".join([str(session.version), *answers, "|", *errors, "|", str(len(logs))])


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{case.name}, {'' if case.done else 'not '}done, {case.other.__name__}" for case in CASES]
)
def test_call_reports_its_outcome_when_another_writer_intervenes(stage: Stage, case: Case) -> None:
    outcome = stage.with_other_writer(case.name, case.other, done=case.done)
    assert outcome.cuts == 1
    kind = type(outcome.answer).__name__ if outcome.kind == "rejected" else outcome.kind
    assert kind in case.expected, outcome.answer
    stage.state(outcome.session_id)  # fails if the stored session is incomplete
    assert contents(stage.direct.get_session(outcome.session_id)) == case.expected[kind]
    if kind == "answered":
        check_session_can_be_used(stage, outcome)


def check_session_can_be_used(stage: Stage, outcome: Outcome) -> None:
    """Assert that the answer is stored, and that its session is stale only if another writer has updated it."""
    answer = outcome.answer
    if isinstance(answer, ErrorEntry):
        assert answer in stage.direct.list_errors(outcome.session_id)
        assert answer.position is not None
    elif isinstance(answer, str):
        assert stage.direct.list_logs(outcome.session_id).count(answer) == 1
    session = answer if isinstance(answer, Session) else outcome.begun.session
    if session is None:
        return
    now = stored(stage.direct, outcome.session_id)
    by_position = {entry.position: entry for entry in now.error_history}
    assert [by_position[entry.position] for entry in session.error_history] == session.error_history
    session.add_answer("later", 1)
    if session.version == now.version:
        stage.direct.update_session(session)
    else:
        with pytest.raises(StaleSessionError):
            stage.direct.update_session(session)
