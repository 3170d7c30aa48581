"""SQLite writers that are killed, for `tests.faults.test_sqlite_kills`.

Run ``python -m tests.support.faults.sqlite_writers SEED``. The launcher has imported all modules and forks the writers,
so that each fork takes milliseconds. Each line of its standard input contains a URL and the name of the round. For each
line it lets `WRITERS` processes write until each of them is killed at a random moment. It prints the number of
operations that each writer has acknowledged, as JSON. Every operation leaves its own name in its data; `state_after`
returns the state after a number of operations.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
import traceback

from sqlalchemy import event

from vibeforge_sessions import Session, SessionRepository, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.testing.base import stored

WRITERS = 4
SHARED = "shared"
OPERATIONS = 7
"""Operations of a cycle, which begins with a new session of the writer."""
LONGEST = 0.12
"""Maximum seconds between the first acknowledgment of a writer and its kill."""


def operate(repository: SessionRepository, name: str, number: int) -> None:
    """Execute one operation of a writer."""
    token, own = f"{name}.{number}", f"{name}.{number - number % OPERATIONS}"
    match number % OPERATIONS:
        case 0:
            session = Session(session_id=own, answers={"size": "x" * (number * 997 % 40_000)})
            session.add_error(token, "created with it")
            repository.create_session(session)
        case 1:
            repository.append_error(SHARED, token, "x" * (number * 991 % 9_000))
        case 2:
            repository.append_log(SHARED, token)
        case 3:
            repository.modify_session(SHARED, lambda session: add(session, token), attempts=10_000)
        case 4:
            session = stored(repository, own)
            session.concept = {"token": token, "size": "x" * (number * 983 % 20_000)}
            session.add_log(token)
            repository.update_session(session)
        case 5:
            repository.append_error(own, token, "appended")
        case 6 if _deletes(number):
            assert repository.delete_session(own)
        case 6:
            repository.append_log(own, token)


def add(session: Session, token: str) -> None:
    """Add the token to a document and to both histories."""
    session.add_answer(token, len(session.answers))
    session.add_error(token, "updated with it")
    session.add_log(token)


def _deletes(number: int) -> bool:
    return number // OPERATIONS % 2 == 1


@dataclasses.dataclass
class Written:
    """The names of the operations whose data a session contains."""

    version: int = 1
    concept: str | None = None
    answers: list[str] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    logs: list[str] = dataclasses.field(default_factory=list)


def state_after(name: str, count: int) -> dict[str, Written]:  # noqa: C901 (a case for each operation)
    """Return the state after the first `count` operations of a writer, including its part of the shared session."""
    state = {SHARED: Written()}
    for number in range(count):
        token, own = f"{name}.{number}", f"{name}.{number - number % OPERATIONS}"
        shared = state[SHARED]
        match number % OPERATIONS:
            case 0:
                state[own] = Written(errors=[token])
            case 1:
                shared.errors.append(token)
            case 2:
                shared.logs.append(token)
            case 3:
                shared.version += 1
                for tokens in (shared.answers, shared.errors, shared.logs):
                    tokens.append(token)
            case 4:
                state[own].version += 1
                state[own].concept = token
                state[own].logs.append(token)
            case 5:
                state[own].errors.append(token)
            case 6 if _deletes(number):
                del state[own]
            case 6:
                state[own].logs.append(token)
    return state


def write_until_killed(url: str, name: str, pages: int, acknowledgments: int) -> None:
    """Execute operations until killed; a byte written to `acknowledgments` acknowledges an operation."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def checkpoint_often(connection: object, _: object) -> None:
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")  # type: ignore[attr-defined]

    repository = SQLAlchemySessionRepository(engine)
    number = 0
    while True:
        operate(repository, name, number)
        os.write(acknowledgments, b".")
        number += 1


def begin(url: str, name: str, pages: int) -> tuple[int, int]:
    """Fork a writer; return its process id, and the pipe of its acknowledgments."""
    receiver, sender = os.pipe()
    process = os.fork()
    if process:
        os.close(sender)
        return process, receiver
    try:
        write_until_killed(url, name, pages, sender)
    except BaseException:  # noqa: BLE001 (the launcher's code must not continue in this process)
        os.write(sender, b"!" + traceback.format_exc().encode())
    os._exit(1)


def run_round(url: str, name: str, random_: random.Random) -> list[int]:
    """Let the writers write until each is killed; return the number of acknowledged operations of each."""
    # pages after which the log is copied into the database; SQLite's default is 1000
    pages = random_.choice([1000, 1000, 50, 5])
    writers = [begin(url, f"{name}.{number}", pages) for number in range(WRITERS)]
    first = [os.read(receiver, 1) for _, receiver in writers]  # wait until each has begun
    moments = sorted((random_.uniform(0, LONGEST), process) for process, _ in writers)
    now = 0.0
    for moment, process in moments:
        time.sleep(moment - now)
        now = moment
        os.kill(process, signal.SIGKILL)
    acknowledgments = []
    for (process, receiver), begun in zip(writers, first, strict=True):
        with os.fdopen(receiver, "rb") as pipe:
            acknowledgments.append(begun + pipe.read())
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status) or b"!" in acknowledgments[-1]:
            raise AssertionError(acknowledgments[-1].decode())
    return list(map(len, acknowledgments))


if __name__ == "__main__":
    moments_ = random.Random(sys.argv[1])
    for line in sys.stdin:
        url_, name_ = line.split()
        sys.stdout.write(json.dumps(run_round(url_, name_, moments_)) + "\n")
        sys.stdout.flush()
