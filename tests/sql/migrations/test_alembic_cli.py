"""The ``alembic`` command line with the shipped ``alembic.ini``, and the SQL that it prints."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.migrations import (
    HEAD,
    OTHER_APPLICATION,
    OTHER_TYPE,
    chain,
    committed,
    fill,
    opened,
    run_script,
    without,
)
from tests.support.preloaded import preloaded_python
from vibeforge_sessions.sql import metadata, migrate
from vibeforge_sessions.sql.tables import VERSION_TABLE

INI = migrate.script_folder() / "alembic.ini"
VARIABLE = "VIBEFORGE_SESSIONS_DATABASE_URL"
DEFAULT = "vibeforge_sessions.db"

# Runs alembic in a process that cannot import the servers' drivers.
WITHOUT_DRIVERS = """
import sys
for driver in ("psycopg", "psycopg2", "asyncpg", "pymysql", "MySQLdb", "asyncmy"):
    sys.modules[driver] = None
from alembic.config import main
main(sys.argv[1:], prog="alembic")
"""


def alembic(
    folder: Path, *arguments: str | Path, url: str | None = None, program: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
    if url is not None:
        environment[VARIABLE] = url
    command = program or (*preloaded_python(), "-m", "alembic")
    return subprocess.run(
        [*command, *(("-c", INI) if folder != INI.parent else ()), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def success_output(process: subprocess.CompletedProcess[str]) -> str:
    """Return the output of a command that succeeded."""
    assert process.returncode == 0, process.stderr
    return process.stdout


def failure_output(process: subprocess.CompletedProcess[str]) -> str:
    """Return the output of a command that failed."""
    assert process.returncode != 0, process.stdout
    return process.stdout + process.stderr


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with opened("plain", path) as engine:
        return committed(engine)


def schema(path: Path) -> list[tuple[str, ...]]:
    """Return the schema with normalized whitespace: the line breaks of `--sql` differ."""
    return [tuple(re.sub(r"\s+", " ", str(value)) for value in row) for row in contents(path)[""]]


# ------------------------------------------------------------------------------------------------------------------ URL


def from_environment(folder: Path, path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *arguments: alembic(folder, *arguments, url=f"sqlite:///{path}")


def from_argument(folder: Path, path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    other = f"sqlite:///{folder / 'ignored.db'}"
    return lambda *arguments: alembic(folder, "-x", f"url=sqlite:///{path}", *arguments, url=other)


def from_neither(folder: Path, path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    assert path == folder / DEFAULT
    return lambda *arguments: alembic(folder, *arguments)


@pytest.mark.parametrize("command", [from_environment, from_argument, from_neither])
def test_each_command_uses_configured_url(
    command: Callable[[Path, Path], Callable[..., subprocess.CompletedProcess[str]]], tmp_path: Path
) -> None:
    path = tmp_path / (DEFAULT if command is from_neither else "it's a 100% database.db")
    run = command(tmp_path, path)
    assert success_output(run("current")).strip() == ""
    assert "not up to date" in failure_output(run("check"))
    success_output(run("upgrade", "head"))
    assert success_output(run("current")).strip() == f"{HEAD} (head)"
    assert "No new upgrade operations" in success_output(run("check"))
    history = success_output(run("history"))
    assert all(f"{script.revision}" in history and script.doc in history for script in chain())
    assert HEAD in success_output(run("heads"))
    with opened("package", path) as engine:
        migrate.check(engine)
        fill(engine)
        before = committed(engine)
    success_output(run("upgrade", "head"))
    assert contents(path) == before
    success_output(run("downgrade", "base"))
    assert success_output(run("current")).strip() == ""
    assert set(contents(path)) == {"", VERSION_TABLE}
    success_output(run("upgrade", HEAD))
    assert {file.name for file in tmp_path.iterdir()} == {path.name}


def test_alembic_in_folder_of_ini_needs_no_options(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'application.db'}"
    success_output(alembic(INI.parent, "upgrade", "head", url=url))
    assert success_output(alembic(INI.parent, "current", url=url)).strip() == f"{HEAD} (head)"


# ---------------------------------------------------------------------------------------- another application's tables


def test_migrations_leave_other_tables_unchanged(tmp_path: Path) -> None:
    path = tmp_path / DEFAULT
    with opened("plain", path) as engine:
        run_script(engine, OTHER_APPLICATION)
    tables_before = contents(path)
    failure_output(alembic(tmp_path, "check"))
    success_output(alembic(tmp_path, "current"))
    assert contents(path) == tables_before
    success_output(alembic(tmp_path, "upgrade", "head"))
    success_output(alembic(tmp_path, "check"))
    assert without(contents(path), VERSION_TABLE, *metadata.tables) == tables_before
    success_output(alembic(tmp_path, "downgrade", "base"))
    assert without(contents(path), VERSION_TABLE) == tables_before


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE vibeforge_sessions ADD COLUMN colour TEXT",
        OTHER_TYPE,
        "DROP INDEX ix_vibeforge_sessions_created_at_session_id",
        "DROP TABLE vibeforge_session_logs",
    ],
    ids=["added column", "type", "missing index", "missing table"],
)
def test_check_reports_difference(change: str, tmp_path: Path) -> None:
    path = tmp_path / DEFAULT
    success_output(alembic(tmp_path, "upgrade", "head"))
    with opened("plain", path) as engine:
        run_script(engine, change)
    before = contents(path)
    assert "New upgrade operations detected" in failure_output(alembic(tmp_path, "check"))
    assert contents(path) == before


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"UPDATE {VERSION_TABLE} SET version_num = 'f00d'", "f00d"),
        ("DROP TABLE vibeforge_session_logs", ""),
    ],
    ids=["unknown revision", "missing table"],
)
@pytest.mark.parametrize("arguments", [("upgrade", "head"), ("downgrade", "base")], ids=["upgrade", "downgrade"])
def test_unknown_or_damaged_schema_stays_unchanged(
    arguments: tuple[str, str], script: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / DEFAULT
    success_output(alembic(tmp_path, "upgrade", "head"))
    with opened("package", path) as engine:
        fill(engine)
        run_script(engine, script)
    before = contents(path)
    process = alembic(tmp_path, *arguments)
    if arguments[0] == "downgrade" or message:
        assert message in failure_output(process)
    assert contents(path) == before


# The command line must check the schema status, too: a "table exists already" error would not name the cause.
def test_upgrade_with_foreign_tables_of_same_names_names_missing_version_table(tmp_path: Path) -> None:
    path = tmp_path / DEFAULT
    with opened("plain", path) as engine:
        run_script(engine, "CREATE TABLE vibeforge_sessions (x); INSERT INTO vibeforge_sessions VALUES (1)")
    before = contents(path)
    output = failure_output(alembic(tmp_path, "upgrade", "head"))
    assert contents(path) == before
    assert VERSION_TABLE in output.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------------- passwords


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3cret is not a URL", "is malformed"),
        ("postgresql://user:s3cret@host:port/db", "is malformed"),
        ("oracle://user:s3cret@host/db", "not supported"),
        ("sqlite:////no/such/s3cret/folder/x.db", "SQLITE_CANTOPEN"),
    ],
)
@pytest.mark.parametrize("by_argument", [False, True], ids=["variable", "argument"])
def test_error_for_unusable_url_does_not_show_it(url: str, message: str, by_argument: bool, tmp_path: Path) -> None:
    arguments = ("-x", f"url={url}") if by_argument else ()
    output = failure_output(alembic(tmp_path, *arguments, "upgrade", "head", url=None if by_argument else url))
    assert message in output.splitlines()[-1]
    assert "s3cret" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["postgresql", "mariadb", "mysql+pymysql"])
def test_error_for_unreachable_server_does_not_show_password(scheme: str, tmp_path: Path) -> None:
    pytest.importorskip({"postgresql": "psycopg"}.get(scheme, "pymysql"))
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # a bound port that does not listen rejects connections
        url = f"{scheme}://user:s3cret@127.0.0.1:{taken.getsockname()[1]}/db"
        output = failure_output(alembic(tmp_path, "upgrade", "head", url=url))
    assert "OperationalError" in output.splitlines()[-1]
    assert "s3cret" not in output


# -------------------------------------------------------------------------------------------------------- offline SQL


def feed_by_python(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)


def feed_by_program(path: Path, sql: str) -> None:
    program = shutil.which("sqlite3")
    if program is None:
        pytest.skip("sqlite3 is not installed")
    fed = subprocess.run([program, "-bail", path], input=sql, capture_output=True, text=True, timeout=60, check=False)
    assert (fed.returncode, fed.stderr) == (0, "")


@pytest.mark.parametrize("feed", [feed_by_python, feed_by_program])
def test_printed_sql_produces_same_schema_as_run(feed: Callable[[Path, str], None], tmp_path: Path) -> None:
    script = ("-x", "url=sqlite://")
    online, offline = tmp_path / "online.db", tmp_path / "offline.db"
    with opened("package", online) as engine:
        migrate.upgrade(engine)
    feed(offline, success_output(alembic(tmp_path, *script, "upgrade", "head", "--sql")))
    assert schema(offline) == schema(online)
    assert contents(offline)[VERSION_TABLE] == [(HEAD,)]
    with opened("package", offline) as engine:
        migrate.check(engine)
        fill(engine)
    with opened("package", online) as engine:
        migrate.downgrade(engine, "base")
    feed(offline, success_output(alembic(tmp_path, *script, "downgrade", "head:base", "--sql")))
    assert schema(offline) == schema(online)
    assert contents(offline)[VERSION_TABLE] == []


EXPECTED = {
    "postgresql": ['TEXT COLLATE "C"', "TIMESTAMP WITH TIME ZONE"],
    "mariadb": ["ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE utf8mb4_nopad_bin", "DATETIME(6)", "LONGTEXT"],
    "mysql": ["ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE utf8mb4_nopad_bin", "DATETIME(6)", "LONGTEXT"],
}


@pytest.mark.parametrize("dialect", EXPECTED)
def test_sql_for_server_is_printed_without_driver_or_connection(dialect: str, tmp_path: Path) -> None:
    program = (*preloaded_python(), "-c", WITHOUT_DRIVERS)
    url = f"{dialect}://user:s3cret@no.such.host.invalid/db"
    up = alembic(tmp_path, "upgrade", "head", "--sql", url=url, program=program)
    down = alembic(tmp_path, "downgrade", "head:base", "--sql", url=url, program=program)
    tables = {VERSION_TABLE, *metadata.tables}
    assert set(re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)", success_output(up), re.MULTILINE)) == tables
    assert set(
        re.findall(r"^(?:CREATE|.* ADD) INDEX (?:CONCURRENTLY |IF NOT EXISTS )*(\w+)", success_output(up), re.MULTILINE)
    ) == {index.name for table in metadata.tables.values() for index in table.indexes}
    assert set(re.findall(r"^DROP TABLE (?:IF EXISTS )?(\w+)", success_output(down), re.MULTILINE)) == set(
        metadata.tables
    )
    assert f"UPDATE {VERSION_TABLE} SET version_num='{HEAD}'" in success_output(up)
    assert f"DELETE FROM {VERSION_TABLE}" in success_output(down)
    for text in EXPECTED[dialect]:
        assert text in success_output(up)
    for process in (up, down):
        assert "s3cret" not in process.stdout + process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({VARIABLE: "memory://"}, "without tables"),
        ({"VIBEFORGE_SESSIONS_MIGRATE": "s3cret"}, "must be true or false"),
    ],
    ids=["URL without tables", "malformed boolean"],
)
def test_error_for_invalid_setting_has_no_traceback(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    command = [*preloaded_python(), "-m", "alembic", "-c", str(INI), "upgrade", "head"]
    process = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert message in failure_output(process)
    assert "Traceback" not in failure_output(process)
    assert "s3cret" not in failure_output(process)
    assert list(tmp_path.iterdir()) == []
