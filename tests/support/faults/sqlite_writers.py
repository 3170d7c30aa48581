"""Writers that are killed: ``python -m tests.support.faults.sqlite_writers SEED``, for `tests.faults.test_sqlite_disk`.

A launcher that has imported everything forks the writers, so that each costs milliseconds. For each line of its
standard input, a URL and the round's name, it lets `WRITERS` processes write until each is killed at a moment of its
own, and prints how many operations each one has acknowledged, as JSON. Every operation leaves its own name in what it
writes; `state_after` says what so many of them amount to.
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
"""How many make a cycle, which begins with a session of the writer's own."""
LONGEST = 0.12
"""Seconds that a writer lives at the most after its first acknowledgement."""


def operate(repository: SessionRepository, name: str, number: int) -> None:
    """Do one operation of a writer."""
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
    """Leave the token in a document and in both histories."""
    session.add_answer(token, len(session.answers))
    session.add_error(token, "updated with it")
    session.add_log(token)


def _deletes(number: int) -> bool:
    return number // OPERATIONS % 2 == 1


@dataclasses.dataclass
class Written:
    """What stands in a session of writers' operations, by their names."""

    version: int = 1
    concept: str | None = None
    answers: list[str] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    logs: list[str] = dataclasses.field(default_factory=list)


def state_after(name: str, count: int) -> dict[str, Written]:  # noqa: C901 (a case for each operation)
    """Return what a writer alone has left after its first `count` operations; its part of the shared session too."""
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


def write_until_killed(url: str, name: str, pages: int, said: int) -> None:
    """Be a writer: a byte to `said` acknowledges an operation."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def checkpoint_often(connection: object, _: object) -> None:
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")  # type: ignore[attr-defined]

    repository = SQLAlchemySessionRepository(engine)
    number = 0
    while True:
        operate(repository, name, number)
        os.write(said, b".")
        number += 1


def begin(url: str, name: str, pages: int) -> tuple[int, int]:
    """Fork a writer; return its process id, and where it acknowledges."""
    hear, say = os.pipe()
    process = os.fork()
    if process:
        os.close(say)
        return process, hear
    try:
        write_until_killed(url, name, pages, say)
    except BaseException:  # noqa: BLE001 (nothing of the launcher's may run on in here)
        os.write(say, b"!" + traceback.format_exc().encode())
    os._exit(1)


def run_round(url: str, name: str, random_: random.Random) -> list[int]:
    """Let the writers write until each is killed; return how many operations each one has acknowledged."""
    pages = random_.choice([1000, 1000, 50, 5])  # how often the log is copied into the database; SQLite's own is 1000
    writers = [begin(url, f"{name}.{number}", pages) for number in range(WRITERS)]
    first = [os.read(hear, 1) for _, hear in writers]  # each has begun
    moments = sorted((random_.uniform(0, LONGEST), process) for process, _ in writers)
    now = 0.0
    for moment, process in moments:
        time.sleep(moment - now)
        now = moment
        os.kill(process, signal.SIGKILL)
    said = []
    for (process, hear), begun in zip(writers, first, strict=True):
        with os.fdopen(hear, "rb") as pipe:
            said.append(begun + pipe.read())
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status) or b"!" in said[-1]:
            raise AssertionError(said[-1].decode())
    return list(map(len, said))


if __name__ == "__main__":
    moments_ = random.Random(sys.argv[1])
    for line in sys.stdin:
        url_, name_ = line.split()
        sys.stdout.write(json.dumps(run_round(url_, name_, moments_)) + "\n")
        sys.stdout.flush()
