"""A server that stays away longer than a call may take, or that accepts the connection and says nothing.

Every call ends, and says that its outcome is unknown just where the commit may have been done. That it ends in time is
not looked at: where it does not end, pytest's timeout ends it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support.faults.proxy import Cut, Entrance
from tests.support.faults.stage import ASYNC_WAYS, WAYS, Stage, Undisturbed, staged
from vibeforge_sessions import RetryPolicy, StorageError
from vibeforge_sessions.testing.base import full_session, stored

pytestmark = pytest.mark.timeout(60)
SHORT = RetryPolicy(deadline=1)
SYNC = ("psycopg", "pymysql")


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    way = (WAYS | ASYNC_WAYS)[request.param]
    # a call may exceed its deadline by the time that connecting takes: the least that libpq knows is 2 s
    patience = {"postgresql+psycopg": {"connect_timeout": 2}, "mariadb+pymysql": {"read_timeout": 1}}
    options: dict[str, Any] = {"connect_args": patience.get(way.driver, {})}
    with staged(request.getfixturevalue(way.server), way, **options) as stage:
        yield stage


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test on these ways."""
    return pytest.mark.parametrize("stage", names, indirect=True)


done_or_not = pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])


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


@done_or_not
@pytest.mark.parametrize(
    ("stage", "name", "entrance"),
    [
        *((way, name, "refused") for way in SYNC for name in ("create", "update with entries", "delete")),
        *((way, "append_error", "refused") for way in (*WAYS, *ASYNC_WAYS)),
        *((way, "append_error", "reset") for way in ("psycopg", "asyncmy")),
        *((way, "append_error", "mute") for way in ("pymysql", "asyncpg")),
    ],
    indirect=["stage"],
)
def test_away_since_the_commit(stage: Stage, name: str, entrance: Entrance, done: bool) -> None:
    cut = at_commit(stage.undisturbed(name), done=done)
    outcome = stage.disturbed(name, replace(cut, then=lambda: stage.proxy.let(entrance)), retry=SHORT)
    assert outcome.cuts == 1
    assert (outcome.kind, outcome.applied) == ("unknown", done), outcome.answer
    check_that_it_goes_on(stage, outcome.session_id)


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
def test_away_before_the_commit(stage: Stage, name: str, message: str) -> None:
    number = stage.undisturbed(name).number("client", message)
    cut = Cut("client", number, forwarded=True, then=lambda: stage.proxy.let("refused"))
    outcome = stage.disturbed(name, cut, retry=SHORT)
    assert outcome.cuts == 1
    assert outcome.kind == "failed", outcome.answer
    check_that_it_goes_on(stage, outcome.session_id)


@pytest.mark.parametrize(
    ("stage", "entrance"),
    [
        *((way, entrance) for way in SYNC for entrance in ("refused", "reset", "mute")),
        *((way, "mute") for way in ASYNC_WAYS),
    ],
    indirect=["stage"],
)
def test_away_from_the_beginning(stage: Stage, entrance: Entrance) -> None:
    repository = stage.new_repository(SHORT)
    session_id = stage.direct.create_session().session_id
    stage.disconnect()
    stage.proxy.let(entrance)
    for call in (lambda: repository.append_error(session_id, "t", "m"), repository.list_sessions):
        with pytest.raises(StorageError):
            call()
    stage.settle()
    assert stored(stage.direct, session_id).error_history == []
    check_that_it_goes_on(stage, session_id)


@done_or_not
@on(*SYNC, *ASYNC_WAYS)
def test_back_before_the_deadline(stage: Stage, done: bool) -> None:
    def go_away() -> None:
        stage.proxy.let("refused")
        threading.Timer(0.3, stage.proxy.let, ["open"]).start()

    for name in ("append_error", "update with entries", "create", "delete"):
        cut = at_commit(stage.undisturbed(name), done=done)
        outcome = stage.disturbed(name, replace(cut, then=go_away))
        assert outcome.cuts == 1
        assert outcome.kind == "answered", outcome.answer


# --- it says nothing ---


@done_or_not
@on(*SYNC, *ASYNC_WAYS)
def test_all_falls_silent_at_the_commit(stage: Stage, done: bool) -> None:
    cut = at_commit(stage.undisturbed("append_error"), done=done)
    outcome = stage.disturbed("append_error", replace(cut, how="mute", then=stage.proxy.blackhole), retry=SHORT)
    assert outcome.cuts == 1
    assert (outcome.kind, outcome.applied) == ("unknown", done), outcome.answer
    check_that_it_goes_on(stage, outcome.session_id)


@on(*SYNC, *ASYNC_WAYS)
def test_all_falls_silent_while_it_reads(stage: Stage) -> None:
    repository = stage.new_repository(SHORT)
    session_id = stage.direct.create_session(full_session("read")).session_id
    for call in (lambda: repository.get_session(session_id), repository.list_sessions):
        call()
        stage.proxy.arm(Cut("server", 1, how="mute", then=stage.proxy.blackhole))
        with pytest.raises(StorageError):
            call()
        stage.settle()
    check_that_it_goes_on(stage, session_id)


@done_or_not
@on(*SYNC, *ASYNC_WAYS)
def test_one_connection_falls_silent(stage: Stage, done: bool) -> None:
    """The server does not know of it: there the transaction is open still, and holds the session's row."""
    cut = at_commit(stage.undisturbed("append_error"), done=done)
    outcome = stage.disturbed("append_error", replace(cut, how="mute"), retry=RetryPolicy(deadline=4))
    assert outcome.cuts == 1
    assert outcome.kind == "answered", outcome.answer


@on(*SYNC)
def test_one_connection_falls_silent_before_the_commit(stage: Stage) -> None:
    """What was begun there holds the row, and is not what the next attempt has to wait for."""
    outcome = stage.disturbed("delete", Cut("server", 1, how="mute"), retry=RetryPolicy(deadline=4))
    assert outcome.cuts == 1
    assert outcome.kind == "answered", outcome.answer
