"""SQLite on a disk without space: ``python -m tests.support.faults.sqlite_disk full|limited FOLDER``.

`tests.faults.test_sqlite_disk` runs it. With ``full`` a file fills a small file system. With ``limited`` the system
rejects the growth of a file (``RLIMIT_FSIZE``), which SQLite reports as a failing disk. Each writing call is repeated
with a little more space each time. It therefore fails at each of its steps, until it succeeds.
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

from tests.support.faults.writes import WRITES, Write, dump, full, is_done, rejection_of
from vibeforge_sessions import (
    OutcomeUnknownError,
    RetryPolicy,
    SessionRepository,
    SQLAlchemySessionRepository,
    open_repository,
)
from vibeforge_sessions.sql import create_engine

STEPS = [*range(0, 48 * 1024, 4096), *range(48 * 1024, 240 * 1024, 24 * 1024), 2**20]
"""Bytes of free space; SQLite writes pages of 4096 bytes."""


OPENING = {"SQLITE_IOERR", "SQLITE_CANTOPEN"}


class Space(ABC):
    """The free space for the files of a database."""

    codes: frozenset[str]
    """Error codes of SQLite without free space."""
    may_be_unknown = False
    """Whether an error at COMMIT may leave the outcome unknown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def leave(self, count: int) -> None:
        """Leave this number of free bytes."""

    @abstractmethod
    def give_back(self) -> None:
        """Make all space available again."""


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
    """No file may grow beyond the size that is left for the log, which is empty at that time."""

    codes = frozenset({"SQLITE_IOERR_WRITE"})
    may_be_unknown = True

    def leave(self, count: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, resource.RLIM_INFINITY))

    def give_back(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def check(repository: SessionRepository, path: Path, space: Space, call: Write) -> None:
    """Make the call with increasing space: it fails and writes nothing, or it is applied."""
    failures = 0
    direct = create_engine(f"sqlite:///{path}")
    for count in STEPS:
        session_id = f"{call.__name__}.{count}"
        repository.create_session(full(session_id))
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        before = dump(direct)
        space.leave(count)
        error = rejection_of(lambda: call(repository, session_id))  # noqa: B023 (called immediately)
        if error is None:
            assert count > 0
            assert is_done(call, repository, session_id)
            space.give_back()
        else:
            failures += 1
            assert space.may_be_unknown or not isinstance(error, OutcomeUnknownError), error
            assert any(code in str(error) for code in space.codes), error
            assert dump(direct) == before  # still without space, which a read does not need
            space.give_back()
            assert dump(direct) == before
            call(repository, session_id)
        assert is_done(call, repository, session_id)
        for each in repository.list_sessions():
            repository.delete_session(each)
    assert 0 < failures < len(STEPS), failures
    direct.dispose()


def check_opening(path: Path, space: Space, engine: Engine) -> None:
    """Check that opening the file without space fails or works, and works with space on the same engine."""
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(full("there"))
    engine.dispose()  # the last connection removes the log at its end, so that the next one must create it
    space.leave(0)
    open_again = functools.partial(open_repository, f"sqlite:///{path}")
    error = rejection_of(lambda: open_again().close())
    assert error is None or any(code in str(error) for code in OPENING | space.codes), error
    space.give_back()
    assert repository.list_sessions() == ["there"]
    with open_again() as other:
        assert other.list_sessions() == ["there"]


def make(path: Path, *, pages: int = 1000, cache: int = 500) -> Engine:
    """Return an engine on a new file.

    :param pages: pages in the log after which it is copied into the file.
    :param cache: pages that SQLite caches; further changed pages are written before the commit.
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
    """Check all calls: with the defaults of SQLite, and with as many writes to the disk as possible."""
    for fast_path, options in ((True, {}), (False, {"pages": 1, "cache": 10})):
        path = space.folder / f"{fast_path}.db"
        engine = make(path, **options)
        retry = RetryPolicy(deadline=0.05)  # disk errors are retried, because they may be transient
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
