"""The contract of `AsyncSessionRepository`: the synchronous one, asked through an event loop, and what tasks add."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import pytest

from vibeforge_sessions import AsyncSessionRepository, Session, SessionRepository
from vibeforge_sessions.model.session import S
from vibeforge_sessions.repository.delegating import ForwardingSessionRepository
from vibeforge_sessions.testing.base import SESSION_ID, NewRepository, RepositoryTests, stored

TASKS = 1_000

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine on the event loop of a test, from any other thread, and returns its result."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


class NewAsyncRepository(Protocol):
    """Makes a repository over storage of its own, empty; is called within the event loop."""

    def __call__(
        self, *, session_type: type[Session] = ...
    ) -> AsyncSessionRepository | Awaitable[AsyncSessionRepository]: ...


class FromOtherThreads(ForwardingSessionRepository[S]):
    """An asynchronous repository, for callers who stand outside its event loop."""

    def __init__(self, repository: AsyncSessionRepository[S], run: Run) -> None:
        self.asynchronous = repository
        self.run = run

    @property
    def repository(self) -> Any:
        """The asynchronous one, whose calls return when they have been waited for."""
        return _WaitedFor(self.asynchronous, self.run)

    def modify_session(self, session_id: str, change: Callable[[S], object], *, attempts: int = 10) -> S:
        async def elsewhere(session: S) -> None:  # a change may call the repository, and so wait for the loop
            await asyncio.to_thread(change, session)

        return self.run(self.asynchronous.modify_session(session_id, elsewhere, attempts=attempts))


class _WaitedFor:
    def __init__(self, repository: AsyncSessionRepository[Any], run: Run) -> None:
        self._repository = repository
        self._run = run

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._repository, name)
        return lambda *args, **kwargs: self._run(call(*args, **kwargs))


@contextlib.contextmanager
def event_loop() -> Iterator[Run]:
    """Give an event loop that runs in a thread, as a function that runs a coroutine there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="event loop of the contract")
    thread.start()

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        yield run
        run(loop.shutdown_default_executor())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class AsyncTests(RepositoryTests):
    """Turns the asynchronous fixture into the synchronous one, and asks what only tasks can."""

    @pytest.fixture
    def run(self) -> Iterator[Run]:
        with event_loop() as run:
            yield run

    @pytest.fixture
    def new_async_repository(self) -> NewAsyncRepository:
        raise NotImplementedError("a subclass of the asynchronous contract has a fixture new_async_repository")

    @pytest.fixture
    def new_repository(self, new_async_repository: NewAsyncRepository, run: Run) -> Iterator[NewRepository]:
        made: list[SessionRepository] = []

        async def make(session_type: type[Session] | None) -> AsyncSessionRepository:
            new = new_async_repository(**({} if session_type is None else {"session_type": session_type}))
            return await new if inspect.isawaitable(new) else new

        def new_repository(*, session_type: type[Session] | None = None) -> SessionRepository:
            made.append(FromOtherThreads(run(make(session_type)), run))
            return made[-1]

        yield new_repository
        for repository in made:
            repository.close()

    def test_a_thousand_tasks_on_one_repository(self, repository: SessionRepository, run: Run) -> None:
        assert isinstance(repository, FromOtherThreads)
        shared: AsyncSessionRepository = repository.asynchronous
        sessions = [f"s{number}" for number in range(10)]

        async def work(number: int) -> None:
            session_id = sessions[number % len(sessions)]
            if number % 2:
                await shared.append_error(session_id, f"w{number}", "m")
            elif number % 100:
                await shared.append_log(session_id, f"w{number}")
            else:
                answer = functools.partial(Session.add_answer, question_id=f"w{number}", answer=True)
                await shared.modify_session(session_id, answer, attempts=1_000)

        async def everybody() -> None:
            await asyncio.gather(*(shared.create_session(session_id=session_id) for session_id in sessions))
            await asyncio.gather(*map(work, range(TASKS)))

        run(everybody())
        found = [stored(repository, session_id) for session_id in sessions]
        tasks = Counter(entry.task_id for session in found for entry in session.error_history)
        assert tasks == {f"w{number}": 1 for number in range(1, TASKS, 2)}
        assert sum(len(set(session.logs)) for session in found) == TASKS // 2 - TASKS // 100
        assert sum(len(session.answers) for session in found) == TASKS // 100
        for session in found:
            assert [entry.position for entry in session.error_history] == list(range(1, len(session.error_history) + 1))

    def test_a_change_may_wait(self, repository: SessionRepository, run: Run) -> None:
        assert isinstance(repository, FromOtherThreads)
        shared: AsyncSessionRepository = repository.asynchronous

        async def change(session: Session) -> None:
            await asyncio.sleep(0)
            session.add_answer("waited", answer=True)

        async def work() -> Session:
            async with shared:
                await shared.create_session(session_id=SESSION_ID)
                return await shared.modify_session(SESSION_ID, change)

        assert run(work()).answers == {"waited": True}
        assert stored(repository).answers == {"waited": True}  # what was closed opens again

    def test_a_task_that_is_cancelled_before_it_begins(self, repository: SessionRepository, run: Run) -> None:
        assert isinstance(repository, FromOtherThreads)
        shared: AsyncSessionRepository = repository.asynchronous

        async def work() -> None:
            await shared.create_session(session_id=SESSION_ID)
            tasks = [asyncio.ensure_future(shared.append_log(SESSION_ID, f"{number}")) for number in range(100)]
            await asyncio.sleep(0)
            for task in tasks[1::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            kept = {line for line in done if isinstance(line, str)}
            assert len(kept) >= len(tasks) // 2
            assert kept <= set(await shared.list_logs(SESSION_ID, limit=1_000))

        run(work())
