"""A server that stays away longer than a call may take, or that accepts the connection and says nothing.

Every call ends, and says that its outcome is unknown just where the commit may have been done. That it ends at its
deadline is not looked at: where it does not, pytest's timeout ends it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.proxy import Cut, Entrance
from tests.faults.stage import ASYNC_WAYS, WAYS, Stage, Undisturbed, staged
from vibeforge_sessions import OutcomeUnknownError, RetryPolicy, StorageError
from vibeforge_sessions.testing.base import SESSION_ID, full_session, stored

pytestmark = pytest.mark.timeout(60)
ALL = WAYS | ASYNC_WAYS
SYNC = ("psycopg", "pymysql")
SHORT, PATIENT = RetryPolicy(deadline=1.5), RetryPolicy(deadline=10)
MUTE = RetryPolicy(deadline=2)
SetStage = Callable[..., Stage]


@pytest.fixture
def set_stage(request: pytest.FixtureRequest) -> Iterator[SetStage]:
    with ExitStack() as stack:

        def set_stage(name: str, retry: RetryPolicy, **options: Any) -> Stage:
            storage = request.getfixturevalue(ALL[name].server)
            return stack.enter_context(staged(storage, ALL[name], retry=retry, **options))

        yield set_stage


def at_commit(undisturbed: Undisturbed, *, done: bool) -> Cut:
    return undisturbed.once_committed() if done else undisturbed.before_commit()


def check_that_it_goes_on(stage: Stage, session_id: str) -> None:
    """Assert that the server, which has come back, is used as before."""
    if stage.direct.get_session(session_id) is None:
        stage.direct.create_session(session_id=session_id)
    line = stage.repository.append_log(session_id, "back again")
    assert stored(stage.direct, session_id).logs[-1] == line
    assert stage.state(session_id) is not None


# --- it stays away ---


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize(
    ("way", "name", "entrance"),
    [
        *((way, name, "refused") for way in SYNC for name in ("create", "update with entries", "append_log", "delete")),
        *((way, "append_error", entrance) for way in SYNC for entrance in ("reset", "mute")),
        *((way, "append_error", "refused") for way in ALL),
    ],
)
def test_away_since_the_commit(set_stage: SetStage, way: str, name: str, entrance: Entrance, done: bool) -> None:
    stage = set_stage(way, SHORT)
    cut = at_commit(stage.undisturbed(name), done=done)
    outcome = stage.disturbed(name, replace(cut, then=lambda: stage.proxy.let(entrance)))
    assert outcome.cuts == 1
    assert (outcome.kind, outcome.applied) == ("unknown", done), outcome.answer
    check_that_it_goes_on(stage, outcome.session_id)


@pytest.mark.parametrize("entrance", ["refused", "mute"])
@pytest.mark.parametrize(
    ("way", "name", "message"),
    [
        ("psycopg", "delete", "Parse DELETE FROM vibeforge_sessions"),
        ("asyncpg", "delete", "Parse DELETE FROM vibeforge_sessions"),
        ("pymysql", "delete", "DELETE FROM vibeforge_sessions"),
        ("pymysql", "append_error", "UPDATE"),
        ("pymysql", "update with entries", "INSERT"),
        ("asyncmy", "append_error", "INSERT"),
    ],
)
def test_away_before_the_commit(set_stage: SetStage, way: str, name: str, message: str, entrance: Entrance) -> None:
    stage = set_stage(way, SHORT)
    number = stage.undisturbed(name).number("client", message)
    outcome = stage.disturbed(name, Cut("client", number, forwarded=True, then=lambda: stage.proxy.let(entrance)))
    assert outcome.cuts == 1
    assert outcome.kind == "failed", outcome.answer
    check_that_it_goes_on(stage, outcome.session_id)


@pytest.mark.parametrize("entrance", ["refused", "reset", "mute"])
@pytest.mark.parametrize("way", [*SYNC, *ASYNC_WAYS])
def test_away_from_the_beginning(set_stage: SetStage, way: str, entrance: Entrance) -> None:
    stage = set_stage(way, MUTE)
    stage.direct.create_session(full_session())
    stage.proxy.let(entrance)
    for call in (lambda: stage.repository.append_error(SESSION_ID, "t", "m"), stage.repository.list_sessions):
        with pytest.raises(StorageError) as caught:
            call()
        assert not isinstance(caught.value, OutcomeUnknownError)
    stage.settle()
    assert len(stored(stage.direct).error_history) == 1
    check_that_it_goes_on(stage, SESSION_ID)


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("way", [*SYNC, *ASYNC_WAYS])
def test_back_before_the_deadline(set_stage: SetStage, way: str, done: bool) -> None:
    stage = set_stage(way, PATIENT)

    def go_away() -> None:
        stage.proxy.let("refused")
        threading.Timer(0.3, stage.proxy.let, ["open"]).start()

    for name in ("append_error", "update with entries", "create", "delete"):
        cut = at_commit(stage.undisturbed(name), done=done)
        outcome = stage.disturbed(name, replace(cut, then=go_away))
        assert outcome.cuts == 1
        assert outcome.kind == "answered", outcome.answer


# --- it says nothing ---


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("way", [*SYNC, *ASYNC_WAYS])
def test_all_falls_silent_at_the_commit(set_stage: SetStage, way: str, done: bool) -> None:
    stage = set_stage(way, MUTE)
    cut = at_commit(stage.undisturbed("append_error"), done=done)
    outcome = stage.disturbed("append_error", replace(cut, how="mute", then=stage.proxy.blackhole))
    assert outcome.cuts == 1
    assert (outcome.kind, outcome.applied) == ("unknown", done), outcome.answer
    check_that_it_goes_on(stage, outcome.session_id)


@pytest.mark.parametrize("way", [*SYNC, *ASYNC_WAYS])
def test_all_falls_silent_while_it_reads(set_stage: SetStage, way: str) -> None:
    stage = set_stage(way, MUTE)
    stage.direct.create_session(full_session())
    for call in (lambda: stage.repository.get_session(SESSION_ID), stage.repository.list_sessions):
        call()
        stage.proxy.arm(Cut("server", 1, how="mute", then=stage.proxy.blackhole))
        with pytest.raises(StorageError) as caught:
            call()
        assert not isinstance(caught.value, OutcomeUnknownError)
        stage.settle()
    check_that_it_goes_on(stage, SESSION_ID)


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("way", [*SYNC, *ASYNC_WAYS])
def test_one_connection_falls_silent(set_stage: SetStage, way: str, done: bool) -> None:
    """The server does not know of it: there the transaction is open still, and holds the session's row."""
    stage = set_stage(way, RetryPolicy(deadline=6))
    cut = at_commit(stage.undisturbed("append_error"), done=done)
    outcome = stage.disturbed("append_error", replace(cut, how="mute"))
    assert outcome.cuts == 1
    assert outcome.kind == "answered", outcome.answer
