"""SQLite without write permission: ``python -m tests.support.faults.sqlite_read_only file|folder FOLDER``.

It runs in its own process, because root must give up capabilities for it: see `tests.faults.test_sqlite_disk`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.faults.writes import WRITES, full, is_done, rejection_of
from vibeforge_sessions import OutcomeUnknownError, SQLAlchemySessionRepository, open_repository
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.testing.base import stored

ERROR_CODES = {"file": "SQLITE_READONLY", "folder": "SQLITE_READONLY_DIRECTORY"}
"""Error codes by protected object. SQLite cannot create the log in a protected folder, and does not open the file."""


def main(kind: str, folder: Path) -> None:
    """Try every writing call, and a reading one."""
    path = folder / "sessions.db"
    with open_repository(f"sqlite:///{path}", migrate=True) as repository:
        for write in WRITES:
            repository.create_session(full(write.__name__))
    before = path.read_bytes()
    protected = folder if kind == "folder" else path
    mode = protected.stat().st_mode
    protected.chmod(mode & 0o555)
    engine = create_engine(f"sqlite:///{path}")
    repository = SQLAlchemySessionRepository(engine)
    for write in WRITES:
        error = rejection_of(lambda: write(repository, write.__name__))  # noqa: B023 (called immediately)
        assert error is not None, write
        assert not isinstance(error, OutcomeUnknownError), error
        assert ERROR_CODES[kind] in str(error), error
    if kind == "file":
        assert stored(repository, "create").answers == full("create").answers
    assert path.read_bytes() == before
    protected.chmod(mode)
    for each in folder.iterdir():  # the files of the log have inherited the permissions of the file
        each.chmod(0o600)
    # a connection that was opened read-only stays read-only: one more write is rejected and discards the connection
    rejection_of(lambda: repository.append_log("create", "again"))
    for write in WRITES:
        write(repository, write.__name__)
        assert is_done(write, repository, write.__name__)
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
