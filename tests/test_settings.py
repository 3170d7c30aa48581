"""`open_repository`: from an argument or the environment to a repository, and what it says when that cannot be."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import sqlalchemy

from tests.repositories import SQLiteFiles
from vibeforge_sessions import (
    InMemorySessionRepository,
    InvalidSessionError,
    SchemaError,
    SessionPhase,
    SQLAlchemySessionRepository,
    StorageError,
    open_repository,
)
from vibeforge_sessions.testing.base import SESSION_ID, full_session, stored
from vibeforge_sessions.testing.subclasses import ExtendedSession

URL = "VIBEFORGE_SESSIONS_DATABASE_URL"
MIGRATE = "VIBEFORGE_SESSIONS_MIGRATE"
SECRET = "s3cr3t-pa55"


def url_in(folder: Path, name: str = "sessions.db") -> str:
    return f"sqlite:///{folder / name}"


def shown(error: BaseException) -> str:
    """Return all that a log would show of an error, its causes included."""
    return f"{error} {error!r} {''.join(traceback.format_exception(error))}"


def run(*command: str, folder: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        command, cwd=folder, env=kept | {"PATH": path} | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- which repository ---


def test_without_any_setting_sessions_are_in_memory() -> None:
    with open_repository() as repository:
        assert isinstance(repository, InMemorySessionRepository)
        assert repository.list_sessions() == []


@pytest.mark.parametrize("url", ["memory://", None, ""])
@pytest.mark.parametrize("migrate", ["1", "0", "", None])
def test_memory_by_the_environment(monkeypatch: pytest.MonkeyPatch, url: str | None, migrate: str | None) -> None:
    for name, value in ((URL, url), (MIGRATE, migrate)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert isinstance(open_repository(), InMemorySessionRepository)


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, sqlite_files: SQLiteFiles) -> None:
    url = sqlite_files.new_url()
    monkeypatch.setenv(URL, url)
    with open_repository() as repository:
        assert isinstance(repository, SQLAlchemySessionRepository)
        repository.create_session(full_session())
    with open_repository(url) as repository:
        assert repository.list_sessions() == [SESSION_ID]


def test_the_argument_wins(monkeypatch: pytest.MonkeyPatch, sqlite_files: SQLiteFiles, tmp_path: Path) -> None:
    one, two = sqlite_files.new_url(), sqlite_files.new_url()
    monkeypatch.setenv(URL, one)
    with open_repository(two) as repository:
        repository.create_session(full_session())
    with open_repository("memory://") as repository:
        assert isinstance(repository, InMemorySessionRepository)
    with open_repository() as repository:
        assert repository.list_sessions() == []
    monkeypatch.setenv(URL, f"oracle://u:{SECRET}@h/db")
    with open_repository(two) as repository:
        assert repository.list_sessions() == [SESSION_ID]


def test_the_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch, sqlite_files: SQLiteFiles) -> None:
    assert isinstance(open_repository(), InMemorySessionRepository)
    monkeypatch.setenv(URL, sqlite_files.new_url())
    with open_repository() as repository:
        assert isinstance(repository, SQLAlchemySessionRepository)


def test_the_class_of_session_is_passed_on(sqlite_files: SQLiteFiles) -> None:
    for url in ("memory://", sqlite_files.new_url()):
        with open_repository(url, session_type=ExtendedSession) as repository:
            assert type(repository.create_session(session_id=SESSION_ID)) is ExtendedSession
            assert type(stored(repository)) is ExtendedSession


def test_what_another_process_wrote(tmp_path: Path) -> None:
    code = """
from vibeforge_sessions import SessionPhase, open_repository
with open_repository() as repository:
    session = repository.create_session(session_id="theirs")
    session.update_phase(SessionPhase.EXECUTION)
    session.add_error("t1", "exit 1")
    repository.update_session(session)
    repository.append_log("theirs", "done")
"""
    run(sys.executable, "-c", code, folder=tmp_path, **{URL: "sqlite:///sessions.db", MIGRATE: "1"})
    with open_repository(url_in(tmp_path)) as repository:
        session = stored(repository, "theirs")
        assert (session.phase, session.version) == (SessionPhase.EXECUTION, 2)
        assert session.error_history[0].error_message == "exit 1"
        assert len(session.logs) == 1


# --- migrating ---


@pytest.mark.parametrize(
    ("argument", "environment", "migrates"),
    [
        *((None, value, True) for value in ("1", "true", "True", "TRUE", "yes", "on")),
        *((None, value, False) for value in ("0", "false", "False", "no", "off", "", None)),
        *((True, value, True) for value in ("0", "false", "", None, "1")),
        *((False, value, False) for value in ("1", "true", "0", None)),
    ],
)
def test_whether_the_schema_is_migrated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argument: bool | None, environment: str | None, migrates: bool
) -> None:
    if environment is not None:
        monkeypatch.setenv(MIGRATE, environment)
    url = url_in(tmp_path)
    if migrates:
        with open_repository(url, migrate=argument) as repository:
            repository.create_session(full_session())
        with open_repository(url, migrate=argument) as repository:  # and once more, where there is nothing to do
            assert repository.list_sessions() == [SESSION_ID]
    else:
        with pytest.raises(SchemaError) as caught:
            open_repository(url, migrate=argument)
        assert caught.value.state == "empty"


@pytest.mark.parametrize("value", [SECRET, "2", "-1", "maybe", " ", "1 0"])
def test_a_setting_that_is_neither_true_nor_false(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    monkeypatch.setenv(MIGRATE, value)
    for url in (None, url_in(tmp_path)):
        with pytest.raises(InvalidSessionError) as caught:
            open_repository(url)
        assert MIGRATE in str(caught.value)
        assert SECRET not in shown(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_schema_and_the_command_that_the_error_names(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    url = url_in(folder)
    with pytest.raises(SchemaError) as caught:
        open_repository(url)
    assert caught.value.state == "empty"
    assert url not in shown(caught.value)
    assert f"{MIGRATE}=1" in str(caught.value)
    command = re.search(r'alembic -c "[^"]+" upgrade head', str(caught.value))
    assert command is not None
    assert f"{URL} set" in str(caught.value)
    run(*shlex.split(command[0]), folder=folder, **{URL: url})
    with open_repository(url) as repository:
        repository.create_session(full_session())


# --- what cannot be opened ---

UNSUPPORTED = [
    f"oracle://scott:{SECRET}@db.example/forge",
    f"mysql+mysqldb://scott:{SECRET}@db.example/forge",
    f"postgresql+psycopg2://scott:{SECRET}@db.example/forge",
    f"sqlite+aiosqlite:///{SECRET}.db",
    f"http://scott:{SECRET}@db.example/forge",
    f"memory://{SECRET}",
    f"no-such-dialect://scott:{SECRET}@db.example",
    f"postgresql://scott:{SECRET}@db.example:port/forge",
    f"nonsense {SECRET}",
    SECRET,
    "://",
    "",
    " ",
]


@pytest.mark.parametrize("url", UNSUPPORTED)
@pytest.mark.parametrize("by_environment", [False, True])
def test_an_unsupported_url(monkeypatch: pytest.MonkeyPatch, url: str, by_environment: bool) -> None:
    if by_environment:
        monkeypatch.setenv(URL, url or " ")
    with pytest.raises(StorageError) as caught:
        open_repository(None if by_environment else url, migrate=True)
    assert "sqlite" in str(caught.value)  # an example of what is understood
    assert SECRET not in shown(caught.value)


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [("postgresql+psycopg", "psycopg"), ("mariadb+pymysql", "pymysql"), ("mysql+pymysql", "pymysql")],
)
@pytest.mark.parametrize("migrate", [False, True])
def test_a_server_that_cannot_be_reached(scheme: str, driver: str, migrate: bool) -> None:
    pytest.importorskip(driver)
    url = f"{scheme}://scott:{SECRET}@127.0.0.1:1/forge"
    with pytest.raises(StorageError) as caught:
        open_repository(url, migrate=migrate)
    assert SECRET not in shown(caught.value)
    assert isinstance(caught.value.__cause__, sqlalchemy.exc.OperationalError)


@pytest.mark.parametrize("migrate", [False, True])
def test_a_file_that_cannot_be_opened(tmp_path: Path, migrate: bool) -> None:
    url = url_in(tmp_path / SECRET)  # a folder that does not exist
    with pytest.raises(StorageError) as caught:
        open_repository(url, migrate=migrate)
    assert "SQLITE_CANTOPEN" in str(caught.value)
    assert SECRET not in shown(caught.value)


@pytest.mark.parametrize("migrate", [False, True])
def test_a_file_that_is_no_database(tmp_path: Path, migrate: bool) -> None:
    (tmp_path / "sessions.db").write_text("This is a text file. " * 1000)
    with pytest.raises(StorageError) as caught:
        open_repository(url_in(tmp_path), migrate=migrate)
    assert "SQLITE_NOTADB" in str(caught.value)
    assert (tmp_path / "sessions.db").read_text().startswith("This is a text file. ")


# --- the end ---


def test_closing_gives_the_file_back(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    repository = open_repository(url, migrate=True)
    repository.create_session(full_session())
    assert (tmp_path / "sessions.db-wal").exists()  # there as long as somebody has the file open
    repository.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sessions.db"]
    repository.close()
    with open_repository(url) as again:
        assert again.list_sessions() == [SESSION_ID]
        assert (tmp_path / "sessions.db-wal").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sessions.db"]


def test_a_failure_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(SchemaError):
        open_repository(url_in(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"sessions.db"}


def test_a_hosts_engine_is_left_alone(sqlite_files: SQLiteFiles) -> None:
    engine = sqlalchemy.create_engine(sqlite_files.new_url())
    with SQLAlchemySessionRepository(engine) as repository:
        repository.create_session(full_session())
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    engine.dispose()
