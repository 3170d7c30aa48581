"""Linearizability of the answers that clients receive while servers and processes are killed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import cases
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
"""Number of different calls that a client makes."""


class Makers(dict[str, Callable[[], Database]]):
    """Functions that create databases, by kind; a server is started at its first use."""

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
    """Return a new database on a server that can be killed."""
    with skipping():
        return makers[request.param]()


def check_round(found: dict[str, Any]) -> None:
    """Print the figures of a round, and fail if it is not linearizable."""
    print(f"{found['calls']} calls: {found['outcomes']}; at most {found['silence']:.2f} s without an answer")
    assert len(found["made"]) == CALLS, "some kinds of calls were never made"
    assert "\n".join(found["violations"]) == ""


def test_history_of_the_memory_repository_is_linearizable(tmp_path: Path) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    with clients_at_work([repository] * CLIENTS, tmp_path) as clients:
        clients.wait_for(1000)
    check_round(linearizable.evaluated(tmp_path))


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
def test_history_during_a_disturbance_is_linearizable(kind: str, disturbed: Disturbed, makers: Makers) -> None:
    with skipping():
        new_database = makers[kind]
    found = linearizable.one_round(new_database, disturbed)
    if len(found["made"]) < CALLS:  # rare calls may be missing if the disturbance ends soon
        assert not found["violations"]
        found = linearizable.one_round(new_database, disturbed)
    check_round(found)


# -- broken repositories


def is_detected(wrong: Sequence[SessionRepository], folder: Path, disturb: Callable[[Threads], list[Crash]]) -> bool:
    """Return whether the checker finds a violation in some round; a broken repository is not wrong in every round.

    :param disturb: returns the crashes that may have revoked data that a client had read; these are no violations.
    """
    for number in range(MOST_ROUNDS):
        own = folder / str(number)
        own.mkdir()
        with clients_at_work(wrong, own, [f"{number}.{session_id}" for session_id in SESSIONS]) as clients:
            crashes = disturb(clients)
        if check(history.read(own), glimpses=crashes):
            print(f"detected in round {number + 1}")
            return True
    return False


@pytest.mark.parametrize("wrong", cases(broken.ALWAYS_WRONG, broken.ALWAYS_WRONG[:3]))
def test_checker_detects_broken_repository(
    wrong: type[SQLAlchemySessionRepository], sqlite: Storage, tmp_path: Path
) -> None:
    engine = sqlite.new_engine()

    def wait_for_calls(clients: Threads) -> list[Crash]:
        clients.wait_for(700)
        return []

    assert is_detected([wrong(engine) for _ in range(CLIENTS)], tmp_path, wait_for_calls)
    engine.dispose()


@pytest.mark.exhaustive
@on_servers
@pytest.mark.parametrize("wrong", [broken.IgnoresVersion, broken.RetriesBlindly])
def test_checker_detects_broken_repository_when_answers_are_lost(
    wrong: type[SQLAlchemySessionRepository], durable: Database, tmp_path: Path
) -> None:
    with Proxy(durable.url) as proxy:
        engine = create_engine(proxy.url)
        repository = wrong(engine, retry=ONCE if wrong is broken.RetriesBlindly else IMPATIENT)

        def disturb(clients: Threads) -> list[Crash]:
            disturbances.lose_answers(proxy, clients, times=20)
            return []

        assert is_detected([repository] * CLIENTS, tmp_path, disturb)
        engine.dispose()


@pytest.mark.exhaustive
@on_servers
def test_checker_detects_blind_retries_when_the_server_is_killed(durable: Database, tmp_path: Path) -> None:
    engine = create_engine(durable.url)
    repository = broken.RetriesBlindly(engine, retry=ONCE)

    def disturb(clients: Threads) -> list[Crash]:
        assert durable.server is not None
        crashes = disturbances.crash(durable.server, clients, times=1, answers=100)
        return crashes if durable.shows_glimpses else []

    assert is_detected([repository] * CLIENTS, tmp_path, disturb)
    engine.dispose()
