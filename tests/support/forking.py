"""Forking processes for `test_fork_safety`: ``python -m tests.support.forking SCENARIO URL``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, orm
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_async_engine

from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    InMemorySessionRepository,
    RetryPolicy,
    Session,
    SessionRepository,
    SQLAlchemySessionRepository,
    StorageError,
    open_repository,
)
from vibeforge_sessions.sql import create_async_engine, create_engine, migrate

CHILDREN = 4
CALLS = 1_000
TIMEOUT_SECONDS = 240
"""Seconds after which a child counts as hanging."""


def fork(body: Callable[[], object], end: Callable[[int], object] = sys.exit) -> int:
    """Run a function in a child process, which then exits normally; return its process id.

    A normal exit runs the finalizers, which must not touch the parent's connections either.
    """
    child = os.fork()
    if child:
        return child
    signal.alarm(TIMEOUT_SECONDS)
    try:
        body()
    except SystemExit:  # a grandchild has exited
        raise
    except BaseException:  # noqa: BLE001 (the child must never continue as its parent)
        traceback.print_exc()
        os._exit(1)
    end(0)
    raise AssertionError("unreachable")


def wait(*children: int) -> None:
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, f"a child ended with {status}"


def use(repository: SessionRepository, name: str, calls: int) -> None:
    """Read a session and append to it alternately, with the id of this process."""
    for number in range(calls // 2):
        got = repository.get_session(name, recent=1)
        assert got is not None
        assert got.session_id == name, f"{name} got {got.session_id}"
        repository.append_log(name, f"{os.getpid()} {number}")


def check(repository: SessionRepository, name: str, calls: dict[int, int]) -> None:
    """Check that each acknowledged line is stored exactly once."""
    session = repository.get_session(name)
    assert session is not None
    lines = [line.split("] ")[1] for line in session.logs]
    expected = [f"{process} {number}" for process, count in calls.items() for number in range(count // 2)]
    assert sorted(lines) == sorted(expected), f"{len(lines)} lines of {name}, not {len(expected)}"


@contextmanager
def writing(repository: SessionRepository) -> Iterator[None]:
    """Write in another thread during the block."""
    repository.create_session(session_id="of-thread")
    stopping, raised = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            while not stopping.is_set():
                use(repository, "of-thread", 2)
        except BaseException as error:  # noqa: BLE001 (the main thread checks it)
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    yield
    stopping.set()
    thread.join()
    assert raised == []


def four_children(url: str) -> None:
    with open_repository(url) as repository:
        names = [f"s-{number}" for number in range(CHILDREN)]
        for name in [*names, "parent"]:
            repository.create_session(session_id=name)
        children = {fork(lambda name=name: use(repository, name, CALLS)): name for name in names}  # type: ignore[misc]
        use(repository, "parent", CALLS)
        wait(*children)
        for child, name in children.items():
            check(repository, name, {child: CALLS})
        check(repository, "parent", {os.getpid(): CALLS})


def fork_with(engine: Engine) -> None:
    """Fork with an idle parent, while another thread writes, in a child, and inside `modify_session`."""
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id="s")
    calls: dict[int, int] = {}

    def fork_to_use(*then: Callable[[], object]) -> None:
        def body() -> None:
            use(repository, "s", 20)
            for each in then:
                each()

        child = fork(body)
        use(repository, "s", 20)
        calls[child] = 20
        calls[os.getpid()] = calls.get(os.getpid(), 0) + 20
        wait(child)

    def check_numbers() -> None:
        session = repository.get_session("s")
        assert session is not None
        assert len(session.logs) == 10 * sum(count // 20 for count in calls.values())

    fork_to_use()
    check_numbers()
    with writing(repository):
        for _ in range(5):
            fork_to_use()
    check_numbers()
    fork_to_use(fork_to_use)
    calls[-1] = 40  # 20 calls of the grandchild, and 20 of its parent
    check_numbers()

    def change(session: Session) -> None:
        fork_to_use()
        session.add_answer("q", 1)

    repository.modify_session("s", change)
    check_numbers()
    got = repository.get_session("s")
    assert got is not None
    assert got.answers == {"q": 1}


def our_engine(url: str) -> None:
    fork_with(create_engine(url))


def callers_engine(url: str) -> None:
    fork_with(sqlalchemy.create_engine(url))


def callers_static_pool(url: str) -> None:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.StaticPool)
    repository = SQLAlchemySessionRepository(engine)
    for name in ("child", "parent"):
        repository.create_session(session_id=name)
    child = fork(lambda: use(repository, "child", 200))
    use(repository, "parent", 200)
    wait(child)
    check(repository, "child", {child: 200})
    check(repository, "parent", {os.getpid(): 200})


def rejected(call: Callable[[], object], text: str) -> None:
    try:
        call()
    except StorageError as error:
        assert text in str(error), error  # noqa: PT017 (not in a test)
    else:
        raise AssertionError("not rejected")


def joined(url: str, make: Callable[[str], Engine] = create_engine, *, known: bool = True) -> None:
    """Fork inside a transaction."""
    engine = make(url)
    repository = SQLAlchemySessionRepository(make(url) if not known else engine)
    owners: tuple[Callable[[Engine], Any], ...] = (Engine.connect, orm.Session)
    for open_owner in owners:
        name = open_owner.__name__
        with contextlib.ExitStack() as stack:
            owner: Connection | orm.Session = stack.enter_context(open_owner(engine))
            before = SQLAlchemySessionRepository(owner)
            if known:
                before.create_session(session_id=name)
            else:
                owner.execute(sqlalchemy.text("SELECT 1"))

            def body(
                owner: Any = owner,
                before: Any = before,
                name: str = name,
                stack: Any = stack,
                open_owner: Any = open_owner,
            ) -> None:
                rejected(before.list_sessions, "opened by another process")
                rejected(SQLAlchemySessionRepository(owner).list_sessions, "opened by another process")
                if not known:
                    # no repository uses this engine: leaving the block would roll the parent's transaction back
                    os._exit(0)
                stack.close()  # the ROLLBACK must not reach the parent's transaction
                if engine.dialect.name == "sqlite":
                    rejected(repository.list_sessions, "end transactions before the fork")
                else:
                    assert repository.get_session(name) is None
                    with open_owner(engine) as own:
                        assert SQLAlchemySessionRepository(own).get_session(name) is None

            wait(fork(body))
            before.create_session(session_id=f"{name}-later")
            owner.commit()
        if known:
            assert repository.get_session(name) is not None
        assert repository.get_session(f"{name}-later") is not None


def joined_with_callers_engine(url: str) -> None:
    joined(url, sqlalchemy.create_engine, known=False)


def first_connection(url: str) -> None:
    """Fork while another thread opens the first connection of an engine."""
    engine = sqlalchemy.create_engine(url)
    connecting = threading.Event()

    initialize = engine.dialect.initialize

    def initialize_slowly(connection: Connection) -> None:
        connecting.set()
        time.sleep(0.3)
        initialize(connection)

    engine.dialect.initialize = initialize_slowly  # type: ignore[method-assign]
    repository = SQLAlchemySessionRepository(engine)
    thread = threading.Thread(target=repository.create_session, kwargs={"session_id": "parent"})
    thread.start()
    connecting.wait()

    def body() -> None:
        repository.create_session(session_id="child")
        assert engine.dialect.default_isolation_level

    wait(fork(body))
    thread.join()
    assert sorted(repository.list_sessions()) == ["child", "parent"]


def migrating(url: str) -> None:
    """Fork while another thread migrates."""
    engine = create_engine(url)
    inside, stopping = threading.Event(), threading.Event()

    def report(_: str) -> None:
        inside.set()
        stopping.wait()

    def migrate_slowly() -> None:
        migrate.downgrade(engine, "base", report=report)
        migrate.upgrade(engine)

    thread = threading.Thread(target=migrate_slowly)
    thread.start()
    inside.wait()
    child = fork(lambda: migrate.upgrade(create_engine("sqlite:///:memory:")))
    wait(child)
    stopping.set()
    thread.join()


async def fork_on_loop(repository: AsyncSQLAlchemySessionRepository[Session], *, first: bool) -> None:
    async def use_async(name: str) -> None:
        for number in range(20):
            got = await repository.get_session(name, recent=1)
            assert got is not None
            assert got.session_id == name
            await repository.append_log(name, f"{os.getpid()} {number}")

    async def check_async(name: str, process: int) -> None:
        lines = [line.split("] ")[1] for line in await repository.list_logs(name)]
        assert lines == [f"{process} {number}" for number in range(20)]

    for name in ("child", "parent", "other"):
        await repository.create_session(session_id=f"{name}-{first}")
    await asyncio.gather(*(repository.get_session(f"other-{first}") for _ in range(4)))  # several connections

    async def in_child() -> None:
        await use_async(f"child-{first}")
        await repository.close()

    child = fork(lambda: asyncio.run(in_child()), os._exit)  # a normal exit would run through the parent's event loop
    await use_async(f"parent-{first}")
    wait(child)
    await check_async(f"child-{first}", child)
    await check_async(f"parent-{first}", os.getpid())


def asynchronous(url: str) -> None:
    async def work() -> None:
        for first, make in enumerate((create_async_engine, create_plain_async_engine)):
            engine = make(url)
            await fork_on_loop(AsyncSQLAlchemySessionRepository(engine), first=not first)
            await engine.dispose()

    asyncio.run(work())


def asynchronous_in_threads(url: str) -> None:
    async def work() -> None:
        engine = create_engine(url)
        repository = AsyncSQLAlchemySessionRepository(engine)
        await fork_on_loop(repository, first=True)
        await repository.close()
        engine.dispose()

    asyncio.run(work())


def memory(_url: str) -> None:
    """Fork while another thread uses sessions in memory, of which a child gets a copy."""
    engine = create_engine("sqlite://")
    migrate.upgrade(engine)
    quick = RetryPolicy(deadline=5)
    for repository in (InMemorySessionRepository(), SQLAlchemySessionRepository(engine, retry=quick)):
        repository.create_session(session_id="s")

        def body(repository: SessionRepository = repository) -> None:
            use(repository, "s", 4)
            check(repository, "s", {os.getpid(): 4})

        with writing(repository):
            for _fork in range(5):
                wait(fork(body))
        check(repository, "s", {})


def sqlite_after_parent(url: str) -> None:
    """Fork and close the parent's last connection: the child must keep its file."""
    engine = create_engine(url)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id="s")
    continue_reader, continue_writer = os.pipe()

    def body() -> None:
        use(repository, "s", 20)
        os.read(continue_reader, 1)
        use(repository, "s", 20)

    child = fork(body)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(repository.list_logs("s")) < 10:
        assert time.monotonic() < deadline
    engine.dispose()  # SQLite would delete the write-ahead log with the last connection of all processes
    with open_repository(url) as other:
        other.list_sessions()
    os.write(continue_writer, b"x")
    wait(child)
    assert len(repository.list_logs("s")) == 20


SCENARIOS: dict[str, Callable[[str], None]] = {
    function.__name__: function
    for function in (
        four_children,
        our_engine,
        callers_engine,
        callers_static_pool,
        joined,
        joined_with_callers_engine,
        first_connection,
        migrating,
        asynchronous,
        asynchronous_in_threads,
        memory,
        sqlite_after_parent,
    )
}

if __name__ == "__main__":
    scenario, url = sys.argv[1:]
    SCENARIOS[scenario](url)
