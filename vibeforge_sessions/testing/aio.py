"""Contract of `AsyncSessionRepository`: the synchronous tests, run on an event loop, and tests of concurrent tasks."""

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
from vibeforge_sessions.repository.delegating import DelegatingSessionRepository
from vibeforge_sessions.testing.base import SESSION_ID, NewRepository, RepositoryTests, stored

TASKS = 200

T = TypeVar("T")


class Run(Protocol):
    """Function that runs a coroutine on the event loop of a test, from another thread, and returns its result."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


class NewAsyncRepository(Protocol):
    """Function that creates an empty repository with its own storage; it is called within the event loop."""

    def __call__(
        self, *, session_type: type[Session] = ...
    ) -> AsyncSessionRepository | Awaitable[AsyncSessionRepository]: ...


class BlockingRepositoryAdapter(DelegatingSessionRepository[S]):
    """Adapter that implements `SessionRepository` with an asynchronous repository on another thread's event loop."""

    def __init__(self, repository: AsyncSessionRepository[S], run: Run) -> None:
        self.asynchronous = repository
        self.run = run

    @property
    def repository(self) -> Any:
        """The asynchronous repository with methods that block until their result is available."""
        return _BlockingCalls(self.asynchronous, self.run)

    def modify_session(self, session_id: str, change: Callable[[S], object], *, attempts: int = 10) -> S:
        async def change_in_thread(session: S) -> None:  # `change` may call this adapter, which waits for the loop
            await asyncio.to_thread(change, session)

        return self.run(self.asynchronous.modify_session(session_id, change_in_thread, attempts=attempts))


class _BlockingCalls:
    def __init__(self, repository: AsyncSessionRepository[Any], run: Run) -> None:
        self._repository = repository
        self._run = run

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._repository, name)
        return lambda *args, **kwargs: self._run(call(*args, **kwargs))


@contextlib.contextmanager
def event_loop() -> Iterator[Run]:
    """Run an event loop in a thread, and yield a function that runs a coroutine on it."""
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
    """Tests of concurrent tasks; the class also implements ``new_repository`` with ``new_async_repository``."""

    @pytest.fixture
    def run(self) -> Iterator[Run]:
        with event_loop() as run:
            yield run

    @pytest.fixture
    def new_async_repository(self) -> NewAsyncRepository:
        raise NotImplementedError("a subclass of the asynchronous contract must define a fixture new_async_repository")

    @pytest.fixture
    def new_repository(self, new_async_repository: NewAsyncRepository, run: Run) -> Iterator[NewRepository]:
        made: list[SessionRepository] = []

        async def make(session_type: type[Session] | None) -> AsyncSessionRepository:
            new = new_async_repository(**({} if session_type is None else {"session_type": session_type}))
            return await new if inspect.isawaitable(new) else new

        def new_repository(*, session_type: type[Session] | None = None) -> SessionRepository:
            made.append(BlockingRepositoryAdapter(run(make(session_type)), run))
            return made[-1]

        yield new_repository
        for repository in made:
            repository.close()

    def test_many_tasks_share_one_repository(self, repository: SessionRepository, run: Run) -> None:
        assert isinstance(repository, BlockingRepositoryAdapter)
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

        async def run_all() -> None:
            await asyncio.gather(*(shared.create_session(session_id=session_id) for session_id in sessions))
            await asyncio.gather(*map(work, range(TASKS)))

        run(run_all())
        found = [stored(repository, session_id) for session_id in sessions]
        tasks = Counter(entry.task_id for session in found for entry in session.error_history)
        assert tasks == {f"w{number}": 1 for number in range(1, TASKS, 2)}
        assert sum(len(set(session.logs)) for session in found) == TASKS // 2 - TASKS // 100
        assert sum(len(session.answers) for session in found) == TASKS // 100
        for session in found:
            assert [entry.position for entry in session.error_history] == list(range(1, len(session.error_history) + 1))

    def test_modify_awaits_coroutine_function(self, repository: SessionRepository, run: Run) -> None:
        assert isinstance(repository, BlockingRepositoryAdapter)
        shared: AsyncSessionRepository = repository.asynchronous

        async def change(session: Session) -> None:
            await asyncio.sleep(0)
            session.add_answer("waited", answer=True)

        async def work() -> Session:
            async with shared:
                await shared.create_session(session_id=SESSION_ID)
                return await shared.modify_session(SESSION_ID, change)

        assert run(work()).answers == {"waited": True}
        assert stored(repository).answers == {"waited": True}  # a closed repository opens again

    def test_cancelled_tasks_lose_no_acknowledged_append(self, repository: SessionRepository, run: Run) -> None:
        assert isinstance(repository, BlockingRepositoryAdapter)
        shared: AsyncSessionRepository = repository.asynchronous

        async def work() -> None:
            await shared.create_session(session_id=SESSION_ID)
            tasks = [asyncio.ensure_future(shared.append_log(SESSION_ID, f"{number}")) for number in range(100)]
            await asyncio.sleep(0)
            for task in tasks[1::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            acknowledged = {line for line in done if isinstance(line, str)}
            assert len(acknowledged) >= len(tasks) // 2
            assert acknowledged <= set(await shared.list_logs(SESSION_ID, limit=1_000))

        run(work())
