"""A process that writes sessions until it is stopped: run ``python -m tests.support.faults.writer FILE``.

The process keeps a journal. It retries nothing itself: the repository must handle every failure of the database, and
the journal records its final answer. `ledger` compares the journals with the database.
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

# this program also runs with the code of an older revision, which has the adapter under its former name
blocking_adapter: Any = getattr(aio, "BlockingRepositoryAdapter", None) or aio.FromOtherThreads  # type: ignore[attr-defined]

OK: Final = "ok"
FAILED: Final = "StorageError"
UNKNOWN: Final = "OutcomeUnknownError"
_MODIFY_ATTEMPTS: Final = 100_000
"""Attempts of `modify_session`, so high that conflicts with other writers never exhaust them."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a writer process."""

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
    """Options of `create_engine`."""


class Journal:
    """A file with one line of JSON for each ended call; lines of several threads do not mix."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, **fields: Any) -> None:
        """Add a line."""
        os.write(self._file, json.dumps(fields).encode() + b"\n")


class Client:
    """A client that makes calls one after another, each with a unique token."""

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
        """Make calls until the event is set."""
        while not stop.is_set():
            (call,) = self._random.choices(list(self._calls), list(self._calls.values()))
            call(f"{self.name}.{next(self._numbers)}")
            if self._settings.pause:
                stop.wait(self._random.uniform(0, 2 * self._settings.pause))

    # --- calls on shared sessions ---

    def append_error(self, token: str) -> None:
        session_id = self._random.choice(self._settings.histories)
        with self._recorded("append_error", session_id, token) as record:
            record["place"] = self._repository.append_error(session_id, "task", token).position

    def append_log(self, token: str) -> None:
        session_id = self._random.choice(self._settings.histories)
        with self._recorded("append_log", session_id, token):
            self._repository.append_log(session_id, token)

    def modify(self, token: str) -> None:
        session_id = self._random.choice(self._settings.states)
        with self._recorded("modify", session_id, token) as record:
            change = functools.partial(_count, token=token)
            record["place"] = self._repository.modify_session(session_id, change, attempts=_MODIFY_ATTEMPTS).version

    # --- calls on sessions of this client alone ---

    def create(self, token: str) -> None:
        session = Session(session_id=token)
        session.add_answer("last", token)
        with self._recorded("create", token, token) as record:
            self._repository.create_session(session)
            record["place"] = session.version
            self._own[token] = session

    def update(self, token: str) -> None:
        if not self._own:
            return self.create(token)
        session = self._random.choice(list(self._own.values()))
        session.add_answer("last", token)
        session.add_log(token)
        with self._recorded("update", session.session_id, token) as record:
            # A session whose update was not acknowledged is never used again, so that the findings about it stay valid.
            del self._own[session.session_id]
            self._repository.update_session(session)
            record["place"] = session.version
            self._own[session.session_id] = session
        return None

    def delete(self, token: str) -> None:
        if not self._own:
            return self.create(token)
        session_id = self._random.choice(list(self._own))
        del self._own[session_id]
        with self._recorded("delete", session_id, token) as record:
            record["place"] = int(self._repository.delete_session(session_id))
        return None

    @contextlib.contextmanager
    def _recorded(self, call: str, session_id: str, token: str) -> Iterator[dict[str, Any]]:
        record: dict[str, Any] = {"call": call, "session": session_id, "token": token, "outcome": OK, "place": None}
        began = time.monotonic()
        try:
            yield record
        except OutcomeUnknownError as error:
            record |= {"outcome": UNKNOWN, "text": str(error)}
        except StorageError as error:
            record |= {"outcome": FAILED, "text": str(error)}
        except SessionRepositoryError as error:
            record |= {"outcome": type(error).__name__, "text": str(error)}
        self._journal.write(**record, began=began, ended=time.monotonic())


def _count(session: Session, token: str) -> None:
    session.current_question_index += 1
    session.add_log(token)


class Retries(logging.Handler):
    """A handler that counts the retries of the repository by reason."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.reasons: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        reason = getattr(record, "reason", None)
        if reason is not None:
            self.reasons[f"{record.__dict__['call']} {reason}"] += 1


@contextlib.contextmanager
def repository_of(settings: Settings) -> Iterator[SessionRepository]:
    """Provide a repository on its own engine, which may be called from any thread."""
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
    """Write until a line or the end of the standard input arrives."""
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
