"""Process that writes sessions until it is stopped, with a journal: ``python -m tests.support.faults.writer FILE``.

It tries nothing again itself: whatever goes wrong with the database is the repository's to put right, and what it
answers in the end is written down. `ledger` compares the journals with what is stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    OutcomeUnknownError,
    RetryPolicy,
    Session,
    SessionRepository,
    SessionRepositoryError,
    SQLAlchemySessionRepository,
    StorageError,
)
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.testing import aio

# the code of an older revision, with which this program runs as well, has the adapter under its former name
blocking_adapter: Any = getattr(aio, "BlockingRepositoryAdapter", None) or aio.FromOtherThreads  # type: ignore[attr-defined]

OK: Final = "ok"
FAILED: Final = "StorageError"
UNKNOWN: Final = "OutcomeUnknownError"
_MANY: Final = 100_000
"""Attempts of `modify_session`: how often others come first says nothing about faults."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a process is told."""

    name: str
    url: str
    journal: str
    histories: list[str]
    """Sessions that all writers append to."""
    states: list[str]
    """Sessions that all writers update."""
    asynchronous: bool = False
    clients: int = 4
    pause: float = 0.0
    """Seconds between two calls of a client, on average."""
    deadline: float = 30.0
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options for `create_engine`."""


class Journal:
    """One line of JSON for each call that has ended, whole even where several threads write."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, **fields: Any) -> None:
        """Add a line."""
        os.write(self._file, json.dumps(fields).encode() + b"\n")


class Client:
    """Makes one call after the other, each of which bears a token of its own."""

    def __init__(self, name: str, repository: SessionRepository, settings: Settings, journal: Journal) -> None:
        self.name = name
        self._repository = repository
        self._settings = settings
        self._journal = journal
        self._random = random.Random(name)
        self._numbers = itertools.count(1)
        self._own: dict[str, Session] = {}
        self._calls: dict[Callable[[str], None], int] = {
            self.append_error: 30,
            self.append_log: 20,
            self.modify: 20,
            self.update: 15,
            self.create: 10,
            self.delete: 5,
        }

    def run(self, stop: threading.Event) -> None:
        """Call until told to stop."""
        while not stop.is_set():
            (call,) = self._random.choices(list(self._calls), list(self._calls.values()))
            call(f"{self.name}.{next(self._numbers)}")
            if self._settings.pause:
                stop.wait(self._random.uniform(0, 2 * self._settings.pause))

    # --- calls on what all share ---

    def append_error(self, token: str) -> None:
        session_id = self._random.choice(self._settings.histories)
        with self._told("append_error", session_id, token) as told:
            told["place"] = self._repository.append_error(session_id, "task", token).position

    def append_log(self, token: str) -> None:
        session_id = self._random.choice(self._settings.histories)
        with self._told("append_log", session_id, token):
            self._repository.append_log(session_id, token)

    def modify(self, token: str) -> None:
        session_id = self._random.choice(self._settings.states)
        with self._told("modify", session_id, token) as told:
            change = functools.partial(_count, token=token)
            told["place"] = self._repository.modify_session(session_id, change, attempts=_MANY).version

    # --- calls on sessions that nobody else knows ---

    def create(self, token: str) -> None:
        session = Session(session_id=token)
        session.add_answer("last", token)
        with self._told("create", token, token) as told:
            self._repository.create_session(session)
            told["place"] = session.version
            self._own[token] = session

    def update(self, token: str) -> None:
        if not self._own:
            return self.create(token)
        session = self._random.choice(list(self._own.values()))
        session.add_answer("last", token)
        session.add_log(token)
        with self._told("update", session.session_id, token) as told:
            # One whose update has not come about stays as it is from then on, and so do the findings about it.
            del self._own[session.session_id]
            self._repository.update_session(session)
            told["place"] = session.version
            self._own[session.session_id] = session
        return None

    def delete(self, token: str) -> None:
        if not self._own:
            return self.create(token)
        session_id = self._random.choice(list(self._own))
        del self._own[session_id]
        with self._told("delete", session_id, token) as told:
            told["place"] = int(self._repository.delete_session(session_id))
        return None

    @contextlib.contextmanager
    def _told(self, call: str, session_id: str, token: str) -> Iterator[dict[str, Any]]:
        told: dict[str, Any] = {"call": call, "session": session_id, "token": token, "outcome": OK, "place": None}
        began = time.monotonic()
        try:
            yield told
        except OutcomeUnknownError as error:
            told |= {"outcome": UNKNOWN, "text": str(error)}
        except StorageError as error:
            told |= {"outcome": FAILED, "text": str(error)}
        except SessionRepositoryError as error:
            told |= {"outcome": type(error).__name__, "text": str(error)}
        self._journal.write(**told, began=began, ended=time.monotonic())


def _count(session: Session, token: str) -> None:
    session.current_question_index += 1
    session.add_log(token)


class Retries(logging.Handler):
    """Counts what the repository has tried again, by its reasons."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.reasons: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        reason = getattr(record, "reason", None)
        if reason is not None:
            self.reasons[f"{record.__dict__['call']} {reason}"] += 1


@contextlib.contextmanager
def repository_of(settings: Settings) -> Iterator[SessionRepository]:
    """Give a repository on an engine of its own, to be called from any thread."""
    retry = RetryPolicy(deadline=settings.deadline)
    if settings.asynchronous:
        engine = create_async_engine(settings.url, **settings.engine)
        with aio.event_loop() as run:
            yield blocking_adapter(AsyncSQLAlchemySessionRepository(engine, retry=retry), run)
            run(engine.dispose())
    else:
        synchronous = create_engine(settings.url, **settings.engine)
        yield SQLAlchemySessionRepository(synchronous, retry=retry)
        synchronous.dispose()


def main() -> None:
    """Write until a line comes on the standard input, or its end."""
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text()))
    retries = Retries()
    logger = logging.getLogger("vibeforge_sessions")
    logger.addHandler(retries)
    logger.setLevel(logging.INFO)
    journal, stop = Journal(settings.journal), threading.Event()
    with repository_of(settings) as repository:
        clients = [Client(f"{settings.name}.{n}", repository, settings, journal) for n in range(settings.clients)]
        threads = [threading.Thread(target=client.run, args=(stop,), name=client.name) for client in clients]
        for thread in threads:
            thread.start()
        sys.stdin.readline()
        stop.set()
        for thread in threads:
            thread.join()
    journal.write(call="retries", outcome=None, reasons=retries.reasons)


if __name__ == "__main__":
    main()
