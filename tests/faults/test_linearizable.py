"""Clients at work while servers and processes are killed: what they were told can be put in one order, per session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.databases import Storage
from tests.support.faults import broken, disturbances, history, linearizable
from tests.support.faults.at_work import Threads
from tests.support.faults.checker import check
from tests.support.faults.history import Crash
from tests.support.faults.linearizable import CLIENTS, IMPATIENT, ROUNDS, SESSIONS, Database, Disturbed, clients_at_work
from tests.support.faults.proxy import Proxy
from tests.support.servers.fixtures import skipping
from vibeforge_sessions import InMemorySessionRepository, RetryPolicy, SessionRepository, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine

ONCE: Final = RetryPolicy(attempts=1, deadline=2.0)
MOST_ROUNDS: Final = 20
CALLS: Final = 10
"""All that a client makes."""


class Makers(dict[str, Callable[[], Database]]):
    """What makes new databases, by their kind; a server is started when it is asked for."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, kind: str) -> Callable[[], Database]:
        self[kind] = self._stack.enter_context(linearizable.databases(kind))
        return self[kind]


@pytest.fixture(scope="module")
def makers() -> Iterator[Makers]:
    with contextlib.ExitStack() as stack:
        yield Makers(stack)


on_servers = pytest.mark.parametrize("durable", ["postgresql", "mariadb"], indirect=True)


@pytest.fixture
def durable(request: pytest.FixtureRequest, makers: Makers) -> Database:
    """A new database on a server that can be killed."""
    with skipping():
        return makers[request.param]()


def is_right(found: dict[str, Any]) -> None:
    """Fail if a round is not linearizable; tell what there was."""
    print(f"{found['calls']} calls: {found['outcomes']}; nobody was answered for {found['silence']:.2f} s at the most")
    assert len(found["made"]) == CALLS, "some were never made"
    assert "\n".join(found["violations"]) == ""


def test_in_memory(tmp_path: Path) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    with clients_at_work([repository] * CLIENTS, tmp_path) as clients:
        clients.wait_for(1000)
    is_right(linearizable.judged(tmp_path))


@pytest.mark.parametrize(
    ("kind", "disturbed"),
    [
        pytest.param(
            kind,
            each,
            id=linearizable.name_of(kind, each),
            marks=() if each in {linearizable.nothing, linearizable.writers_are_killed} else pytest.mark.exhaustive,
        )
        for kind, each in ROUNDS
    ],
)
def test_while(kind: str, disturbed: Disturbed, makers: Makers) -> None:
    with skipping():
        new_database = makers[kind]
    found = linearizable.one_round(new_database, disturbed)
    if len(found["made"]) < CALLS:  # what is seldom made may be missing where one disturbance ends soon
        assert not found["violations"]
        found = linearizable.one_round(new_database, disturbed)
    is_right(found)


# -- the repository is wrong


def noticed(wrong: Sequence[SessionRepository], folder: Path, disturb: Callable[[Threads], list[Crash]]) -> bool:
    """Tell whether the checker cries in some round: even what is wrong does not show every time.

    :param disturb: returns the crashes that may have taken back what was read: that is not what is to be noticed.
    """
    for number in range(MOST_ROUNDS):
        own = folder / str(number)
        own.mkdir()
        with clients_at_work(wrong, own, [f"{number}.{session_id}" for session_id in SESSIONS]) as clients:
            crashes = disturb(clients)
        if check(history.read(own), glimpses=crashes):
            print(f"noticed in round {number + 1}")
            return True
    return False


@pytest.mark.parametrize("wrong", broken.ALWAYS_WRONG)
def test_it_notices(wrong: type[SQLAlchemySessionRepository], sqlite: Storage, tmp_path: Path) -> None:
    engine = sqlite.new_engine()

    def let_them_work(clients: Threads) -> list[Crash]:
        clients.wait_for(700)
        return []

    assert noticed([wrong(engine) for _ in range(CLIENTS)], tmp_path, let_them_work)
    engine.dispose()


@pytest.mark.exhaustive
@on_servers
@pytest.mark.parametrize("wrong", [broken.LooksAtNoVersion, broken.TriesAgainBlindly])
def test_it_notices_while_answers_are_lost(
    wrong: type[SQLAlchemySessionRepository], durable: Database, tmp_path: Path
) -> None:
    with Proxy(durable.url) as proxy:
        engine = create_engine(proxy.url)
        repository = wrong(engine, retry=ONCE if wrong is broken.TriesAgainBlindly else IMPATIENT)

        def disturb(clients: Threads) -> list[Crash]:
            disturbances.lose_answers(proxy, clients, times=20)
            return []

        assert noticed([repository] * CLIENTS, tmp_path, disturb)
        engine.dispose()


@pytest.mark.exhaustive
@on_servers
def test_it_notices_what_is_tried_again_blindly_while_the_server_is_killed(durable: Database, tmp_path: Path) -> None:
    engine = create_engine(durable.url)
    repository = broken.TriesAgainBlindly(engine, retry=ONCE)

    def disturb(clients: Threads) -> list[Crash]:
        assert durable.server is not None
        crashes = disturbances.crash(durable.server, clients, times=1, answers=100)
        return crashes if durable.shows_glimpses else []

    assert noticed([repository] * CLIENTS, tmp_path, disturb)
    engine.dispose()
