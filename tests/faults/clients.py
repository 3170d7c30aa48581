"""Clients that use sessions as an application does, at random, and write down what they asked and were told.

``Threads`` are clients of this process, of any repositories; ``Processes`` have one each and can be killed. Each write
of a client carries a text that no other write has, its token: in the row (``active_task_id``), in the documents, in the
messages of its entries. By it the checker knows each write wherever it is read.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Final, Protocol, Self, cast

from tests.faults.history import Journal, Outcome, Told
from tests.servers.machine import wait_for
from vibeforge_sessions import AsyncSessionRepository, Session, SessionRepository, open_repository

PATIENCE: Final = 120.0
"""Seconds for what must come about at some time."""
_PAUSE: Final = 0.02
"""Seconds after a call that was not done: a server that is away is not asked thousands of times."""
_HELD: Final = 0.6
"""How often a client updates the session as it has it, instead of reading it first."""
_AGAIN: Final = 2
"""How often an update is tried again that was not done, or may not have been."""


class Counter(Protocol):
    """How many calls of a client were acknowledged; may be shared memory."""

    value: int


class Count:
    """A counter of this process."""

    value = 0


class Client:
    """One client: a repository, a journal, and some sessions that it shares with other clients."""

    def __init__(
        self, repository: SessionRepository, journal: Journal, session_ids: Sequence[str], counter: Counter
    ) -> None:
        self._repository = repository
        self._journal = journal
        self._session_ids = session_ids
        self._counter = counter
        self._random = random.Random(journal.client)
        self._tokens = 0
        self._held: dict[str, Session] = {}
        self._mine: set[str] = set()
        calls: dict[Callable[[str], Told], int] = {
            self.create: 8,
            self.get: 12,
            self.get_recent: 6,
            self.update: 30,
            self.append_error: 16,
            self.append_log: 14,
            self.list_errors: 4,
            self.list_logs: 4,
            self.find: 3,
            self.list: 2,
            self.delete: 1,
        }
        self._calls, self._weights = list(calls), list(calls.values())

    def act(self) -> None:
        """Make one call."""
        (call,) = self._random.choices(self._calls, self._weights)
        told = call(self._random.choice(self._session_ids))
        if told.outcome in {Outcome.UNKNOWN, Outcome.NOT_DONE}:
            time.sleep(_PAUSE)
        else:
            self._counter.value += 1

    # -- the calls

    def create(self, session_id: str) -> Told:
        session, token = Session(session_id=session_id), self._new_token()
        asked = {"token": token, **self._fill(session, token, hot=True, documents=True)}
        told = self._journal.record(
            "create_session", session_id, asked, lambda: self._repository.create_session(session), lambda _: None
        )
        if told.outcome is Outcome.DONE:
            self._mine.add(session_id)
            self._held[session_id] = session
        return told

    def get(self, session_id: str, recent: int | None = None) -> Told:
        told = self._journal.record(
            "get_session",
            session_id,
            {} if recent is None else {"recent": recent},
            lambda: self._repository.get_session(session_id, recent=recent),
            lambda found: None if found is None else _described(found),
        )
        if told.outcome is Outcome.DONE and told.result is not None:
            self._held[session_id] = told.result
        else:
            self._held.pop(session_id, None)
        return told

    def get_recent(self, session_id: str) -> Told:
        return self.get(session_id, recent=self._random.choice([0, 1, 5, 20]))

    def update(self, session_id: str) -> Told:
        """Change the session as it was read, by us or just now, and store it."""
        if session_id not in self._held or self._random.random() > _HELD:
            told = self.get(session_id, recent=self._random.choice([None, 0, 3]))
            if told.result is None:
                return told
        session, token = self._held[session_id], self._new_token()
        hot, documents = self._random.choice([(True, True), (True, False), (False, True), (False, False)])
        asked = {"token": token, "base": _base(session)}
        asked |= self._fill(session, token, hot=hot, documents=documents, least=0 if hot or documents else 1)
        before = len(session.error_history) - len(asked["errors"])

        def store() -> Told:
            return self._journal.record(
                "update_session",
                session_id,
                asked,
                lambda: self._repository.update_session(session),
                lambda _: {
                    "version": session.version,
                    "positions": [entry.position for entry in session.error_history[before:]],
                },
            )

        told = store()
        for _ in range(_AGAIN):
            if told.outcome in {Outcome.NOT_DONE, Outcome.UNKNOWN}:
                time.sleep(_PAUSE)  # and once more: it is stale if it was done
                told = store()
        if told.outcome is not Outcome.DONE:
            del self._held[session_id]
        return told

    def append_error(self, session_id: str) -> Told:
        token = self._new_token()
        return self._journal.record(
            "append_error",
            session_id,
            {"token": token},
            lambda: self._repository.append_error(session_id, "task", token),
            lambda entry: entry.position,
        )

    def append_log(self, session_id: str) -> Told:
        token = self._new_token()
        return self._journal.record(
            "append_log", session_id, {"token": token}, lambda: self._repository.append_log(session_id, token), _nothing
        )

    def list_errors(self, session_id: str) -> Told:
        after, limit = self._random.randrange(30), self._random.choice([1, 10, 1000])
        return self._journal.record(
            "list_errors",
            session_id,
            {"after": after, "limit": limit},
            lambda: self._repository.list_errors(session_id, after=after, limit=limit),
            lambda found: [[entry.position, entry.error_message] for entry in found],
        )

    def list_logs(self, session_id: str) -> Told:
        after, limit = self._random.randrange(30), self._random.choice([1, 10, 1000])
        return self._journal.record(
            "list_logs",
            session_id,
            {"after": after, "limit": limit},
            lambda: self._repository.list_logs(session_id, after=after, limit=limit),
            lambda found: [[position, _token_of(line)] for position, line in enumerate(found, after + 1)],
        )

    def find(self, _: str) -> Told:
        return self._journal.record(
            "find_sessions",
            "",
            {"ids": list(self._session_ids)},
            lambda: self._repository.find_sessions(limit=1000),
            lambda page: {
                each.session_id: [each.version, each.active_task_id, each.error_count, each.log_count]
                for each in page.items
            },
        )

    def list(self, _: str) -> Told:
        return self._journal.record(
            "list_sessions",
            "",
            {"ids": [*self._session_ids]},
            self._repository.list_sessions,
            lambda found: dict.fromkeys(found, True),
        )

    def delete(self, session_id: str) -> Told:
        """Delete a session that we have created ourselves.

        Whether its create was done is beyond doubt then: to repeat one that may have been done, as a repository does,
        is right only as long as nobody deletes what nobody was told of.
        """
        if not self._mine:
            return self.get(session_id)
        session_id = self._random.choice(sorted(self._mine))
        told = self._journal.record(
            "delete_session", session_id, {}, lambda: self._repository.delete_session(session_id), bool
        )
        if told.outcome is not Outcome.NOT_DONE:
            self._mine.discard(session_id)
            self._held.pop(session_id, None)
        return told

    # -- inside

    def _new_token(self) -> str:
        self._tokens += 1
        return f"{self._journal.client}.{self._tokens}"

    def _fill(self, session: Session, token: str, *, hot: bool, documents: bool, least: int = 0) -> dict[str, Any]:
        """Change a session; return who has written what of it then."""
        if hot:
            session.active_task_id = token
            session.current_question_index = _number(token)
        if documents:
            session.concept = {"write": token}
            session.add_answer("write", token)
        errors = [f"{token}.e{number}" for number in range(self._random.randint(least, 2))]
        logs = [f"{token}.l{number}" for number in range(self._random.randint(0, 2))]
        for text in errors:
            session.add_error("task", text)
        for text in logs:
            session.add_log(text)
        _, row, written = _base(session)
        return {"hot": row, "documents": written, "errors": errors, "logs": logs}


def _nothing(_: object) -> None:
    return None


def _number(token: str) -> int:
    return int(token.rpartition(".")[2])


def _token_of(line: str) -> str:
    return line.partition("] ")[2]


def _base(session: Session) -> list[Any]:
    """Return a session's version, and who wrote its row and its documents: nobody, if it was more than one."""
    row, concept, answer = session.active_task_id, (session.concept or {}).get("write"), session.answers.get("write")
    if row is None or _number(row) != session.current_question_index:
        row = f"{row} and {session.current_question_index}"
    return [session.version, row, concept if concept == answer else f"{concept} and {answer}"]


def _described(session: Session) -> dict[str, Any]:
    logs = enumerate(session.logs, session.omitted_logs + 1)
    return {
        "base": _base(session),
        "errors": [[entry.position, entry.error_message] for entry in session.error_history],
        "logs": [[position, _token_of(line)] for position, line in logs],
        "omitted_errors": session.omitted_errors,
        "omitted_logs": session.omitted_logs,
    }


class OnLoop:
    """An asynchronous repository for threads: each of its calls is a task on an event loop of its own."""

    def __init__(self, new_repository: Callable[[], AsyncSessionRepository]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._repository = new_repository()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._repository, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(method(*args, **kwargs), self._loop).result()

        return call

    def run(self, awaited: Any) -> None:
        """Wait for something on the same loop."""
        asyncio.run_coroutine_threadsafe(awaited, self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Clients:
    """Several clients at work; what they have been told so far is counted."""

    def __init__(self) -> None:
        self._counters: list[Counter] = []

    @property
    def acknowledged(self) -> int:
        return sum(counter.value for counter in self._counters)

    def wait_for(self, more: int) -> None:
        """Return when so many more calls have been answered."""
        until = self.acknowledged + more
        wait_for(lambda: self.acknowledged >= until or not self.are_working(), PATIENCE, f"{more} more answers")
        assert self.are_working(), "a client has given up"

    def are_working(self) -> bool:
        raise NotImplementedError


class Threads(Clients):
    """Clients in threads of this process, one of each repository given."""

    def __init__(self, repositories: Sequence[SessionRepository], session_ids: Sequence[str], folder: Path) -> None:
        super().__init__()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        for number, repository in enumerate(repositories):
            journal, counter = Journal(folder, f"c{number}"), Count()
            client = Client(repository, journal, session_ids, counter)
            self._counters.append(counter)
            self._threads.append(threading.Thread(target=self._work, args=(client, journal), daemon=True))

    def _work(self, client: Client, journal: Journal) -> None:
        while not self._stopping.is_set():
            client.act()
        journal.close()

    def are_working(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a call never ends"


@functools.cache
def _context() -> ForkServerContext:
    """Return what starts processes that have everything imported, and nothing of this process's threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "vibeforge_sessions.sql"])
    return context


class Processes(Clients):
    """Clients in processes of their own, with a repository each; any of them can be killed, and another one started."""

    def __init__(self, url: str, session_ids: Sequence[str], folder: Path, count: int) -> None:
        super().__init__()
        self._arguments = (url, session_ids, folder)
        self._stopping = _context().Event()
        self._count = count
        self._running: list[ForkServerProcess] = []

    def are_working(self) -> bool:
        return all(process.is_alive() for process in self._running)

    def start(self) -> None:
        """Start one more."""
        counter = RawValue("q", 0)  # without a lock, which one that is killed would keep
        name = f"p{len(self._counters)}"
        self._counters.append(cast(Counter, counter))
        process = _context().Process(target=_work, args=(*self._arguments, name, counter, self._stopping), daemon=True)
        process.start()
        self._running.append(process)

    def kill(self, index: int) -> None:
        """Kill one of those that run, in the middle of whatever it does."""
        process = self._running.pop(index)
        process.kill()
        process.join()

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for process in self._running:
            process.join(PATIENCE)
            assert process.exitcode == 0, "a client has failed, or a call never ends"


def _work(
    url: str, session_ids: Sequence[str], folder: Path, name: str, counter: Counter, stopping: threading.Event
) -> None:
    journal = Journal(folder, name)
    with open_repository(url) as repository:
        client = Client(repository, journal, session_ids, counter)
        while not stopping.is_set():
            client.act()
    journal.close()


@contextmanager
def last_reads(repository: SessionRepository, session_ids: Sequence[str], folder: Path) -> Iterator[None]:
    """Read every session once more at the end of the block, when nobody writes any more."""
    yield
    journal = Journal(folder, "last")
    client = Client(repository, journal, session_ids, Count())
    for session_id in session_ids:
        for call in (client.get, client.list_errors, client.list_logs):
            wait_for(lambda: call(session_id).outcome is not Outcome.NOT_DONE, PATIENCE, "the database to answer")  # noqa: B023
    client.find("")
    journal.close()
