"""The load of the soak: callers that share a steady population of sessions, and call at a rate."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import Final

from vibeforge_sessions import Session, SessionNotFoundError, SessionRepository, StaleSessionError

POPULATION: Final = 200
"""Where there are more sessions, the oldest is deleted."""


class Load:
    """Callers that share a population of sessions, and call at a rate."""

    def __init__(self, those: Sequence[SessionRepository], rate: float) -> None:
        self.counted: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._population: deque[str] = deque()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(repository, rate / len(those), number), daemon=True)
            for number, repository in enumerate(those)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def fill(self, repository: SessionRepository) -> None:
        """Begin with as many sessions as there will be."""
        for _ in range(POPULATION):
            self._population.append(repository.create_session().session_id)

    def _work(self, repository: SessionRepository, rate: float, seed: int) -> None:
        caller = Caller(repository, Random(seed), self._population)
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / rate, time.monotonic() - 1)  # what was missed for longer than a second is left out
            try:
                name = caller.call()
            except Exception as error:  # noqa: BLE001 (it is what the verdict names)
                with self._lock:
                    self.failed[f"{type(error).__name__}: {error}"] += 1
            else:
                with self._lock:
                    self.counted[name] += 1


class Caller:
    """Makes one call after another, each on a session that others may be using, too."""

    def __init__(self, repository: SessionRepository, random: Random, population: deque[str]) -> None:
        self._repository = repository
        self._random = random
        self._population = population
        weights = {
            self._create: 6,
            self._get: 20,
            self._get_recent: 20,
            self._update: 20,
            self._append_error: 12,
            self._append_log: 12,
            self._list: 6,
            self._find: 4,
        }
        self._calls, self._weights = list(weights), list(weights.values())

    def call(self) -> str:
        """Make a call; return its name, or that it was refused."""
        if len(self._population) > POPULATION:
            with contextlib.suppress(IndexError):  # another caller has taken the last one
                self._repository.delete_session(self._population.popleft())
                return "delete"
        (call,) = self._random.choices(self._calls, self._weights)
        if not self._population:
            call = self._create
        session_id = self._random.choice(self._population) if self._population else ""
        try:
            call(session_id)
        except (StaleSessionError, SessionNotFoundError) as error:  # another caller was first
            return type(error).__name__
        return call.__name__.strip("_")

    def _text(self, size: int) -> str:
        return self._random.randbytes(size // 2).hex()

    def _create(self, _: str) -> None:
        session = Session(build_spec={"text": self._text(3000)}, concept={"text": self._text(1000)})
        session.add_log("created")
        self._population.append(self._repository.create_session(session).session_id)

    def _get(self, session_id: str) -> None:
        self._repository.get_session(session_id)

    def _get_recent(self, session_id: str) -> None:
        self._repository.get_session(session_id, recent=5)

    def _update(self, session_id: str) -> None:
        session = self._repository.get_session(session_id, recent=0)
        if session is None:
            raise SessionNotFoundError(session_id)
        session.add_answer(f"question {self._random.randrange(20)}", self._text(100))
        if self._random.random() < 0.3:
            session.concept = {"text": self._text(1000)}
        session.add_log("updated")
        self._repository.update_session(session)

    def _append_error(self, session_id: str) -> None:
        self._repository.append_error(session_id, "task", self._text(300))

    def _append_log(self, session_id: str) -> None:
        self._repository.append_log(session_id, self._text(80))

    def _list(self, session_id: str) -> None:
        self._repository.list_errors(session_id, limit=20)
        self._repository.list_logs(session_id, limit=20)

    def _find(self, _: str) -> None:
        page = self._repository.find_sessions(order="-updated_at", limit=20)
        if page.next_cursor is not None:
            self._repository.find_sessions(order="-updated_at", limit=20, cursor=page.next_cursor)
