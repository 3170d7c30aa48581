"""The command line, as a DBA runs it: what it prints, where, and what it exits with."""

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


def run(
    folder: Path, *arguments: str, url: str | None = None, program: tuple[str, ...] = ("-m", "vibeforge_sessions")
) -> Done:
    """Run a command as a process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env={**kept, "COLUMNS": "200", **({URL: url} if url else {})},
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
        return f"sqlite:///{tmp_path}/host.db"
    server: AvailableServer = request.getfixturevalue(f"{request.param}_server")
    return text_of(server.databases.create(migrated=False))


@pytest.fixture
def db(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Db:
    """The commands in this process: a new one takes a second."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, given="": running.run(url, "db", *arguments, given=given)


def change(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


# --- where it stands ---


def test_each_state_has_its_code_and_the_command_that_comes_next(db: Db, url: str) -> None:
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
        "CREATE INDEX of_the_dba ON vibeforge_session_errors (task_id)",
    )
    found = db("status", "--json").json
    assert (found["state"], found["usable"]) == ("drifted", True)
    assert found["differences"] == ["index of_the_dba of vibeforge_session_errors is not in the models"]
    assert state() == (7, "drifted", None)
    change(url, "ALTER TABLE vibeforge_sessions DROP COLUMN active_task_id")
    found = db("status", "--json").json
    assert (found["state"], found["usable"]) == ("drifted", False)
    assert "vibeforge_sessions.active_task_id is missing" in found["differences"]
    change(url, f"UPDATE {VERSION_TABLE} SET version_num = 'f00d'")
    assert state() == (5, "ahead", "pip install --upgrade vibeforge-sessions")
    change(url, f"DELETE FROM {VERSION_TABLE}")
    assert state()[:2] == (6, "foreign")


def test_tables_of_ours_without_their_version_are_stamped(db: Db, url: str) -> None:
    assert db("upgrade").code == 0
    change(url, f"DROP TABLE {VERSION_TABLE}")
    found = db("status", "--json")
    assert (found.code, found.json["command"]) == (6, f"vibeforge-sessions db stamp {HEAD}")
    assert db(*found.json["command"].split()[2:]).code == 0
    assert db("check").code == 0
    assert db("stamp", "no-such").code == 1


# --- up, down and their SQL ---


def test_a_downgrade_says_what_is_lost_and_asks(db: Db, url: str) -> None:
    db("upgrade")
    engine = create_engine(url)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(full_session())
    for given in ("", "n\n"):
        refused = db("downgrade", "base", given=given)
        assert (refused.code, refused.out) == (1, "")
        assert "every session" in refused.errors
    stored(repository)  # it is there
    assert db("downgrade", "--yes", "--", "-1").out == f"undone {HEAD}\n"
    assert db("upgrade").out == f"upgraded to {HEAD}\n"
    stored(repository)  # it is there
    undone = db("downgrade", "base", "--json", given="y\n")
    assert undone.json == {"undone": [*reversed(LATER), FIRST], "revision": None}
    assert db("status").code == 3
    assert db("downgrade", "base", "--yes").out == ""
    assert db("downgrade", "no-such", "--yes").code == 1
    engine.dispose()


def test_a_plan_is_what_is_pending(db: Db) -> None:
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
def test_sql_takes_neither_a_driver_nor_a_connection(kind: str, tmp_path: Path) -> None:
    url = "sqlite:///no.db" if kind == "sqlite" else f"{kind}://user:s3cret@no.such.host.invalid/db"
    options = ("--sql", "--lock-timeout", "2") + (() if kind == "sqlite" else ("--statement-timeout", "30"))
    up = run(tmp_path, "db", "upgrade", *options, url=url, program=("-c", WITHOUT_DRIVERS))
    down = run(tmp_path, "db", "downgrade", "base", *options, url=url, program=("-c", WITHOUT_DRIVERS))
    part = run(tmp_path, "db", "upgrade", "--sql", "--since", FIRST, url=url, program=("-c", WITHOUT_DRIVERS))
    for each in (up, down, part):
        assert (each.code, each.errors) == (0, "")
        assert "s3cret" not in each.out
    assert up.out.count("CREATE TABLE") == 6
    assert down.out.count("DROP TABLE") >= 5
    assert part.out.count("CREATE TABLE") == 1
    waits = {
        "sqlite": [],
        "postgresql": ["SET lock_timeout = '2000ms'", "SET statement_timeout = '30000ms'"],
        "mariadb": ["SET SESSION lock_wait_timeout = 2;", "SET SESSION max_statement_time = 30"],
    }
    for wait in waits.get(kind, []):
        assert wait in up.out
        assert wait in down.out
    assert list(tmp_path.iterdir()) == []


def test_a_statement_that_takes_too_long_is_given_up(db: Db, url: str) -> None:
    options = ("--statement-timeout", "20", "--lock-timeout", "20")
    limited = db("upgrade", *options)
    if url.startswith("sqlite"):
        assert limited.code == 1
        assert "SQLite has no time limit" in limited.errors
    else:
        assert limited.code == 0
        assert db("check").code == 0


# --- waiting ---


def test_waiting_for_a_migration_of_somebody_else(db: Db, url: str) -> None:
    late = db("wait", "--timeout", "0")
    assert (late.code, late.out) == (3, "")
    environment = {**os.environ, URL: url}
    command = [sys.executable, "-m", "vibeforge_sessions", "db", "wait", "--timeout", "100"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as waiting:
        assert db("upgrade").code == 0
        said, _ = waiting.communicate()
    assert (waiting.returncode, said) == (0, f"current: this database is at revision {HEAD}\n")


# --- data ---


def test_what_cannot_be_read_is_listed(db: Db, url: str) -> None:
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


def test_a_backup_of_a_live_database(db: Db, url: str, tmp_path: Path) -> None:
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
        with closing(sqlite3.connect(tmp_path / "host.db", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert db("backup", str(tmp_path / "beside a writer.db")).code == 0
    engine.dispose()


def prepared_link(path: Path) -> None:
    path.symlink_to(path.with_name("missing"))


def prepared_file(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("prepare", [prepared_link, prepared_file])
def test_backup_rejects_a_file_that_is_there(prepare: Callable[[Path], None], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/host.db"
    assert running.run(url, "db", "upgrade").code == 0
    copy = tmp_path / "copy.db"
    prepare(copy)
    done = running.run(url, "db", "backup", str(copy))
    assert done.code == 1
    assert "exists already: name a new file" in done.errors
    assert copy.is_symlink() or copy.stat().st_size == 0
    assert not (tmp_path / "missing").exists()


def test_backup_creates_a_file_that_only_its_owner_may_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/host.db"
    assert running.run(url, "db", "upgrade").code == 0
    assert running.run(url, "db", "backup", str(tmp_path / "copy.db")).code == 0
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


def test_a_backup_that_fails_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "host.db").write_text("This is a text file. " * 1000)
    done = running.run(f"sqlite:///{tmp_path}/host.db", "db", "backup", str(tmp_path / "copy.db"))
    assert done.code == 1
    assert not (tmp_path / "copy.db").exists()


# --- the shell's side ---


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_an_environment_variable_and_help_shows_no_value(command: str) -> None:
    shown = running.run("postgresql://user:s3cret@host/db", "db", command, "--help")
    assert shown.code == 0
    assert "s3cret" not in shown.out
    options = set(re.findall(r"--[a-z-]+", shown.out)) - {"--help"}
    assert shown.out.count("env var: VIBEFORGE_SESSIONS_") >= len(options - {"--sql", "--json"})
    assert command in running.run(None, "db", "--help").out


def test_all_commands_are_tested() -> None:
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", running.run(None, "db", "--help").out, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_without_its_extra_it_names_it(tmp_path: Path) -> None:
    done = run(tmp_path, "db", "status", program=("-c", WITHOUT_TYPER))
    assert (done.code, done.out) == (1, "")
    assert "vibeforge-sessions[cli]" in done.errors
    assert "Traceback" not in done.errors


def test_without_a_url_it_names_the_variable(tmp_path: Path) -> None:
    done = run(tmp_path, "db", "status")
    assert done.code == 2
    assert URL in done.errors


@pytest.mark.parametrize(
    "url", ["s3cret", "memory://", "oracle://u:s3cret@h/d", "postgresql://u:s3cret@127.0.0.1:PORT/d"]
)
@pytest.mark.parametrize("command", ["status", "upgrade", "check", "plan", "verify-data"])
def test_a_failure_is_one_line_without_a_password(url: str, command: str, tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        done = run(tmp_path, "db", command, url=url.replace("PORT", str(taken.getsockname()[1])))
    assert (done.code, done.out) == (1, "")
    assert "Traceback" not in done.errors
    assert done.errors.strip().splitlines()[-1].startswith("error: ")
    assert "s3cret" not in done.errors


def test_the_path_is_what_alembic_takes(tmp_path: Path) -> None:
    ini = run(tmp_path, "db", "path").out.strip()
    done = run(tmp_path, "-c", ini, "heads", program=("-m", "alembic"))
    assert done.out.strip() == f"{HEAD} (vibeforge_sessions) (head)"
