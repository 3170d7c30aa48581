"""The `vibeforge-sessions db` commands: their effects, output and exit codes."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support import cli_runner as running
from tests.support.cli_runner import URL, Done
from tests.support.migrations import HEAD, chain
from tests.support.preloaded import preloaded_python
from tests.support.repositories import text_of
from tests.support.servers import AvailableServer
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.sql.tables import VERSION_TABLE
from vibeforge_sessions.testing.base import full_session, stored

FIRST, *LATER = [str(script.revision) for script in chain()]
COMMANDS = [
    "status", "upgrade", "downgrade", "plan", "check", "wait", "stamp", "history", "path", "grants", "verify-data",
    "backup",
]  # fmt: skip
WITHOUT_DRIVERS = """
import sys
for driver in ("psycopg", "asyncpg", "pymysql", "asyncmy"):
    sys.modules[driver] = None
from vibeforge_sessions.cli import main
main()
"""
WITHOUT_TYPER = "import sys; sys.modules['typer'] = None; from vibeforge_sessions.cli import main; main()"


def run(folder: Path, *arguments: str, url: str | None = None, program: tuple[str, ...] = ()) -> Done:
    """Run a command in a new process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
    done = subprocess.run(
        [*(program or (*preloaded_python(), "-m", "vibeforge_sessions")), *arguments],
        cwd=folder,
        env={**environment, "COLUMNS": "200", **({URL: url} if url else {})},
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


Db = Callable[..., Done]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/application.db"
    server: AvailableServer = request.getfixturevalue(f"{request.param}_server")
    return text_of(server.databases.create(migrated=False))


@pytest.fixture
def db(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Db:
    """Return a function that runs a command in this process, because a new one takes a second."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, given="": running.run(url, "db", *arguments, given=given)


def change(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


# --- status ---


def test_status_reports_exit_code_and_next_command_of_each_state(db: Db, url: str) -> None:
    def state() -> tuple[int, str, str | None]:
        found = db("status", "--json")
        assert found.errors == ""
        checked = db("check")
        assert (checked.code == 0) == (found.json["state"] == "current")
        assert checked.code in {0, found.code}
        return found.code, found.json["state"], found.json["command"]

    assert state() == (3, "empty", "vibeforge-sessions db upgrade")
    assert db("upgrade", FIRST).code == 0
    assert state() == (4, "behind", "vibeforge-sessions db upgrade")
    assert db("upgrade").out == "".join(f"upgraded to {revision}\n" for revision in LATER)
    assert db("upgrade").out == ""
    assert state() == (0, "current", None)
    change(
        url,
        "CREATE INDEX index_of_dba ON vibeforge_session_errors (task_id)",
    )
    found = db("status", "--json").json
    assert (found["state"], found["usable"]) == ("drifted", True)
    assert found["differences"] == ["index index_of_dba of vibeforge_session_errors is not in the models"]
    assert state() == (7, "drifted", None)
    change(url, "ALTER TABLE vibeforge_sessions DROP COLUMN active_task_id")
    found = db("status", "--json").json
    assert (found["state"], found["usable"]) == ("drifted", False)
    assert "vibeforge_sessions.active_task_id is missing" in found["differences"]
    change(url, f"UPDATE {VERSION_TABLE} SET version_num = 'f00d'")
    assert state() == (5, "ahead", "pip install --upgrade vibeforge-sessions")
    change(url, f"DELETE FROM {VERSION_TABLE}")
    assert state()[:2] == (6, "foreign")


def test_tables_without_version_table_are_stamped(db: Db, url: str) -> None:
    assert db("upgrade").code == 0
    change(url, f"DROP TABLE {VERSION_TABLE}")
    found = db("status", "--json")
    assert (found.code, found.json["command"]) == (6, f"vibeforge-sessions db stamp {HEAD}")
    assert db(*found.json["command"].split()[2:]).code == 0
    assert db("check").code == 0
    assert db("stamp", "no-such").code == 1


# --- upgrade, downgrade and their SQL ---


def test_downgrade_names_lost_data_and_asks_for_confirmation(db: Db, url: str) -> None:
    db("upgrade")
    engine = create_engine(url)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(full_session())
    for given in ("", "n\n"):
        declined = db("downgrade", "base", given=given)
        assert (declined.code, declined.out) == (1, "")
        assert "every session" in declined.errors
    stored(repository)  # raises if the session is missing
    assert db("downgrade", "--yes", "--", "-1").out == f"undone {HEAD}\n"
    assert db("upgrade").out == f"upgraded to {HEAD}\n"
    stored(repository)  # raises if the session is missing
    undone = db("downgrade", "base", "--json", given="y\n")
    assert undone.json == {"undone": [*reversed(LATER), FIRST], "revision": None}
    assert db("status").code == 3
    assert db("downgrade", "base", "--yes").out == ""
    assert db("downgrade", "no-such", "--yes").code == 1
    engine.dispose()


def test_plan_lists_pending_migrations(db: Db) -> None:
    assert [each["revision"] for each in db("plan", "--json").json] == [script.revision for script in chain()]
    db("upgrade", FIRST)
    planned = db("plan", "--json").json
    assert [each["revision"] for each in planned] == LATER
    assert [each["loses"] for each in planned] == [None, "which sessions are held"]
    assert "ShareUpdateExclusiveLock" in db("plan").out
    assert db("upgrade", "--json").json == {"upgraded": LATER, "revision": HEAD}
    assert db("plan", "--json").json == []
    assert [each["revision"] for each in db("history", "--json").json] == [script.revision for script in chain()]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb", "mysql"])
def test_sql_option_needs_neither_driver_nor_connection(kind: str, tmp_path: Path) -> None:
    url = "sqlite:///no.db" if kind == "sqlite" else f"{kind}://user:s3cret@no.such.host.invalid/db"
    options = ("--sql", "--lock-timeout", "2") + (() if kind == "sqlite" else ("--statement-timeout", "30"))
    program = (*preloaded_python(), "-c", WITHOUT_DRIVERS)
    up = run(tmp_path, "db", "upgrade", *options, url=url, program=program)
    down = run(tmp_path, "db", "downgrade", "base", *options, url=url, program=program)
    partial = run(tmp_path, "db", "upgrade", "--sql", "--since", FIRST, url=url, program=program)
    for each in (up, down, partial):
        assert (each.code, each.errors) == (0, "")
        assert "s3cret" not in each.out
    assert up.out.count("CREATE TABLE") == 6
    assert down.out.count("DROP TABLE") >= 5
    assert partial.out.count("CREATE TABLE") == 1
    waits = {
        "sqlite": [],
        "postgresql": ["SET lock_timeout = '2000ms'", "SET statement_timeout = '30000ms'"],
        "mariadb": ["SET SESSION lock_wait_timeout = 2;", "SET SESSION max_statement_time = 30"],
    }
    for wait in waits.get(kind, []):
        assert wait in up.out
        assert wait in down.out
    assert list(tmp_path.iterdir()) == []


def test_statement_timeout_is_rejected_on_sqlite_and_accepted_elsewhere(db: Db, url: str) -> None:
    options = ("--statement-timeout", "20", "--lock-timeout", "20")
    limited = db("upgrade", *options)
    if url.startswith("sqlite"):
        assert limited.code == 1
        assert "SQLite has no time limit" in limited.errors
    else:
        assert limited.code == 0
        assert db("check").code == 0


# --- waiting ---


def test_wait_ends_after_migration_by_another_process(db: Db, url: str) -> None:
    late = db("wait", "--timeout", "0")
    assert (late.code, late.out) == (3, "")
    environment = {**os.environ, URL: url}
    command = [*preloaded_python(), "-m", "vibeforge_sessions", "db", "wait", "--timeout", "100"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as waiting:
        assert db("upgrade").code == 0
        output, _ = waiting.communicate()
    assert (waiting.returncode, output) == (0, f"current: this database is at revision {HEAD}\n")


# --- data ---


def test_verify_data_lists_unreadable_sessions(db: Db, url: str) -> None:
    db("upgrade")
    engine = create_engine(url)
    repository = SQLAlchemySessionRepository(engine)
    for number in range(7):
        repository.create_session(full_session(f"s{number}"))
    assert db("verify-data", "--json").json == []
    change(
        url,
        "UPDATE vibeforge_sessions SET phase = 'NO_SUCH' WHERE session_id = 's2'",
        "UPDATE vibeforge_session_documents SET concept = '{\"s3cret' WHERE session_id = 's5'",
        "DELETE FROM vibeforge_session_errors WHERE session_id = 's6'",
    )
    found = db("verify-data", "--json", "--batch", "2")
    assert found.code == 8
    assert [each["session_id"] for each in found.json] == ["s2", "s5", "s6"]
    assert "s3cret" not in found.out
    assert db("verify-data").out.splitlines()[0].startswith("s2: ")
    wider = db("verify-data", "--session-type", "vibeforge_sessions.testing.subclasses:ExtendedSession")
    assert wider.code == 8
    for wrong in ("no.such:Session", "vibeforge_sessions:ErrorEntry", "nonsense"):
        assert db("verify-data", "--session-type", wrong).code == 2
    engine.dispose()


def test_backup_copies_database_in_use(db: Db, url: str, tmp_path: Path) -> None:
    db("upgrade")
    engine = create_engine(url)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(full_session())
    copy = tmp_path / "it's a copy.db"
    done = db("backup", str(copy))
    if not url.startswith("sqlite"):
        assert (done.code, done.out) == (1, "")
        assert ("pg_dump" if "postgresql" in url else "mariadb-dump") in done.errors
    else:
        assert (done.code, done.out, done.errors) == (0, "", "")
        other = create_engine(f"sqlite:///{copy}")
        migrate.check_schema(other, exact=True)
        assert stored(SQLAlchemySessionRepository(other)) == stored(repository)
        other.dispose()
        assert db("backup", str(copy)).code == 1
        assert db("backup", str(tmp_path / "no folder" / "x.db")).code == 1
        with closing(sqlite3.connect(tmp_path / "application.db", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert db("backup", str(tmp_path / "during a transaction.db")).code == 0
    engine.dispose()


def symbolic_link(path: Path) -> None:
    path.symlink_to(path.with_name("missing"))


def empty_file(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("prepare", [symbolic_link, empty_file])
def test_backup_rejects_existing_file(prepare: Callable[[Path], None], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/application.db"
    assert running.run(url, "db", "upgrade").code == 0
    copy = tmp_path / "copy.db"
    prepare(copy)
    done = running.run(url, "db", "backup", str(copy))
    assert done.code == 1
    assert "already exists: name a new file" in done.errors
    assert copy.is_symlink() or copy.stat().st_size == 0
    assert not (tmp_path / "missing").exists()


def test_backup_is_readable_by_owner_only(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/application.db"
    assert running.run(url, "db", "upgrade").code == 0
    assert running.run(url, "db", "backup", str(tmp_path / "copy.db")).code == 0
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


def test_failed_backup_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "application.db").write_text("This is a text file. " * 1000)
    done = running.run(f"sqlite:///{tmp_path}/application.db", "db", "backup", str(tmp_path / "copy.db"))
    assert done.code == 1
    assert not (tmp_path / "copy.db").exists()


# --- options and failures ---


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_an_environment_variable_and_help_shows_no_value(command: str) -> None:
    shown = running.run("postgresql://user:s3cret@host/db", "db", command, "--help")
    assert shown.code == 0
    assert "s3cret" not in shown.out
    options = set(re.findall(r"--[a-z-]+", shown.out)) - {"--help"}
    assert shown.out.count("env var: VIBEFORGE_SESSIONS_") >= len(options - {"--sql", "--json"})
    assert command in running.run(None, "db", "--help").out


def test_every_command_is_tested() -> None:
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", running.run(None, "db", "--help").out, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_command_without_typer_names_missing_extra(tmp_path: Path) -> None:
    done = run(tmp_path, "db", "status", program=(sys.executable, "-c", WITHOUT_TYPER))
    assert (done.code, done.out) == (1, "")
    assert "vibeforge-sessions[cli]" in done.errors
    assert "Traceback" not in done.errors


def test_command_without_url_names_environment_variable(tmp_path: Path) -> None:
    done = run(tmp_path, "db", "status")
    assert done.code == 2
    assert URL in done.errors


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("s3cret", "status"),
        ("memory://", "upgrade"),
        ("oracle://u:s3cret@h/d", "check"),
        *(
            ("postgresql://u:s3cret@127.0.0.1:PORT/d", command)
            for command in ("status", "upgrade", "check", "plan", "verify-data")
        ),
    ],
)
def test_failure_is_one_line_without_password(url: str, command: str, tmp_path: Path) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        done = run(tmp_path, "db", command, url=url.replace("PORT", str(unused.getsockname()[1])))
    assert (done.code, done.out) == (1, "")
    assert "Traceback" not in done.errors
    assert done.errors.strip().splitlines()[-1].startswith("error: ")
    assert "s3cret" not in done.errors


def test_path_command_prints_configuration_for_alembic(tmp_path: Path) -> None:
    ini = run(tmp_path, "db", "path").out.strip()
    done = run(tmp_path, "-c", ini, "heads", program=(*preloaded_python(), "-m", "alembic"))
    assert done.out.strip() == f"{HEAD} (vibeforge_sessions) (head)"
