"""SQLite on a full disk, without write permission, and with a lock of another process."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.faults.writes import WRITES, Write, append_log, dump, full, is_done
from tests.support.repositories import SQLiteFiles
from tests.support.servers import ServerUnavailable
from tests.support.servers.fixtures import skipping
from vibeforge_sessions import (
    RetryPolicy,
    SQLAlchemySessionRepository,
    StorageError,
    open_repository,
)
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.testing.base import stored

ROOT = os.geteuid() == 0


@pytest.fixture
def path(sqlite_files: SQLiteFiles) -> Path:
    """Return the path of a new migrated file with one session."""
    path = Path(sqlite_files.new_url().removeprefix("sqlite:///"))
    with open_repository(f"sqlite:///{path}") as repository:
        repository.create_session(full("a"))
    return path


def run(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# --- full disks ---

PRIVATE_MOUNTS = ["unshare", "--mount"] if ROOT else ["unshare", "--user", "--map-root-user", "--mount"]
"""Command prefix for mounts that no other process sees, and that end with the last process that sees them."""
SMALL = 'mount -t tmpfs -o size=6m tmpfs "$0" && exec "$@"'


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> list[str]:
    """Return the prefix of a command that runs with a file system of 6 MB on `tmp_path`."""
    command = [*PRIVATE_MOUNTS, "sh", "-c", SMALL, str(tmp_path)]
    with skipping():
        if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode:
            raise ServerUnavailable("a small file system cannot be mounted here (unshare, mount)")
    return command


def test_write_on_a_full_disk_fails_without_effect(on_a_small_disk: list[str], tmp_path: Path) -> None:
    run(*on_a_small_disk, sys.executable, "-m", "tests.support.faults.sqlite_disk", "full", tmp_path)


def test_write_on_a_failing_disk_fails_or_is_unknown(tmp_path: Path) -> None:
    run(sys.executable, "-m", "tests.support.faults.sqlite_disk", "limited", tmp_path)


# --- missing write permission ---

# root may write every file; without these capabilities it may not, and its child processes cannot regain them
WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if ROOT else []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_write_without_permission_is_rejected_and_works_again_with_permission(kind: str, tmp_path: Path) -> None:
    with skipping():
        if ROOT and shutil.which("setpriv") is None:
            raise ServerUnavailable("root may write everything, and there is no setpriv to change that")
    folder = tmp_path / "folder"
    folder.mkdir()
    try:
        run(*WITHOUT_CAPABILITIES, sys.executable, "-m", "tests.support.faults.sqlite_read_only", kind, folder)
    finally:
        folder.chmod(0o700)


def test_write_through_a_read_only_url_is_rejected(path: Path) -> None:
    before = path.read_bytes()
    engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    repository = SQLAlchemySessionRepository(engine)
    for write in WRITES:
        with pytest.raises(StorageError, match="SQLITE_READONLY"):
            write(repository, "a")
    assert stored(repository, "a").answers == full("a").answers
    engine.dispose()
    assert path.read_bytes() == before


# --- locks of another process ---

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
connection.execute("UPDATE vibeforge_sessions SET phase = 'other'")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


@contextmanager
def held(path: Path, begin: str) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock until a line is written to its input, or the block ends."""
    command = [sys.executable, "-c", HOLDER, str(path), begin]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        release(process)


def release(holder: subprocess.Popen[str]) -> None:
    """End the process, and return after it has released the lock."""
    holder.communicate()


def test_write_fails_when_lock_is_held_longer_than_the_timeout(path: Path) -> None:
    direct = create_engine(f"sqlite:///{path}")
    engine = create_engine(f"sqlite:///{path}", busy_timeout=0.05)
    repository = SQLAlchemySessionRepository(engine, retry=RetryPolicy(deadline=0.1))
    before = dump(direct)
    with held(path, "BEGIN IMMEDIATE"):
        for write in WRITES:
            with pytest.raises(StorageError, match="SQLITE_BUSY"):
                write(repository, "a")
            assert dump(direct) == before
        assert repository.get_session("a") == stored(SQLAlchemySessionRepository(direct), "a")  # readers do not wait
    for write in WRITES:
        write(repository, "a")  # the same repository can be used again
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()
    direct.dispose()


@pytest.mark.parametrize("write", WRITES)
def test_write_waits_when_lock_is_held_shorter_than_the_timeout(path: Path, write: Write) -> None:
    with (
        open_repository(f"sqlite:///{path}") as repository,
        held(path, "BEGIN IMMEDIATE") as holder,
        ThreadPoolExecutor(1) as waiting,
    ):
        written = waiting.submit(write, repository, "a")
        assert not wait([written], timeout=0.15).done
        release(holder)
        written.result()
        assert is_done(write, repository, "a")


def test_call_on_a_file_locked_at_opening_fails_and_works_after_release(path: Path) -> None:
    # an application's file without WAL mode, which the repository switches on
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    engine = create_engine(f"sqlite:///{path}", busy_timeout=0.05)
    repository = SQLAlchemySessionRepository(engine, retry=RetryPolicy(deadline=0.1))
    with held(path, "BEGIN EXCLUSIVE"):
        for call in (repository.list_sessions, lambda: repository.append_log("a", "new")):
            with pytest.raises(StorageError, match="SQLITE_BUSY"):
                call()
    repository.append_log("a", "new")
    assert is_done(append_log, repository, "a")
    engine.dispose()
