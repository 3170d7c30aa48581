"""SQLite on a disk that takes no more: ``python -m tests.support.faults.sqlite_disk full|limited FOLDER``.

Run by `tests.faults.test_sqlite_disk`, ``full`` on a small file system, which a file fills; ``limited`` anywhere: there
the system refuses to let a file grow (``RLIMIT_FSIZE``), which SQLite takes for a disk that fails. Each writing call is
made with a little more space left than the last time, so that it fails at each of its steps, until it succeeds.
"""

from __future__ import annotations

import functools
import resource
import sqlite3
import sys
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from tests.support.faults.writes import WRITES, Write, dump, full, is_done, refused
from vibeforge_sessions import (
    OutcomeUnknownError,
    RetryPolicy,
    SessionRepository,
    SQLAlchemySessionRepository,
    open_repository,
)
from vibeforge_sessions.sql import create_engine

STEPS = [*range(0, 48 * 1024, 4096), *range(48 * 1024, 240 * 1024, 24 * 1024), 2**20]
"""Bytes that are left; SQLite writes pages of 4096."""


OPENING = {"SQLITE_IOERR", "SQLITE_CANTOPEN"}


class Space(ABC):
    """The space that is left for a database's files."""

    codes: frozenset[str]
    """What SQLite says when there is none."""
    may_be_unknown = False
    """Whether an error at COMMIT may leave open what it did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def leave(self, count: int) -> None:
        """Leave so many bytes."""

    @abstractmethod
    def give_back(self) -> None:
        """Leave all that there is."""


class Full(Space):
    """A file fills the file system."""

    codes = frozenset({"SQLITE_FULL"})

    def leave(self, count: int) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            for size in (2**16, 4096):
                try:
                    while True:
                        filler.write(b"x" * size)
                except OSError:  # full
                    continue
            filler.truncate(max(0, filler.tell() - count))

    def give_back(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)


class Limited(Space):
    """No file may grow beyond what is left for the log, which is empty then."""

    codes = frozenset({"SQLITE_IOERR_WRITE"})
    may_be_unknown = True

    def leave(self, count: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, resource.RLIM_INFINITY))

    def give_back(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def check(repository: SessionRepository, path: Path, space: Space, call: Write) -> None:
    """Make the call with more and more space: it fails, and has written nothing, or it is done."""
    failures = 0
    looking = create_engine(f"sqlite:///{path}")
    for count in STEPS:
        session_id = f"{call.__name__}.{count}"
        repository.create_session(full(session_id))
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        before = dump(looking)
        space.leave(count)
        error = refused(lambda: call(repository, session_id))  # noqa: B023 (called at once)
        if error is None:
            assert count > 0
            assert is_done(call, repository, session_id)
            space.give_back()
        else:
            failures += 1
            assert space.may_be_unknown or not isinstance(error, OutcomeUnknownError), error
            assert any(code in str(error) for code in space.codes), error
            assert dump(looking) == before  # with no space still: a read needs none
            space.give_back()
            assert dump(looking) == before
            call(repository, session_id)
        assert is_done(call, repository, session_id)
        for each in repository.list_sessions():
            repository.delete_session(each)
    assert 0 < failures < len(STEPS), failures
    looking.dispose()


def check_opening(path: Path, space: Space, engine: Engine) -> None:
    """Opening the file where nothing is left fails or works; with space it works, by the same engine."""
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(full("there"))
    engine.dispose()  # the last one to close the file removes its log: the next one must make it
    space.leave(0)
    with_another = functools.partial(open_repository, f"sqlite:///{path}")
    error = refused(lambda: with_another().close())
    assert error is None or any(code in str(error) for code in OPENING | space.codes), error
    space.give_back()
    assert repository.list_sessions() == ["there"]
    with with_another() as other:
        assert other.list_sessions() == ["there"]


def make(path: Path, *, pages: int = 1000, cache: int = 500) -> Engine:
    """Return an engine on a new file.

    :param pages: after how many the log is copied into the file.
    :param cache: how many SQLite keeps; what does not fit is written before the commit.
    """
    with open_repository(f"sqlite:///{path}", migrate=True):
        pass
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        connection.execute(f"PRAGMA cache_size = {cache}")

    return engine


def check_space(space: Space) -> None:
    """Try everything: as SQLite is by default, and with as many writes to the disk as can be."""
    for fast_path, options in ((True, {}), (False, {"pages": 1, "cache": 10})):
        path = space.folder / f"{fast_path}.db"
        engine = make(path, **options)
        retry = RetryPolicy(deadline=0.05)  # of a disk that fails nobody knows whether it will
        repository = SQLAlchemySessionRepository(engine, fast_path=fast_path, retry=retry)
        for call in WRITES:
            check(repository, path, space, call)
        check_opening(path, space, engine)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        engine.dispose()
        path.unlink()


if __name__ == "__main__":
    kind, folder = sys.argv[1:]
    check_space({"full": Full, "limited": Limited}[kind](Path(folder)))
