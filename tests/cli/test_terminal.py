"""Terminal safety of the `sessions` commands: escaped control characters, and reads with read-only privileges."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import make_url

from tests.cli.conftest import Cli
from tests.support.cli_runner import URL, run
from tests.support.cli_sessions import HOSTILE, UNSAFE, fill
from tests.support.repositories import text_of
from tests.support.servers import AvailableServer
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.cli.output import safe, safe_json
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.sql.tables import metadata
from vibeforge_sessions.testing.base import full_session

READING = [
    ("list",), ("list", "--all"), ("list", "--json"), ("show", "session-1"), ("show", "session-1", "--json"),
    ("errors", "session-1"), ("errors", "session-1", "--full"), ("errors", "session-1", "--json"),
    ("logs", "session-1"), ("logs", "session-1", "--full"), ("logs", "session-1", "--json"),
    ("stats",), ("stats", "--by", "hour", "--window", "2h"), ("stats", "--json"),
    ("watch", "session-1"), ("watch", "session-1", "--json"),
]  # fmt: skip


# --- escaping ---


def test_safe_escapes_control_characters_only() -> None:
    shown = safe(HOSTILE)
    assert not set(shown) & (UNSAFE | {"\n"})
    assert shown.startswith("␛[2J␛]0;title␇␛]8;;http://x␛\\ \\x9b31m \\u202egnp.exe")
    for kept in ("[bold red]markup[/]", ":smile:", "é漢😀"):
        assert kept in shown
    assert safe(HOSTILE, lines=True).endswith("\nsecond line\tof it")
    assert safe("a\r\nb\rc", lines=True) == "a\nb␍c"
    assert safe("👩\u200d💻 म\u200cन") == "👩\u200d💻 म\u200cन"
    assert safe("\ud800 \uffff") == "\\ud800 \\uffff"
    for code in range(0x110000):
        character = chr(code)
        escaped = safe(character)
        assert escaped.isprintable() or escaped in "\u200c\u200d" or unicodedata.category(escaped) == "Zs", hex(code)
        assert escaped == character or not character.isprintable(), hex(code)
    assert safe_json({"\x7f\x9b": HOSTILE}).isascii()
    assert safe_json({"\x7f\x9b": HOSTILE}).isprintable()


def store_hostile_session(cli: Cli) -> None:
    """Store a session with control characters in every text; SQL statements write those that the repository rejects."""
    session = full_session()
    session.update_phase("COMPLETE")
    cli.repository.create_session(session)
    cli.repository.append_error("session-1", HOSTILE, HOSTILE, HOSTILE)
    cli.repository.append_log("session-1", HOSTILE)
    cli.change(
        "UPDATE vibeforge_sessions SET active_task_id = :text",
        "UPDATE vibeforge_session_documents SET completed_task_ids = :ids, failed_task_ids = :ids, concept = :ids",
        "UPDATE vibeforge_session_errors SET task_id = :text, phase = :phase, error_message = :text",
        "UPDATE vibeforge_session_logs SET message = :text",
        text=HOSTILE,
        phase=HOSTILE[:60],
        ids=f"[{safe_json(HOSTILE)}]",
    )


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_output_contains_no_control_characters(sqlite_cli: Cli, command: tuple[str, ...]) -> None:
    store_hostile_session(sqlite_cli)
    if command[0] != "watch":  # `watch` ends at the phase COMPLETE
        sqlite_cli.change("UPDATE vibeforge_sessions SET phase = :phase", phase=HOSTILE[:60])
    done = sqlite_cli(*command)
    assert done.code == 0
    assert not set(done.out + done.errors) & UNSAFE
    if "--json" in command:
        assert done.out.isascii()
    elif command[0] in {"show", "errors", "logs"}:
        assert "␛[2J␛]0;title␇" in done.out
        assert "[bold red]markup[/]" in done.out
        assert ":smile:" in done.out


@pytest.mark.parametrize("given", ["", "y\n"], ids=["no_answer", "yes"])
def test_deletion_question_contains_no_control_characters(sqlite_cli: Cli, given: str) -> None:
    store_hostile_session(sqlite_cli)
    sqlite_cli.change("UPDATE vibeforge_sessions SET phase = :phase", phase=HOSTILE[:60])
    done = sqlite_cli("delete", "session-1", given=given)
    assert not set(done.out + done.errors) & UNSAFE
    assert "␛[2J" in done.errors


def test_error_messages_contain_no_control_characters(sqlite_cli: Cli) -> None:
    sqlite_cli.change("UPDATE vibeforge_sessions_alembic_version SET version_num = :text", text=HOSTILE)
    done = sqlite_cli("list")
    assert (done.code, done.out) == (5, "")
    assert "␛[2J" in done.errors
    assert not set(done.errors) & UNSAFE
    done = sqlite_cli("show", HOSTILE)
    assert done.code != 0
    assert not set(done.errors) & UNSAFE


# --- privileges ---

READER, PASSWORD = "vfs_reader", "s3cret"


def reader_of(server: AvailableServer, url: str) -> str:
    """Return the URL of a role that may only SELECT."""
    parsed = make_url(url)
    admin = server.databases.admin_url
    postgresql = parsed.get_backend_name() == "postgresql"
    create = (
        f"CREATE ROLE {READER} LOGIN PASSWORD '{PASSWORD}'"
        if postgresql
        else f"CREATE OR REPLACE USER {READER}@`%` IDENTIFIED BY '{PASSWORD}'"
    )
    engine = sqlalchemy.create_engine(parsed.set(username=admin.username, password=admin.password))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        known = postgresql and connection.exec_driver_sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{READER}'").first()
        statements = [] if known else [create]
        for name in (*metadata.tables, "vibeforge_sessions_alembic_version"):
            table = name if postgresql else f"`{parsed.database}`.{name}"
            statements.append(f"GRANT SELECT ON {table} TO {READER}" + ("" if postgresql else "@`%`"))
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    engine.dispose()
    return text_of(parsed.set(username=READER, password=PASSWORD))


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def reader(request: pytest.FixtureRequest, new_cli: Callable[[str], Cli]) -> tuple[Cli, str]:
    """Return the commands on a database with sessions, and its URL for a user with read privileges only."""
    cli = new_cli(request.param)
    session = full_session()
    session.update_phase("COMPLETE")
    cli.repository.create_session(session)
    fill(cli.repository)
    if request.param == "sqlite":
        return cli, f"sqlite:///file:{make_url(cli.url).database}?mode=ro&uri=true"
    return cli, reader_of(request.getfixturevalue(f"{request.param}_server"), cli.url)


def test_reading_commands_need_only_read_privileges(reader: tuple[Cli, str]) -> None:
    cli, url = reader
    for command in READING:
        done = run(url, "sessions", *command, VIBEFORGE_SESSIONS_MIGRATE="1")
        assert (done.code, done.errors) == (0, ""), command
        if command[0] not in {"stats", "watch"} and "--json" in command:
            assert done.out == cli(*command).out
    rejected = run(url, "sessions", "delete", "session-1", "--yes")
    assert (rejected.code, rejected.out) == (1, "")
    assert rejected.errors.startswith("error: could not use the database")
    assert rejected.errors.count("\n") == 1
    assert "s3cret" not in rejected.errors
    assert len(cli.repository.list_sessions()) == 13


def test_read_only_file_without_wal_is_listed(sqlite_cli: Cli) -> None:
    """List a database file in journal mode DELETE, as a backup creates it: switching to WAL would be a write."""
    fill(sqlite_cli.repository)
    path = make_url(sqlite_cli.url).database
    sqlite_cli.repository._transactions.bind.dispose()  # type: ignore[union-attr]
    with closing(sqlite3.connect(path or "")) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    done = run(f"sqlite:///file:{path}?mode=ro&uri=true", "sessions", "list", "--json")
    assert (done.code, done.errors, len(done.lines)) == (0, "", 12)


@pytest.mark.parametrize("command", [*READING, ("delete", "session-1", "--yes")], ids=" ".join)
def test_sessions_commands_never_migrate(sqlite: Any, tmp_path: Path, command: tuple[str, ...]) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    engine = create_engine(url)
    migrate.upgrade(engine, "vibeforge_0001")
    done = run(url, "sessions", *command, VIBEFORGE_SESSIONS_MIGRATE="1")
    assert (done.code, done.out) == (4, "")
    assert "vibeforge-sessions db upgrade" in done.errors
    assert migrate.current(engine) == "vibeforge_0001"
    engine.dispose()


# --- failures ---


@pytest.mark.parametrize("url", ["s3cret", "memory://", "oracle://u:s3cret@h/d", "postgresql://u:s3cret@127.0.0.1:1/d"])
@pytest.mark.parametrize(
    "command", [("list",), ("show", "s"), ("errors", "s"), ("logs", "s"), ("stats",), ("watch", "s"), ("delete", "s")],
    ids=" ".join,
)  # fmt: skip
def test_failure_is_one_line_without_password(url: str, command: tuple[str, ...]) -> None:
    done = run(url, "sessions", *command)
    assert (done.code, done.out) == (1, "")
    assert done.errors.startswith("error: ")
    assert done.errors.count("\n") == 1
    assert "s3cret" not in done.errors


WRONG = [
    ("list", "--order", "phase"), ("list", "--limit", "0"), ("list", "--created-from", "yesterday"),
    ("list", "--updated-before", "2026-13-01"), ("list", "--updated-from", "9999999999w"), ("list", "more"),
    ("errors", "s", "--after", "-1"), ("errors", "s", "--last", "0"), ("errors", "s", "--limit", "x"), ("errors",),
    ("stats", "--window", "soon"), ("stats", "--by", "minute"), ("stats", "--top", "0"), ("stats", "--window", "9999d"),
    ("stats", "--timeout", "0"), ("watch", "s", "--every", "0"), ("show",), ("delete",), ("nonsense",),
]  # fmt: skip


@pytest.mark.parametrize("command", WRONG, ids=" ".join)
def test_invalid_usage_exits_with_2(command: tuple[str, ...]) -> None:
    done = run("sqlite:///s3cret/no.db", "sessions", *command)
    assert (done.code, done.out) == (2, "")
    assert done.errors.startswith("Usage: ")
    assert "s3cret" not in done.errors


@pytest.mark.parametrize("cursor", ["", "x", "\x1b[31m"], ids=["empty", "letter", "control_characters"])
def test_invalid_cursor_is_one_error_line(sqlite_cli: Cli, cursor: str) -> None:
    done = sqlite_cli("list", "--cursor", cursor)
    assert (done.code, done.out) == (1, "")
    assert done.errors == "error: cursor: must be the next_cursor of a page of find_sessions\n"


# --- output streams ---


def start_command(cli: Cli, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, URL: cli.url, **more.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "vibeforge_sessions", "sessions", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def test_ascii_terminal_gets_ascii_output(sqlite_cli: Cli) -> None:
    store_hostile_session(sqlite_cli)
    for command in (("list",), ("show", "session-1"), ("stats",)):
        with start_command(sqlite_cli, *command, env={"PYTHONIOENCODING": "ascii", "COLUMNS": "120"}) as process:
            out, errors = process.communicate()
        assert (process.returncode, errors) == (0, b"")
        assert out.isascii()
        assert command[0] != "stats" or b"####" in out


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_closed_output_pipe_is_not_an_error(sqlite_cli: Cli, options: list[str]) -> None:
    fill(sqlite_cli.repository, 200)
    with start_command(sqlite_cli, "list", "--all", *options, env={"COLUMNS": "2000"}) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == b""
    assert process.returncode in {0, 1, -signal.SIGPIPE}


def test_reading_commands_change_no_session(sqlite_cli: Cli) -> None:
    fill(sqlite_cli.repository)
    before = [sqlite_cli.repository.get_record(each) for each in sqlite_cli.repository.list_sessions()]
    for command in (("list",), ("show", "s-00"), ("errors", "s-00"), ("logs", "s-00"), ("stats",), ("watch", "s-01")):
        assert sqlite_cli(*command).code == 0
    repository = SQLAlchemySessionRepository(sqlite_cli.repository._transactions.bind)
    assert [repository.get_record(each) for each in repository.list_sessions()] == before
