"""A database, a repository that reaches it through a proxy, and a repository with a direct connection."""

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


class Driver(NamedTuple):
    """A driver, and how a repository uses it."""

    server: str
    """Name of the fixture that returns the `Storage` of its server."""
    drivername: str
    fast_path: bool = True
    asynchronous: bool = False


DRIVERS: Final = {
    "psycopg": Driver("postgresql", "postgresql+psycopg"),
    "psycopg through SQLAlchemy": Driver("postgresql", "postgresql+psycopg", fast_path=False),
    "pymysql": Driver("mariadb", "mariadb+pymysql"),
    "pymysql through SQLAlchemy": Driver("mariadb", "mariadb+pymysql", fast_path=False),
}
ASYNC_DRIVERS: Final = {
    "async psycopg": Driver("postgresql", "postgresql+psycopg", asynchronous=True),
    "asyncpg": Driver("postgresql", "postgresql+asyncpg", asynchronous=True),
    "asyncmy": Driver("mariadb", "mariadb+asyncmy", asynchronous=True),
}
_UNENCRYPTED: Final = {
    "postgresql+psycopg": {"sslmode": "disable"},
    "postgresql+asyncpg": {"ssl": "disable"},
    "mariadb+pymysql": {"ssl_disabled": "true"},  # preparing for encryption would also take 27 ms per connection
}
"""Query options that disable encryption, because a proxy cannot read encrypted messages."""
_DIRECT: Final = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
_COUNT: Final = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()",
}
_QUICK_DRIVERS: Final = ("psycopg", "pymysql")
ALL_DRIVERS: Final = cases([*DRIVERS, *ASYNC_DRIVERS], _QUICK_DRIVERS)
"""Parameters of a fixture. One driver per database is quick, because drivers and execution paths share their code."""
QUICK: Final = RetryPolicy(first_delay=0.001)


class Undisturbed(NamedTuple):
    """The effect and the messages of a call that is not disturbed."""

    before: State | None
    after: State | None
    messages: list[Seen]

    def count(self, side: Side) -> int:
        return sum(seen.side == side for seen in self.messages)

    def size(self, side: Side) -> int:
        return sum(seen.size for seen in self.messages if seen.side == side)

    def number(self, side: Side, name: str) -> int:
        """Return the number of the last message of a side whose name has this prefix; 0 if there is none."""
        names = [seen.name for seen in self.messages if seen.side == side]
        return max((number for number, each in enumerate(names, 1) if each.startswith(name)), default=0)

    @property
    def commit(self) -> int:
        """The number of the client's message that commits: COMMIT, or the Sync of a single statement."""
        return max(self.number("client", name) for name in ("COMMIT", "Query COMMIT", "Sync"))

    @property
    def write(self) -> int:
        """The number of the client's message that begins the write; the server has no part of the write before it.

        A driver may have asked the server to prepare the statement before.
        """
        names = [seen.name for seen in self.messages if seen.side == "client"][: self.commit]
        if names[-1] != "Sync":
            return 1
        return max((number for number, name in enumerate(names[:-1], 1) if name in {"Sync", "Flush"}), default=0) + 1

    def before_commit(self) -> Cut:
        """Return the cut after which the server does not commit; the client cannot know that."""
        return Cut("client", self.commit, how="close")

    def after_commit(self) -> Cut:
        """Return the cut after which the server has committed; the client cannot know that."""
        clients = servers = 0
        for seen in self.messages:
            clients += seen.side == "client"
            servers += seen.side == "server"
            if clients >= self.commit and seen.side == "server" and seen.name in {"OK", "ReadyForQuery"}:
                return Cut("server", servers, how="close")
        raise AssertionError("the call did not commit")


Kind = Literal["answered", "failed", "unknown", "rejected"]


class Outcome(NamedTuple):
    """How a call ended, and whether it was applied."""

    kind: Kind
    """answered; failed: StorageError; unknown: OutcomeUnknownError; rejected: any other exception."""
    answer: Any
    """The returned value or the raised exception."""
    session_id: str
    begun: Begun
    cuts: int
    """Number of cuts during the call."""
    applied: bool | None = None


class EventLoopRepository:
    """An asynchronous repository for blocking callers: each call runs the event loop until it has ended."""

    def __init__(self, repository: AsyncSQLAlchemySessionRepository, runner: asyncio.Runner) -> None:
        self._repository = repository
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await getattr(self._repository, name)(*args, **kwargs)

        return lambda *args, **kwargs: self._runner.run(call(*args, **kwargs))


class Stage:
    """The place where calls are made and disturbed, each on its own session."""

    def __init__(
        self,
        driver: Driver,
        proxy: Proxy,
        engine: Engine,
        new_repository: Callable[[RetryPolicy], Repository],
        disconnect: Callable[[], None],
    ) -> None:
        self.driver = driver
        self.proxy = proxy
        self.engine = engine  # connects directly, without the proxy
        self.new_repository = new_repository  # creates a repository that connects through the proxy
        self.disconnect = disconnect  # closes the pooled connections of these repositories
        self.repository = new_repository(QUICK)
        self.direct = SQLAlchemySessionRepository(engine)
        self._numbers = itertools.count(1)
        self._undisturbed: dict[str, Undisturbed] = {}

    def begin(self, call: Call, retry: RetryPolicy = QUICK) -> tuple[str, Begun]:
        """Return the id of a session, and a prepared call on it.

        The call uses a new open connection, because drivers send fewer messages after they have prepared a statement.
        """
        session_id = f"session-{next(self._numbers)}"
        if call.exists:
            self.direct.create_session(full_session(session_id))
        self.disconnect()
        self.repository.get_session(session_id)
        return session_id, call.begin(self.new_repository(retry), session_id)

    def undisturbed(self, name: str) -> Undisturbed:
        """Make a call without cuts and return its effect and its messages."""
        if name not in self._undisturbed:
            self.begin(CALLS[name])[1].make()  # statements of the first call only
            session_id, begun = self.begin(CALLS[name])
            before = self.state(session_id)
            self.proxy.reset()
            answer = begun.make()
            self._undisturbed[name] = Undisturbed(before, self.state(session_id), list(self.proxy.messages))
            check_answer(begun, answer, self.direct, session_id)
        return self._undisturbed[name]

    def disturbed(self, name: str, *cuts: Cut, retry: RetryPolicy = QUICK) -> Outcome:
        """Make a call with these cuts, and check that its answer agrees with the database."""
        expected = self.undisturbed(name)
        session_id, begun = self.begin(CALLS[name], retry)
        self.proxy.arm(*cuts)
        kind, answer = outcome_of(begun)
        cuts_made = len(cuts) - self.proxy.pending_cuts
        self.settle()
        return self.verified(expected, Outcome(kind, answer, session_id, begun, cuts_made))

    def verified(self, expected: Undisturbed, outcome: Outcome) -> Outcome:
        """Return the outcome with `applied` set; fail if the answer does not agree with the database."""
        state = self.state(outcome.session_id)
        assert state in (expected.before, expected.after), f"the call is neither applied nor not applied: {state}"
        applied = state == expected.after
        if outcome.kind == "answered":
            assert applied, f"the call returned {outcome.answer!r}, but is not stored"
            check_answer(outcome.begun, outcome.answer, self.direct, outcome.session_id)
        elif outcome.kind != "unknown":
            assert not applied, f"the call raised {outcome.answer!r}, but is stored"
        return outcome._replace(applied=applied)

    def with_other_writer(self, name: str, other: Callable[[Repository, str], object], *, done: bool) -> Outcome:
        """Cut a call before or after its commit; another writer writes before the outcome is resolved."""
        expected = self.undisturbed(name)
        session_id, begun = self.begin(CALLS[name])
        cut = expected.after_commit() if done else expected.before_commit()
        self.proxy.arm(dataclasses.replace(cut, then=lambda: other(self.direct, session_id)))
        kind, answer = outcome_of(begun)
        cuts_made = 1 - self.proxy.pending_cuts
        self.settle()
        return Outcome(kind, answer, session_id, begun, cuts_made)

    def state(self, session_id: str) -> State | None:
        """Return the stored session as `state_of` describes."""
        return state_of(self.engine, session_id)

    def settle(self) -> None:
        """Restore all connections, and wait until the server has ended every connection that was cut."""
        self.proxy.heal()
        wait_for(lambda: self.connections() <= self.proxy.connections + 1, 30, "the server to end the cut connections")

    def connections(self) -> int:
        """Return the number of the server's connections to this database, including the one that counts."""
        with self.engine.connect() as connection:
            return int(connection.execute(text(_COUNT[self.driver.server])).scalar_one())


def outcome_of(begun: Begun) -> tuple[Kind, Any]:
    """Make a call; return how it ended, and its return value or exception."""
    try:
        return "answered", begun.make()
    except OutcomeUnknownError as error:
        return "unknown", error
    except StorageError as error:
        return "failed", error
    except Exception as error:  # noqa: BLE001 (the caller checks it)
        return "rejected", error


@contextmanager
def staged(
    storage: Storage, driver: Driver, *, through: Callable[[URL], URL] = lambda url: url, **options: Any
) -> Iterator[Stage]:
    """Provide a stage on a new database; check at the end that no connection is still checked out.

    :param through: returns the URL to which the proxy forwards.
    :param options: options of `create_engine`, for repositories that connect through the proxy.
    """
    direct, url = (
        make_url(url).set(drivername=drivername).update_query_dict(_UNENCRYPTED.get(drivername, {}))
        for url in [storage.url_with(driver.drivername)]
        for drivername in (_DIRECT[driver.server], driver.drivername)
    )
    direct_engine = create_engine(direct, pool_size=1, max_overflow=0)
    with Proxy(through(url)) as proxy, asyncio.Runner() as runner:
        engine: Any = (create_async_engine if driver.asynchronous else create_engine)(proxy.url, **options)

        def new_repository(retry: RetryPolicy) -> Any:
            if not driver.asynchronous:
                return SQLAlchemySessionRepository(engine, fast_path=driver.fast_path, retry=retry)
            return EventLoopRepository(
                AsyncSQLAlchemySessionRepository(engine, fast_path=driver.fast_path, retry=retry), runner
            )

        def disconnect() -> None:
            disposing = engine.dispose()
            if driver.asynchronous:
                runner.run(disposing)

        try:
            yield Stage(driver, proxy, direct_engine, new_repository, disconnect)
            assert engine.pool.checkedout() == 0, "a connection was left checked out"
        finally:
            disconnect()
            direct_engine.dispose()
            if storage.drop is not None:
                storage.drop(direct)
