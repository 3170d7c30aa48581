"""Stored text is shown and not obeyed, in every output of every command; and those who look need only look."""

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

from tests.cli.conftest import Place
from tests.support.cli_runner import URL, run
from tests.support.cli_sessions import HOSTILE, UNSAFE, fill
from tests.support.repositories import text_of
from tests.support.servers import AvailableServer
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.cli.terminal import safe, safe_json
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


# --- text ---


def test_what_is_safe() -> None:
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
        made = safe(character)
        assert made.isprintable() or made in "\u200c\u200d" or unicodedata.category(made) == "Zs", hex(code)
        assert made == character or not character.isprintable(), hex(code)
    assert safe_json({"\x7f\x9b": HOSTILE}).isascii()
    assert safe_json({"\x7f\x9b": HOSTILE}).isprintable()


def hostile(place: Place) -> None:
    """Store a session that is hostile wherever anything can be: what the repository refuses, by hand."""
    session = full_session()
    session.update_phase("COMPLETE")
    place.repository.create_session(session)
    place.repository.append_error("session-1", HOSTILE, HOSTILE, HOSTILE)
    place.repository.append_log("session-1", HOSTILE)
    place.change(
        "UPDATE vibeforge_sessions SET active_task_id = :text",
        "UPDATE vibeforge_session_documents SET completed_task_ids = :ids, failed_task_ids = :ids, concept = :ids",
        "UPDATE vibeforge_session_errors SET task_id = :text, phase = :phase, error_message = :text",
        "UPDATE vibeforge_session_logs SET message = :text",
        text=HOSTILE,
        phase=HOSTILE[:60],
        ids=f"[{safe_json(HOSTILE)}]",
    )


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_no_output_is_obeyed(on_sqlite: Place, command: tuple[str, ...]) -> None:
    hostile(on_sqlite)
    if command[0] != "watch":  # which ends with the phase
        on_sqlite.change("UPDATE vibeforge_sessions SET phase = :phase", phase=HOSTILE[:60])
    done = on_sqlite(*command)
    assert done.code == 0
    assert not set(done.out + done.errors) & UNSAFE
    if "--json" in command:
        assert done.out.isascii()
    elif command[0] in {"show", "errors", "logs"}:
        assert "␛[2J␛]0;title␇" in done.out
        assert "[bold red]markup[/]" in done.out
        assert ":smile:" in done.out


@pytest.mark.parametrize("given", ["", "y\n"])
def test_nor_is_the_question_before_a_deletion(on_sqlite: Place, given: str) -> None:
    hostile(on_sqlite)
    on_sqlite.change("UPDATE vibeforge_sessions SET phase = :phase", phase=HOSTILE[:60])
    done = on_sqlite("delete", "session-1", given=given)
    assert not set(done.out + done.errors) & UNSAFE
    assert "␛[2J" in done.errors


def test_errors_of_ours_neither(on_sqlite: Place) -> None:
    on_sqlite.change("UPDATE vibeforge_sessions_alembic_version SET version_num = :text", text=HOSTILE)
    done = on_sqlite("list")
    assert (done.code, done.out) == (5, "")
    assert "␛[2J" in done.errors
    assert not set(done.errors) & UNSAFE
    done = on_sqlite("show", HOSTILE)
    assert done.code != 0
    assert not set(done.errors) & UNSAFE


# --- rights ---

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
            place = name if postgresql else f"`{parsed.database}`.{name}"
            statements.append(f"GRANT SELECT ON {place} TO {READER}" + ("" if postgresql else "@`%`"))
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    engine.dispose()
    return text_of(parsed.set(username=READER, password=PASSWORD))


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def reader(request: pytest.FixtureRequest, new_place: Callable[[str], Place]) -> tuple[Place, str]:
    """A filled place, and the URL of somebody who may only read it."""
    place = new_place(request.param)
    session = full_session()
    session.update_phase("COMPLETE")
    place.repository.create_session(session)
    fill(place.repository)
    if request.param == "sqlite":
        return place, f"sqlite:///file:{make_url(place.url).database}?mode=ro&uri=true"
    return place, reader_of(request.getfixturevalue(f"{request.param}_server"), place.url)


def test_who_may_only_read_can_look(reader: tuple[Place, str]) -> None:
    place, url = reader
    for command in READING:
        theirs = run(url, "sessions", *command, VIBEFORGE_SESSIONS_MIGRATE="1")
        assert (theirs.code, theirs.errors) == (0, ""), command
        if command[0] not in {"stats", "watch"} and "--json" in command:
            assert theirs.out == place(*command).out
    refused = run(url, "sessions", "delete", "session-1", "--yes")
    assert (refused.code, refused.out) == (1, "")
    assert refused.errors.startswith("error: could not use the database")
    assert refused.errors.count("\n") == 1
    assert "s3cret" not in refused.errors
    assert len(place.repository.list_sessions()) == 13


def test_a_file_that_is_not_in_wal_mode_can_be_read_only(on_sqlite: Place) -> None:
    """Copied by a backup, say: to bring WAL back would be to write."""
    fill(on_sqlite.repository)
    path = make_url(on_sqlite.url).database
    on_sqlite.repository._transactions.bind.dispose()  # type: ignore[union-attr]
    with closing(sqlite3.connect(path or "")) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    done = run(f"sqlite:///file:{path}?mode=ro&uri=true", "sessions", "list", "--json")
    assert (done.code, done.errors, len(done.lines)) == (0, "", 12)


@pytest.mark.parametrize("command", [*READING, ("delete", "session-1", "--yes")], ids=" ".join)
def test_nothing_is_migrated(sqlite: Any, tmp_path: Path, command: tuple[str, ...]) -> None:
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
def test_a_failure_is_one_line_without_a_password(url: str, command: tuple[str, ...]) -> None:
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
def test_wrong_usage(command: tuple[str, ...]) -> None:
    done = run("sqlite:///s3cret/no.db", "sessions", *command)
    assert (done.code, done.out) == (2, "")
    assert done.errors.startswith("Usage: ")
    assert "s3cret" not in done.errors


@pytest.mark.parametrize("cursor", ["", "x", "\x1b[31m"])
def test_a_wrong_cursor(on_sqlite: Place, cursor: str) -> None:
    done = on_sqlite("list", "--cursor", cursor)
    assert (done.code, done.out) == (1, "")
    assert done.errors == "error: cursor: must be the next_cursor of a page of find_sessions\n"


# --- the other end of the pipe ---


def started(place: Place, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, URL: place.url, **more.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "vibeforge_sessions", "sessions", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def test_a_terminal_of_ascii(on_sqlite: Place) -> None:
    hostile(on_sqlite)
    for command in (("list",), ("show", "session-1"), ("stats",)):
        with started(on_sqlite, *command, env={"PYTHONIOENCODING": "ascii", "COLUMNS": "120"}) as process:
            out, errors = process.communicate()
        assert (process.returncode, errors) == (0, b"")
        assert out.isascii()
        assert command[0] != "stats" or b"####" in out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_somebody_who_has_seen_enough(on_sqlite: Place, options: list[str]) -> None:
    fill(on_sqlite.repository, 200)
    with started(on_sqlite, "list", "--all", *options, env={"COLUMNS": "2000"}) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == b""
    assert process.returncode in {0, 1, -signal.SIGPIPE}


def test_without_hands_off(on_sqlite: Place) -> None:
    """What was looked at is as it was."""
    fill(on_sqlite.repository)
    before = [on_sqlite.repository.get_record(each) for each in on_sqlite.repository.list_sessions()]
    for command in (("list",), ("show", "s-00"), ("errors", "s-00"), ("logs", "s-00"), ("stats",), ("watch", "s-01")):
        assert on_sqlite(*command).code == 0
    repository = SQLAlchemySessionRepository(on_sqlite.repository._transactions.bind)
    assert [repository.get_record(each) for each in repository.list_sessions()] == before
