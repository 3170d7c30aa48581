"""A connection is cut at the commit, and another one writes before the caller can look what has become of its call.

Whatever the other one did: an answer is right, and where nobody can tell, the call says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.support.faults.calls import Repository
from tests.support.faults.stage import ASYNC_WAYS, EVERY_WAY, WAYS, Outcome, Stage, staged
from vibeforge_sessions import ErrorEntry, Session, StaleSessionError
from vibeforge_sessions.testing.base import stored


@pytest.fixture(scope="module", params=EVERY_WAY)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    way = (WAYS | ASYNC_WAYS)[request.param]
    with staged(request.getfixturevalue(way.server), way) as stage:
        yield stage


# --- what the other one does ---


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
    other.create_session(Session(session_id=session_id, answers={"anew": True}))


def creates_and_updates(other: Repository, session_id: str) -> None:
    creates(other, session_id)
    updates(other, session_id)


def renews(other: Repository, session_id: str) -> None:
    deletes(other, session_id)
    creates(other, session_id)


def renews_as_it_was(other: Repository, session_id: str) -> None:
    session = stored(other, session_id)  # its created_at is kept
    deletes(other, session_id)
    other.create_session(session)


# --- and what there is then ---


class Case(NamedTuple):
    name: str
    done: bool
    """Whether the call was done when the connection was cut."""
    other: Callable[[Repository, str], None]
    expected: dict[str, str]
    """What is stored then, by how the call may end."""


DONE, NOT_DONE = True, False
ROW, ENTRIES, WHOLE = "update of the row", "update with entries", "create with histories"
CASES = [
    # its entries are there, whoever has written since
    Case(ENTRIES, DONE, appends, {"answered": "2 new | new new other | 2"}),
    Case(ENTRIES, DONE, updates, {"answered": "3 new other | new new | 1"}),
    Case(ENTRIES, DONE, updates_twice, {"answered": "4 new other | new new | 1"}),
    Case(ENTRIES, DONE, deletes, {"unknown": "nothing"}),
    Case(ENTRIES, DONE, renews, {"unknown": "1 anew | | 0"}),
    Case(ENTRIES, NOT_DONE, appends, {"answered": "2 new | other new new | 2"}),
    Case(ENTRIES, NOT_DONE, updates, {"StaleSessionError": "2 other | | 0"}),
    Case(ENTRIES, NOT_DONE, updates_twice, {"StaleSessionError": "3 other | | 0"}),
    Case(ENTRIES, NOT_DONE, deletes, {"unknown": "nothing"}),
    Case(ENTRIES, NOT_DONE, renews, {"unknown": "1 anew | | 0"}),
    # without entries there is nothing but the row's write id, which a later update covers
    Case(ROW, DONE, appends, {"answered": "2 | other | 1"}),
    Case(ROW, DONE, updates, {"unknown": "3 other | | 0"}),
    Case(ROW, DONE, deletes, {"unknown": "nothing"}),
    Case(ROW, NOT_DONE, appends, {"answered": "2 | other | 1"}),
    Case(ROW, NOT_DONE, updates, {"StaleSessionError": "2 other | | 0"}),
    Case(ROW, NOT_DONE, updates_twice, {"unknown": "3 other | | 0"}),
    Case("append_error", DONE, appends, {"answered": "1 | appended other | 1"}),
    Case("append_error", DONE, updates, {"answered": "2 other | appended | 0"}),
    Case("append_error", DONE, deletes, {"unknown": "nothing"}),
    Case("append_error", DONE, renews, {"unknown": "1 anew | | 0"}),
    Case("append_error", NOT_DONE, appends, {"answered": "1 | other appended | 1"}),
    Case("append_error", NOT_DONE, updates, {"answered": "2 other | appended | 0"}),
    Case("append_error", NOT_DONE, deletes, {"unknown": "nothing"}),
    Case("append_log", DONE, appends, {"answered": "1 | other | 2"}),
    Case("append_log", NOT_DONE, appends, {"answered": "1 | other | 2"}),
    Case("append_log", DONE, deletes, {"unknown": "nothing"}),
    # True: it was there, and is gone; what was made anew since is not what was to be deleted
    Case("delete", DONE, creates, {"answered": "1 anew | | 0"}),
    Case("delete", DONE, creates_and_updates, {"answered": "2 anew other | | 0"}),
    Case("delete", NOT_DONE, appends, {"answered": "nothing"}),
    Case("delete", NOT_DONE, updates, {"answered": "nothing"}),
    Case("delete", NOT_DONE, deletes, {"answered": "nothing"}),
    Case("delete", NOT_DONE, renews, {"answered": "1 anew | | 0"}),
    Case("delete", NOT_DONE, renews_as_it_was, {"answered": "1 | | 0"}),
    Case("create", DONE, appends, {"answered": "1 | other | 1"}),
    Case("create", DONE, updates, {"unknown": "2 other | | 0"}),
    # it may have been stored and deleted before
    Case("create", NOT_DONE, creates, {"unknown": "1 anew | | 0"}),
    Case("create", NOT_DONE, creates_and_updates, {"unknown": "2 anew other | | 0"}),
    Case(WHOLE, DONE, appends, {"answered": "1 | t5 other | 1"}),
    Case(WHOLE, DONE, updates, {"answered": "2 other | t5 | 0"}),
    Case(WHOLE, NOT_DONE, creates, {"unknown": "1 anew | | 0"}),
    # what is stale is changed anew
    Case("modify", DONE, updates, {"answered": "3 modified other | modified | 0"}),
    Case("modify", DONE, deletes, {"unknown": "nothing"}),
    Case("modify", NOT_DONE, appends, {"answered": "2 modified | other modified | 1"}),
    Case("modify", NOT_DONE, updates, {"answered": "3 modified other | modified | 0"}),
]


def contents(session: Session | None) -> str:
    """Return the version, the answers, the errors and the number of the logs, but for what `full_session` has."""
    if session is None:
        return "nothing"
    answers = sorted(session.answers.keys() & {"new", "other", "anew", "modified"})
    errors = [entry.task_id for entry in session.error_history if entry.task_id != "t3"]
    logs = [line for line in session.logs if not line.endswith(" started")]
    return " ".join([str(session.version), *answers, "|", *errors, "|", str(len(logs))])


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{case.name}, {'' if case.done else 'not '}done, {case.other.__name__}" for case in CASES]
)
def test_another_one_writes_meanwhile(stage: Stage, case: Case) -> None:
    outcome = stage.beside(case.name, case.other, done=case.done)
    assert outcome.cuts == 1
    kind = type(outcome.answer).__name__ if outcome.kind == "refused" else outcome.kind
    assert kind in case.expected, outcome.answer
    stage.state(outcome.session_id)  # it is whole
    assert contents(stage.direct.get_session(outcome.session_id)) == case.expected[kind]
    if kind == "answered":
        check_that_it_goes_on(stage, outcome)


def check_that_it_goes_on(stage: Stage, outcome: Outcome) -> None:
    """Assert that the answer is what is stored of it, and that its session is stale just if it is."""
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
