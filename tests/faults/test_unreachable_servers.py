"""A server that is away for longer than a call may take, or that accepts connections and never answers.

Every call ends. It reports an unknown outcome only where the commit may have been executed. The tests do not measure
time: the timeout of pytest ends a call that does not end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support import cases
from tests.support.faults.proxy import Cut, Entrance
from tests.support.faults.stage import ASYNC_DRIVERS, DRIVERS, Stage, Undisturbed, staged
from vibeforge_sessions import RetryPolicy, StorageError
from vibeforge_sessions.testing.base import full_session, stored

pytestmark = pytest.mark.timeout(60)
SHORT = RetryPolicy(deadline=1)
SYNC = ("psycopg", "pymysql")


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    driver = (DRIVERS | ASYNC_DRIVERS)[request.param]
    # a call may exceed its deadline by the connect timeout, which is at least 2 s with libpq
    timeouts = {"postgresql+psycopg": {"connect_timeout": 2}, "mariadb+pymysql": {"read_timeout": 1}}
    options: dict[str, Any] = {"connect_args": timeouts.get(driver.drivername, {})}
    with staged(request.getfixturevalue(driver.server), driver, **options) as stage:
        yield stage


def with_drivers(*names: str) -> pytest.MarkDecorator:
    """Run a test with these drivers."""
    return pytest.mark.parametrize("stage", cases(names, SYNC), indirect=True)


done_or_not = pytest.mark.parametrize("done", [True, False], ids=["committed", "not committed"])


def at_commit(undisturbed: Undisturbed, *, done: bool) -> Cut:
    return undisturbed.after_commit() if done else undisturbed.before_commit()


def check_server_is_usable(stage: Stage, session_id: str) -> None:
    """Assert that the server is used as before after it has come back."""
    if stage.direct.get_session(session_id) is None:
        stage.direct.create_session(session_id=session_id)
    line = stage.repository.append_log(session_id, "back again")
    assert stored(stage.direct, session_id).logs[-1] == line
    assert stage.state(session_id) is not None


# --- unreachable servers ---


@done_or_not
@pytest.mark.parametrize(
    ("stage", "name", "entrance"),
    [
        *cases(
            ((driver, name, "refused") for driver in SYNC for name in ("create", "update with entries", "delete")), ()
        ),
        *cases(
            ((driver, "append_error", "refused") for driver in (*DRIVERS, *ASYNC_DRIVERS)),
            [("psycopg", "append_error", "refused")],
        ),
        *cases(((driver, "append_error", "reset") for driver in ("psycopg", "asyncmy")), ()),
        *cases(
            ((driver, "append_error", "mute") for driver in ("pymysql", "asyncpg")),
            [("pymysql", "append_error", "mute")],
        ),
    ],
    indirect=["stage"],
)
def test_call_reports_unknown_outcome_when_server_is_away_since_the_commit(
    stage: Stage, name: str, entrance: Entrance, done: bool
) -> None:
    cut = at_commit(stage.undisturbed(name), done=done)
    outcome = stage.disturbed(name, replace(cut, then=lambda: stage.proxy.set_entrance(entrance)), retry=SHORT)
    assert outcome.cuts == 1
    assert (outcome.kind, outcome.applied) == ("unknown", done), outcome.answer
    check_server_is_usable(stage, outcome.session_id)


@pytest.mark.parametrize(
    ("stage", "name", "message"),
    [
        ("psycopg", "delete", "Parse DELETE FROM vibeforge_sessions"),
        ("asyncpg", "delete", "Parse DELETE FROM vibeforge_sessions"),
        ("pymysql", "delete", "DELETE FROM vibeforge_sessions"),
        ("pymysql", "append_error", "UPDATE"),
        ("pymysql", "update with entries", "INSERT"),
        ("asyncmy", "append_error", "INSERT"),
    ],
    indirect=["stage"],
)
def test_call_fails_when_server_is_away_before_the_commit(stage: Stage, name: str, message: str) -> None:
    number = stage.undisturbed(name).number("client", message)
    cut = Cut("client", number, forwarded=True, then=lambda: stage.proxy.set_entrance("refused"))
    outcome = stage.disturbed(name, cut, retry=SHORT)
    assert outcome.cuts == 1
    assert outcome.kind == "failed", outcome.answer
    check_server_is_usable(stage, outcome.session_id)


@pytest.mark.parametrize(
    ("stage", "entrance"),
    [
        *cases(
            ((driver, entrance) for driver in SYNC for entrance in ("refused", "reset", "mute")),
            [("psycopg", "refused"), ("pymysql", "mute")],
        ),
        *cases(((driver, "mute") for driver in ASYNC_DRIVERS), ()),
    ],
    indirect=["stage"],
)
def test_call_fails_when_server_was_never_reachable(stage: Stage, entrance: Entrance) -> None:
    repository = stage.new_repository(SHORT)
    session_id = stage.direct.create_session().session_id
    stage.disconnect()
    stage.proxy.set_entrance(entrance)
    for call in (lambda: repository.append_error(session_id, "t", "m"), repository.list_sessions):
        with pytest.raises(StorageError):
            call()
    stage.settle()
    assert stored(stage.direct, session_id).error_history == []
    check_server_is_usable(stage, session_id)


@done_or_not
@with_drivers(*SYNC, *ASYNC_DRIVERS)
def test_call_is_answered_when_server_is_back_before_the_deadline(stage: Stage, done: bool) -> None:
    def become_unreachable() -> None:
        stage.proxy.set_entrance("refused")
        threading.Timer(0.3, stage.proxy.set_entrance, ["open"]).start()

    for name in ("append_error", "update with entries", "create", "delete"):
        cut = at_commit(stage.undisturbed(name), done=done)
        outcome = stage.disturbed(name, replace(cut, then=become_unreachable))
        assert outcome.cuts == 1
        assert outcome.kind == "answered", outcome.answer


# --- silent servers ---


@done_or_not
@with_drivers(*SYNC, *ASYNC_DRIVERS)
def test_call_reports_unknown_outcome_when_server_falls_silent_at_the_commit(stage: Stage, done: bool) -> None:
    cut = at_commit(stage.undisturbed("append_error"), done=done)
    outcome = stage.disturbed("append_error", replace(cut, how="mute", then=stage.proxy.blackhole), retry=SHORT)
    assert outcome.cuts == 1
    assert (outcome.kind, outcome.applied) == ("unknown", done), outcome.answer
    check_server_is_usable(stage, outcome.session_id)


@with_drivers(*SYNC, *ASYNC_DRIVERS)
def test_read_fails_when_server_falls_silent(stage: Stage) -> None:
    repository = stage.new_repository(SHORT)
    session_id = stage.direct.create_session(full_session("read")).session_id
    for call in (lambda: repository.get_session(session_id), repository.list_sessions):
        call()
        stage.proxy.arm(Cut("server", 1, how="mute", then=stage.proxy.blackhole))
        with pytest.raises(StorageError):
            call()
        stage.settle()
    check_server_is_usable(stage, session_id)


@done_or_not
@with_drivers(*SYNC, *ASYNC_DRIVERS)
def test_call_is_answered_when_its_connection_falls_silent_at_the_commit(stage: Stage, done: bool) -> None:
    """The server does not notice: its transaction stays open and holds the row of the session."""
    cut = at_commit(stage.undisturbed("append_error"), done=done)
    outcome = stage.disturbed("append_error", replace(cut, how="mute"), retry=RetryPolicy(deadline=4))
    assert outcome.cuts == 1
    assert outcome.kind == "answered", outcome.answer


@with_drivers(*SYNC)
def test_call_is_answered_when_its_connection_falls_silent_before_the_commit(stage: Stage) -> None:
    """The silent transaction holds the row, but the next attempt does not have to wait for it."""
    outcome = stage.disturbed("delete", Cut("server", 1, how="mute"), retry=RetryPolicy(deadline=4))
    assert outcome.cuts == 1
    assert outcome.kind == "answered", outcome.answer
