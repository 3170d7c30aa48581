"""Opening a repository from arguments and environment variables, and errors of invalid settings."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
import typer
from fastapi import FastAPI

from tests.support import cli_runner as running
from tests.support.repositories import SQLiteFiles
from vibeforge_sessions import (
    AsyncInMemorySessionRepository,
    ConfigurationError,
    InMemorySessionRepository,
    SchemaError,
    SessionPhase,
    SQLAlchemySessionRepository,
    StorageError,
    open_async_repository,
    open_repository,
)
from vibeforge_sessions.cli.commands import app
from vibeforge_sessions.compat import session_store
from vibeforge_sessions.integrations.fastapi import lifespan
from vibeforge_sessions.testing.base import SESSION_ID, full_session, stored
from vibeforge_sessions.testing.subclasses import ExtendedSession

URL = "VIBEFORGE_SESSIONS_DATABASE_URL"
MIGRATE = "VIBEFORGE_SESSIONS_MIGRATE"
SCHEMA = "VIBEFORGE_SESSIONS_SCHEMA"
SECRET = "s3cr3t-pa55"


def url_in(folder: Path, name: str = "sessions.db") -> str:
    return f"sqlite:///{folder / name}"


def shown(error: BaseException) -> str:
    """Return the text of an error in a log, including its causes."""
    return f"{error} {error!r} {''.join(traceback.format_exception(error))}"


def run(*command: str, folder: Path, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        command, cwd=folder, env=inherited | {"PATH": path} | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- choice of the repository ---


def test_repository_without_settings_is_in_memory_with_warning(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        with open_repository() as repository:
            assert isinstance(repository, InMemorySessionRepository)
            assert repository.list_sessions() == []
        check_warning(caplog, "open_repository")


def test_async_repository_without_settings_is_in_memory_with_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert isinstance(asyncio.run(open_async_repository()), AsyncInMemorySessionRepository)
    check_warning(caplog, "open_async_repository")


def test_compat_store_without_settings_is_in_memory_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    session_store.close()  # another test may have used it
    session_store.create_session()
    session_store.list_sessions()
    session_store.close()
    check_warning(caplog, "open_repository")


def check_warning(caplog: pytest.LogCaptureFixture, call: str) -> None:
    """Assert that one record was logged, with all attributes of this package's records and the next step."""
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("vibeforge_sessions", logging.WARNING)
    assert URL in record.getMessage()
    assert "memory://" in record.getMessage()
    documented = "%(call)s %(session_id)s version=%(version)s %(outcome)s attempts=%(attempts)d %(duration)s %(reason)s"
    assert logging.Formatter(documented).format(record) == f"{call} None version=None ok attempts=1 None None"


@pytest.mark.parametrize("by_argument", [False, True], ids=["from_environment", "from_argument"])
@pytest.mark.parametrize("migrate", ["1", "0", "", None])
@pytest.mark.parametrize("schema", ["forge", None])
def test_explicit_memory_url_logs_no_warning(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    by_argument: bool,
    migrate: str | None,
    schema: str | None,
) -> None:
    for name, value in ((URL, None if by_argument else "memory://"), (MIGRATE, migrate), (SCHEMA, schema)):
        if value is not None:
            monkeypatch.setenv(name, value)
    url = "memory://" if by_argument else None
    assert isinstance(open_repository(url), InMemorySessionRepository)
    assert isinstance(asyncio.run(open_async_repository(url)), AsyncInMemorySessionRepository)
    assert caplog.records == []


def rejected(url: str | None = None) -> ConfigurationError:
    """Return the error, which must be equal for all functions that open a repository."""
    session_store.close()
    calls: tuple[Callable[[], object], ...] = (
        lambda: open_repository(url),
        lambda: asyncio.run(open_async_repository(url)),
        lambda: asyncio.run(start_application(url)),
        *(() if url is not None else (session_store.list_sessions,)),
    )
    errors = []
    for call in calls:
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert SECRET not in shown(caught.value)
        errors.append(caught.value)
    assert len({str(error) for error in errors}) == 1
    return errors[0]


async def start_application(url: str | None) -> None:
    async with lifespan(url)(FastAPI()):
        pass


@pytest.mark.parametrize("value", ["", " ", "\t\n"], ids=["empty", "space", "white_space"])
def test_empty_url_is_rejected(monkeypatch: pytest.MonkeyPatch, value: str, tmp_path: Path) -> None:
    assert "memory://" in str(rejected(value))
    monkeypatch.setenv(URL, value)
    error = rejected()
    assert error.name == URL
    assert "memory://" in str(error)
    assert isinstance(open_repository("memory://"), InMemorySessionRepository)  # an argument overrides the environment
    with open_repository(url_in(tmp_path), migrate=True) as repository:
        assert repository.list_sessions() == []


@pytest.mark.parametrize(
    ("name", "value"), [(MIGRATE, "1"), (MIGRATE, "0"), (MIGRATE.lower(), "1"), (SCHEMA, "forge"), (SCHEMA, " ")]
)
def test_database_setting_without_url_is_rejected(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    error = rejected()
    assert error.name == name.upper()
    assert URL in str(error)


@pytest.mark.parametrize("name", [MIGRATE, SCHEMA])
def test_empty_database_setting_is_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    assert isinstance(open_repository(), InMemorySessionRepository)


MISSPELLED = {
    "VIBEFORGE_SESSION_DATABASE_URL": URL,
    "vibeforge_session_database_url": URL,
    "VIBEFORGE_SESSIONS_DATABASE_URI": URL,
    "VIBEFORGE_SESSIONS_DATABSE_URL": URL,
    "VIBEFORGE_SESSION_DATABSAE_URL": URL,
    "VIBEFORGESESSIONSDATABASE_URL": URL,
    "VIBFORGE_SESSIONS_DATABASE_URL": URL,
    "VIBEFORGE_SESSIONS_DATABASE_URL_": URL,
    "VIBEFORGE_SESSIONS_MIGRATED": MIGRATE,
    "VIBEFORGE_SESSION_MIGRATE": MIGRATE,
    "VIBEFORGE_SESSIONS_SCHEME": SCHEMA,
    "VIBEFORGE_SESSION_SCHEMAS": SCHEMA,
}


@pytest.mark.parametrize(("name", "correct_name"), MISSPELLED.items())
@pytest.mark.parametrize("url", [None, "memory://"], ids=["without_url", "with_url"])
def test_misspelled_variable_is_rejected(
    monkeypatch: pytest.MonkeyPatch, name: str, correct_name: str, url: str | None
) -> None:
    monkeypatch.setenv(name, SECRET)
    if url is not None:
        monkeypatch.setenv(URL, url)
    error = rejected()
    assert error.name == name
    assert f" {correct_name}" in str(error)


UNRELATED = (
    "VIBEFORGE_SESSIONS_SERVICE_HOST",
    "VIBEFORGE_SESSIONS_SERVICE_PORT",
    "VIBEFORGE_SESSIONS_PORT",
    "VIBEFORGE_SESSIONS_PORT_5432_TCP",
    "VIBEFORGE_SESSIONS_PORT_5432_TCP_ADDR",
    "VIBEFORGE_SESSION_DATABASE_PORT",
    "VIBEFORGE_SESSIONS_TEST_POSTGRESQL_URL",
    "VIBEFORGE_DATABASE_URL",
    "VIBEFORGE_SESSIONS_URL",
    "VIBEFORGE_SESSIONS_",
    "DATABASE_URL",
    "SCHEMA",
)


def test_unrelated_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*UNRELATED, *variables_of_command_line()):
        monkeypatch.setenv(name, "1")
    for name in (MIGRATE, SCHEMA):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(URL)
    monkeypatch.setenv(URL.lower(), "memory://")
    assert isinstance(open_repository(), InMemorySessionRepository)


def variables_of_command_line() -> set[str]:
    commands = [typer.main.get_command(app)]
    found: set[str] = set()
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        prefix = (command.context_settings or {}).get("auto_envvar_prefix")
        if prefix is not None:
            found |= {str(option.envvar or f"{prefix}_{str(option.name).upper()}") for option in command.params}
    assert {URL, SCHEMA, "VIBEFORGE_SESSIONS_MIGRATOR"} < found
    return found


@pytest.mark.parametrize("url", ["", " ", None], ids=["empty", "space", "unset"])
def test_command_line_rejects_empty_url(url: str | None) -> None:
    done = running.run(url, "sessions", "list")
    assert done.code != 0
    assert done.out == ""
    done = running.run(None, "sessions", "list", "--url", url or "")
    assert done.code != 0
    assert done.out == ""


@pytest.mark.parametrize("url", [f"sqlite:///{SECRET}.db", None])
@pytest.mark.parametrize("name", ["VIBEFORGE_SESSIONS_SCHEME", "VIBEFORGE_SESSION_DATABASE_URL"])
def test_command_line_rejects_misspelled_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str | None, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, SECRET)
    done = running.run(url, "db", "upgrade")
    assert (done.code, done.out) == (1, "")
    assert done.errors.startswith(f"error: {name}: ")
    assert f" {MISSPELLED[name]}" in done.errors
    assert SECRET not in done.errors
    assert list(tmp_path.iterdir()) == []
    assert running.run(url, "db", "upgrade", "--help").code == 0


def test_url_of_environment_is_used(monkeypatch: pytest.MonkeyPatch, sqlite_files: SQLiteFiles) -> None:
    url = sqlite_files.new_url()
    monkeypatch.setenv(URL, url)
    with open_repository() as repository:
        assert isinstance(repository, SQLAlchemySessionRepository)
        repository.create_session(full_session())
    with open_repository(url) as repository:
        assert repository.list_sessions() == [SESSION_ID]


def test_argument_overrides_environment(
    monkeypatch: pytest.MonkeyPatch, sqlite_files: SQLiteFiles, tmp_path: Path
) -> None:
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


def test_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch, sqlite_files: SQLiteFiles) -> None:
    assert isinstance(open_repository(), InMemorySessionRepository)
    monkeypatch.setenv(URL, sqlite_files.new_url())
    with open_repository() as repository:
        assert isinstance(repository, SQLAlchemySessionRepository)


def test_session_type_is_passed_to_repository(sqlite_files: SQLiteFiles) -> None:
    for url in ("memory://", sqlite_files.new_url()):
        with open_repository(url, session_type=ExtendedSession) as repository:
            assert type(repository.create_session(session_id=SESSION_ID)) is ExtendedSession
            assert type(stored(repository)) is ExtendedSession


def test_session_of_another_process_is_read(tmp_path: Path) -> None:
    code = """
from vibeforge_sessions import SessionPhase, open_repository
with open_repository() as repository:
    session = repository.create_session(session_id="other")
    session.update_phase(SessionPhase.EXECUTION)
    session.add_error("t1", "exit 1")
    repository.update_session(session)
    repository.append_log("other", "done")
"""
    run(sys.executable, "-c", code, folder=tmp_path, **{URL: "sqlite:///sessions.db", MIGRATE: "1"})
    with open_repository(url_in(tmp_path)) as repository:
        session = stored(repository, "other")
        assert (session.phase, session.version) == (SessionPhase.EXECUTION, 2)
        assert session.error_history[0].error_message == "exit 1"
        assert len(session.logs) == 1


# --- migration ---


@pytest.mark.parametrize(
    ("argument", "environment", "migrates"),
    [
        *((None, value, True) for value in ("1", "true", "True", "TRUE", "yes", "on")),
        *((None, value, False) for value in ("0", "false", "False", "no", "off", "", None)),
        *((True, value, True) for value in ("0", "false", "", None, "1")),
        *((False, value, False) for value in ("1", "true", "0", None)),
    ],
)
def test_schema_is_migrated_as_argument_or_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argument: bool | None, environment: str | None, migrates: bool
) -> None:
    if environment is not None:
        monkeypatch.setenv(MIGRATE, environment)
    url = url_in(tmp_path)
    if migrates:
        with open_repository(url, migrate=argument) as repository:
            repository.create_session(full_session())
        with open_repository(url, migrate=argument) as repository:  # the schema is already current
            assert repository.list_sessions() == [SESSION_ID]
    else:
        with pytest.raises(SchemaError) as caught:
            open_repository(url, migrate=argument)
        assert caught.value.state == "empty"


@pytest.mark.parametrize(
    "value", [SECRET, "2", "-1", "maybe", " ", "1 0"], ids=["secret", "two", "minus_one", "word", "space", "two_values"]
)
def test_invalid_boolean_setting_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    monkeypatch.setenv(MIGRATE, value)
    for url in (None, url_in(tmp_path)):
        with pytest.raises(ConfigurationError) as caught:
            open_repository(url)
        assert MIGRATE in str(caught.value)
        assert SECRET not in shown(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_schema_error_names_working_command(tmp_path: Path) -> None:
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


# --- failures ---

UNSUPPORTED = {
    "oracle": f"oracle://scott:{SECRET}@db.example/forge",
    "mysqlclient": f"mysql+mysqldb://scott:{SECRET}@db.example/forge",
    "psycopg2": f"postgresql+psycopg2://scott:{SECRET}@db.example/forge",
    "aiosqlite": f"sqlite+aiosqlite:///{SECRET}.db",
    "http": f"http://scott:{SECRET}@db.example/forge",
    "memory_with_path": f"memory://{SECRET}",
    "unknown_dialect": f"no-such-dialect://scott:{SECRET}@db.example",
    "invalid_port": f"postgresql://scott:{SECRET}@db.example:port/forge",
    "two_words": f"nonsense {SECRET}",
    "one_word": SECRET,
    "separator_only": "://",
}


@pytest.mark.parametrize("url", UNSUPPORTED.values(), ids=UNSUPPORTED)
@pytest.mark.parametrize("by_environment", [False, True], ids=["from_argument", "from_environment"])
def test_unsupported_url_is_rejected_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, by_environment: bool
) -> None:
    if by_environment:
        monkeypatch.setenv(URL, url)
    with pytest.raises(ConfigurationError) as caught:
        open_repository(None if by_environment else url, migrate=True)
    assert "sqlite" in str(caught.value)  # an example of a supported URL
    assert SECRET not in shown(caught.value)


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [("postgresql+psycopg", "psycopg"), ("mariadb+pymysql", "pymysql"), ("mysql+pymysql", "pymysql")],
)
@pytest.mark.parametrize("migrate", [False, True])
def test_unreachable_server_raises_storage_error(scheme: str, driver: str, migrate: bool) -> None:
    pytest.importorskip(driver)
    url = f"{scheme}://scott:{SECRET}@127.0.0.1:1/forge"
    with pytest.raises(StorageError) as caught:
        open_repository(url, migrate=migrate)
    assert SECRET not in shown(caught.value)
    assert isinstance(caught.value.__cause__, sqlalchemy.exc.OperationalError)


@pytest.mark.parametrize("migrate", [False, True])
def test_file_in_missing_folder_raises_storage_error(tmp_path: Path, migrate: bool) -> None:
    url = url_in(tmp_path / SECRET)  # a folder that does not exist
    with pytest.raises(StorageError) as caught:
        open_repository(url, migrate=migrate)
    assert "SQLITE_CANTOPEN" in str(caught.value)
    assert SECRET not in shown(caught.value)


@pytest.mark.parametrize("migrate", [False, True])
def test_foreign_file_raises_storage_error_and_is_not_changed(tmp_path: Path, migrate: bool) -> None:
    (tmp_path / "sessions.db").write_text("This is a text file. " * 1000)
    with pytest.raises(StorageError) as caught:
        open_repository(url_in(tmp_path), migrate=migrate)
    assert "SQLITE_NOTADB" in str(caught.value)
    assert (tmp_path / "sessions.db").read_text().startswith("This is a text file. ")


# --- closing ---


def test_close_closes_all_connections_to_the_file(tmp_path: Path) -> None:
    url = url_in(tmp_path)
    repository = open_repository(url, migrate=True)
    repository.create_session(full_session())
    assert (tmp_path / "sessions.db-wal").exists()  # exists while a connection is open
    repository.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sessions.db"]
    repository.close()
    with open_repository(url) as again:
        assert again.list_sessions() == [SESSION_ID]
        assert (tmp_path / "sessions.db-wal").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sessions.db"]


def test_failed_opening_leaves_no_connection_open(tmp_path: Path) -> None:
    with pytest.raises(SchemaError):
        open_repository(url_in(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"sessions.db"}


def test_engine_of_caller_is_not_disposed(sqlite_files: SQLiteFiles) -> None:
    engine = sqlalchemy.create_engine(sqlite_files.new_url())
    with SQLAlchemySessionRepository(engine) as repository:
        repository.create_session(full_session())
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    engine.dispose()
