"""A database, a repository that reaches it through a proxy, and another one that goes past it."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import URL, Engine, make_url, text

from tests.support import cases
from tests.support.databases import Storage
from tests.support.faults.calls import CALLS, Begun, Call, Repository, State, check_answer, state_of
from tests.support.faults.framing import Side
from tests.support.faults.proxy import Cut, Proxy, Seen
from tests.support.servers.machine import wait_for
from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    OutcomeUnknownError,
    RetryPolicy,
    SQLAlchemySessionRepository,
    StorageError,
)
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.testing.base import full_session


class Way(NamedTuple):
    """A way to a server."""

    server: str
    """The name of the fixture of its `Storage`."""
    driver: str
    fast_path: bool = True
    asynchronous: bool = False


WAYS: Final = {
    "psycopg": Way("postgresql", "postgresql+psycopg"),
    "psycopg through SQLAlchemy": Way("postgresql", "postgresql+psycopg", fast_path=False),
    "pymysql": Way("mariadb", "mariadb+pymysql"),
    "pymysql through SQLAlchemy": Way("mariadb", "mariadb+pymysql", fast_path=False),
}
ASYNC_WAYS: Final = {
    "async psycopg": Way("postgresql", "postgresql+psycopg", asynchronous=True),
    "asyncpg": Way("postgresql", "postgresql+asyncpg", asynchronous=True),
    "asyncmy": Way("mariadb", "mariadb+asyncmy", asynchronous=True),
}
_UNENCRYPTED: Final = {
    "postgresql+psycopg": {"sslmode": "disable"},
    "postgresql+asyncpg": {"ssl": "disable"},
    "mariadb+pymysql": {"ssl_disabled": "true"},  # it would also take 27 ms for each connection, to get ready for it
}
"""A server that is not ours may offer encryption, into which a proxy cannot look."""
_DIRECT: Final = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
_COUNT: Final = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()",
}
_QUICK_WAYS: Final = ("psycopg", "pymysql")
EVERY_WAY: Final = cases([*WAYS, *ASYNC_WAYS], _QUICK_WAYS)
"""Parameters of a fixture. One way to each database is quick: both execution paths and all drivers share the code."""
QUICK: Final = RetryPolicy(first_delay=0.001)


class Undisturbed(NamedTuple):
    """What a call does when nothing disturbs it."""

    before: State | None
    after: State | None
    messages: list[Seen]

    def count(self, side: Side) -> int:
        return sum(seen.side == side for seen in self.messages)

    def size(self, side: Side) -> int:
        return sum(seen.size for seen in self.messages if seen.side == side)

    def number(self, side: Side, name: str) -> int:
        """Return the number of the last message of a side whose name begins so; 0 for none."""
        names = [seen.name for seen in self.messages if seen.side == side]
        return max((number for number, each in enumerate(names, 1) if each.startswith(name)), default=0)

    @property
    def commit(self) -> int:
        """The number of the client's message that has the server commit: COMMIT, or a single statement's Sync."""
        return max(self.number("client", name) for name in ("COMMIT", "Query COMMIT", "Sync"))

    @property
    def write(self) -> int:
        """The number of the client's message with which the writing begins; none of it has reached the server before.

        A driver may have asked the server to prepare the statement before.
        """
        names = [seen.name for seen in self.messages if seen.side == "client"][: self.commit]
        if names[-1] != "Sync":
            return 1
        return max((number for number, name in enumerate(names[:-1], 1) if name in {"Sync", "Flush"}), default=0) + 1

    def before_commit(self) -> Cut:
        """Return the cut after which the server will not commit, which the client cannot know."""
        return Cut("client", self.commit, how="close")

    def once_committed(self) -> Cut:
        """Return the cut after which the server has committed, which the client cannot know."""
        clients = servers = 0
        for seen in self.messages:
            clients += seen.side == "client"
            servers += seen.side == "server"
            if clients >= self.commit and seen.side == "server" and seen.name in {"OK", "ReadyForQuery"}:
                return Cut("server", servers, how="close")
        raise AssertionError("it did not commit")


Kind = Literal["answered", "failed", "unknown", "refused"]


class Outcome(NamedTuple):
    """How a call ended, and whether it was done."""

    kind: Kind
    """answered; failed: StorageError; unknown: OutcomeUnknownError; refused: whatever else it raised."""
    answer: Any
    """What it returned or raised."""
    session_id: str
    begun: Begun
    cuts: int
    """How many cuts were made while it was."""
    applied: bool | None = None


class OnALoop:
    """An asynchronous repository for those who cannot wait: each call runs the event loop until it is done."""

    def __init__(self, repository: AsyncSQLAlchemySessionRepository, runner: asyncio.Runner) -> None:
        self._repository = repository
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await getattr(self._repository, name)(*args, **kwargs)

        return lambda *args, **kwargs: self._runner.run(call(*args, **kwargs))


class Stage:
    """Where calls are made and disturbed, each on a session of its own."""

    def __init__(
        self,
        way: Way,
        proxy: Proxy,
        engine: Engine,
        new_repository: Callable[[RetryPolicy], Repository],
        disconnect: Callable[[], None],
    ) -> None:
        self.way = way
        self.proxy = proxy
        self.engine = engine
        """Past the proxy."""
        self.new_repository = new_repository
        """Makes a repository that goes through the proxy."""
        self.disconnect = disconnect
        """Closes the connections through the proxy that are in the pool of these repositories."""
        self.repository = new_repository(QUICK)
        self.direct = SQLAlchemySessionRepository(engine)
        self._numbers = itertools.count(1)
        self._undisturbed: dict[str, Undisturbed] = {}

    def begin(self, call: Call, retry: RetryPolicy = QUICK) -> tuple[str, Begun]:
        """Return the id of a session, and the call on it.

        It will be made on a connection that is open, and new: drivers say less where they have prepared a statement.
        """
        session_id = f"session-{next(self._numbers)}"
        if call.exists:
            self.direct.create_session(full_session(session_id))
        self.disconnect()
        self.repository.get_session(session_id)
        return session_id, call.begin(self.new_repository(retry), session_id)

    def undisturbed(self, name: str) -> Undisturbed:
        """Make a call and tell what it did."""
        if name not in self._undisturbed:
            self.begin(CALLS[name])[1].make()  # what is done at the first time only
            session_id, begun = self.begin(CALLS[name])
            before = self.state(session_id)
            self.proxy.forget()
            answer = begun.make()
            self._undisturbed[name] = Undisturbed(before, self.state(session_id), list(self.proxy.messages))
            check_answer(begun, answer, self.direct, session_id)
        return self._undisturbed[name]

    def disturbed(self, name: str, *cuts: Cut, retry: RetryPolicy = QUICK) -> Outcome:
        """Make a call and cut connections; its answer agrees with the database, or this fails."""
        expected = self.undisturbed(name)
        session_id, begun = self.begin(CALLS[name], retry)
        self.proxy.arm(*cuts)
        kind, answer = made(begun)
        made_cuts = len(cuts) - self.proxy.to_come
        self.settle()
        return self.judged(expected, Outcome(kind, answer, session_id, begun, made_cuts))

    def judged(self, expected: Undisturbed, outcome: Outcome) -> Outcome:
        """Return the outcome with whether the call was done, or fail where its answer does not agree with that."""
        state = self.state(outcome.session_id)
        assert state in (expected.before, expected.after), f"neither done nor not done: {state}"
        applied = state == expected.after
        if outcome.kind == "answered":
            assert applied, f"it returned {outcome.answer!r}, and is not there"
            check_answer(outcome.begun, outcome.answer, self.direct, outcome.session_id)
        elif outcome.kind != "unknown":
            assert not applied, f"it raised {outcome.answer!r}, and is there"
        return outcome._replace(applied=applied)

    def beside(self, name: str, other: Callable[[Repository, str], object], *, done: bool) -> Outcome:
        """Cut a call at its commit, done or not; another one writes before the call can look what has become of it."""
        expected = self.undisturbed(name)
        session_id, begun = self.begin(CALLS[name])
        cut = expected.once_committed() if done else expected.before_commit()
        self.proxy.arm(dataclasses.replace(cut, then=lambda: other(self.direct, session_id)))
        kind, answer = made(begun)
        made_cuts = 1 - self.proxy.to_come
        self.settle()
        return Outcome(kind, answer, session_id, begun, made_cuts)

    def state(self, session_id: str) -> State | None:
        """Return what is stored, see `state_of`."""
        return state_of(self.engine, session_id)

    def settle(self) -> None:
        """Let all connections through, and wait until nothing that was cut off goes on within the server."""
        self.proxy.heal()
        wait_for(lambda: self.connections() <= self.proxy.connections + 1, 30, "what was cut off to end")

    def connections(self) -> int:
        """Return how many connections the server has to this database, this one included."""
        with self.engine.connect() as connection:
            return int(connection.execute(text(_COUNT[self.way.server])).scalar_one())


def made(begun: Begun) -> tuple[Kind, Any]:
    """Make the call; return how it ended, and what it returned or raised."""
    try:
        return "answered", begun.make()
    except OutcomeUnknownError as error:
        return "unknown", error
    except StorageError as error:
        return "failed", error
    except Exception as error:  # noqa: BLE001 (the caller looks at it)
        return "refused", error


@contextmanager
def staged(
    storage: Storage, way: Way, *, through: Callable[[URL], URL] = lambda url: url, **options: Any
) -> Iterator[Stage]:
    """Give a stage on a new database; at the end, no connection was kept.

    :param through: returns the URL to which the proxy leads.
    :param options: for `create_engine`, of the repositories that go through the proxy.
    """
    direct, url = (
        make_url(url).set(drivername=driver).update_query_dict(_UNENCRYPTED.get(driver, {}))
        for url in [storage.url_with(way.driver)]
        for driver in (_DIRECT[way.server], way.driver)
    )
    past = create_engine(direct, pool_size=1, max_overflow=0)
    with Proxy(through(url)) as proxy, asyncio.Runner() as runner:
        engine: Any = (create_async_engine if way.asynchronous else create_engine)(proxy.url, **options)

        def new_repository(retry: RetryPolicy) -> Any:
            if not way.asynchronous:
                return SQLAlchemySessionRepository(engine, fast_path=way.fast_path, retry=retry)
            return OnALoop(AsyncSQLAlchemySessionRepository(engine, fast_path=way.fast_path, retry=retry), runner)

        def disconnect() -> None:
            disposing = engine.dispose()
            if way.asynchronous:
                runner.run(disposing)

        try:
            yield Stage(way, proxy, past, new_repository, disconnect)
            assert engine.pool.checkedout() == 0, "a connection was left checked out"
        finally:
            disconnect()
            past.dispose()
            if storage.drop is not None:
                storage.drop(direct)
