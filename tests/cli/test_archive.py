"""The commands `vibeforge-sessions sessions export`, `import` and `copy`."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.archive.test_application import STATE
from tests.support.archives import exported, fill, filled_archive, imported
from tests.support.cli_runner import run
from vibeforge_sessions import InMemorySessionRepository, SessionRepository, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate

COMMANDS = ["export", "import", "copy"]


def export_of(url: str) -> bytes:
    """Return all sessions of a database as an archive."""
    engine = create_engine(url)
    try:
        return exported(SQLAlchemySessionRepository(engine))
    finally:
        engine.dispose()


def migrated(url: str, count: int = 0) -> str:
    """Create the tables and the given number of sessions, and return the URL."""
    engine = create_engine(url)
    migrate.upgrade(engine)
    if count:
        fill(SQLAlchemySessionRepository(engine), count)
    engine.dispose()
    return url


def append_log(url: str, session_id: str) -> None:
    engine = create_engine(url)
    SQLAlchemySessionRepository(engine).append_log(session_id, "more")
    engine.dispose()


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a migrated database without sessions."""
    new_url: str = request.getfixturevalue(request.param).new_url()
    return new_url


def in_memory(archive: bytes) -> SessionRepository:
    repository = InMemorySessionRepository()
    assert imported(archive, repository).failed == 0
    return repository


def test_exported_file_is_imported_into_other_database(url: str, tmp_path: Path) -> None:
    migrated(url, 3)
    archive, other = tmp_path / "sessions.jsonl.gz", migrated(f"sqlite:///{tmp_path}/other.db")
    done = run(url, "sessions", "export", str(archive))
    assert (done.code, done.out) == (0, "sessions: 4 exported; with 3 errors and 3 log lines\n")
    assert gzip.decompress(archive.read_bytes()) == export_of(url)
    done = run(other, "sessions", "import", str(archive), "--json")
    assert (done.code, done.json[0]["file"], done.json[0]["created"]) == (0, str(archive), 4)
    assert export_of(other) == export_of(url)


def test_existing_sessions_and_files_are_not_replaced_by_default(tmp_path: Path) -> None:
    url, archive = migrated(f"sqlite:///{tmp_path}/a.db", 3), tmp_path / "sessions.jsonl.gz"
    archive.write_bytes(gzip.compress(export_of(url)))
    done = run(url, "sessions", "import", str(archive))
    assert (done.code, done.out) == (0, "sessions: 4 unchanged; with 0 errors and 0 log lines\n")
    done = run(url, "sessions", "export", str(archive))
    assert (done.code, done.out) == (1, "")
    assert done.errors.splitlines()[-1].startswith("error: a file with this name already exists")
    options = ("--overwrite", "--no-gzip", "--phase", "QUESTIONNAIRE", "--no-errors", "--json")
    done = run(url, "sessions", "export", str(archive), *options)
    assert (done.code, done.json["exported"]) == (0, 1)
    assert in_memory(archive.read_bytes()).list_sessions() == ["empty"]


def test_second_copy_reports_conflict(url: str, tmp_path: Path) -> None:
    source = migrated(f"sqlite:///{tmp_path}/source.db", 3)
    done = run("", "sessions", "copy", "--from", source, "--to", url)
    assert (done.code, done.out) == (0, "sessions: 4 created; with 3 errors and 3 log lines\n")
    append_log(source, "s1")
    append_log(url, "s2")
    done = run("", "sessions", "copy", "--from", source, "--to", url, "--json", "--thorough")
    assert (done.code, done.json["replaced"], done.json["unchanged"], done.json["failed"]) == (8, 1, 2, 1)
    assert "failed: session 's2': the target has a different session with this id" in done.errors
    engine = create_engine(url)
    SQLAlchemySessionRepository(engine).delete_session("s2")
    engine.dispose()
    done = run("", "sessions", "copy", "--from", source, "--to", url, "--on-conflict", "replace")
    assert (done.code, export_of(url)) == (0, export_of(source))


def test_application_files_are_imported(tmp_path: Path) -> None:
    url = migrated(f"sqlite:///{tmp_path}/a.db")
    for number in range(3):
        (tmp_path / f"{number}.json").write_text(json.dumps({**STATE, "session_id": str(number)}, indent=2))
    (tmp_path / "3.json").write_text('{"precious": 1}')
    files = [f"{number}.json" for number in range(4)]
    done = run(url, "sessions", "import", *files, "missing")
    assert (done.code, done.out) == (8, "sessions: 3 created, 2 failed; with 3 errors and 3 log lines\n")
    assert "failed: 3.json: line 1: is not a line of an archive" in done.errors
    assert "failed: missing: a file cannot be read or written: No such file or directory" in done.errors
    stopped = run(url, "sessions", "import", "missing", *files, "--stop-on-error")
    assert (stopped.code, stopped.out) == (1, "")


def test_export_and_import_use_standard_streams(tmp_path: Path) -> None:
    source, target = (migrated(f"sqlite:///{tmp_path}/{name}.db", count) for name, count in (("a", 2), ("b", 0)))
    done = run(source, "sessions", "export", "-", "--json")
    assert done.out.encode() == export_of(source)
    assert '"exported": 3' in done.errors
    done = run(target, "sessions", "import", "-", given=done.out.encode())
    assert (done.code, export_of(target)) == (0, export_of(source))


def test_damaged_file_is_reported_without_its_content(tmp_path: Path) -> None:
    lines = filled_archive()
    lines[5] = lines[5].replace(b'"phase":"', b'"phase":"\\u001b[31m')
    (tmp_path / "a\x1b[31m").write_bytes(b"".join(lines))
    url = migrated(f"sqlite:///{tmp_path}/a.db")
    done = run(url, "sessions", "import", "a\x1b[31m")
    assert done.code == 8
    assert "failed: a␛[31m: line 6: session 's1': is the header of a session that cannot be stored" in done.errors
    assert "\x1b[31m" not in done.out + done.errors
    assert "s3cret" not in done.errors


def test_database_without_tables_is_rejected(tmp_path: Path) -> None:
    empty = f"sqlite:///{tmp_path}/empty.db"
    full = migrated(f"sqlite:///{tmp_path}/full.db", 1)
    for arguments in (("export", "x"), ("import", "x"), ("copy", "--from", full, "--to", empty)):
        done = run(empty, "sessions", *arguments)
        assert (done.code, done.out) == (3, "")
        assert "vibeforge-sessions db upgrade" in done.errors
    assert not (tmp_path / "x").exists()
    assert run("", "sessions", "copy", "--from", full, "--to", full).code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_an_environment_variable_and_help_shows_no_value(command: str, tmp_path: Path) -> None:
    shown = run("postgresql://user:s3cret@host/db", "sessions", command, "--help")
    assert shown.code == 0
    assert "s3cret" not in shown.out
    options = set(re.findall(r"--[a-z-]+", shown.out)) - {"--help", "--no-errors", "--no-gzip"}
    assert shown.out.count("env var: VIBEFORGE_SESSIONS_") >= len(options)


def test_password_is_not_printed(tmp_path: Path) -> None:
    url = "postgresql://user:s3cret@127.0.0.1:1/db"
    for arguments in (("import", "x"), ("copy", "--from", url, "--to", f"{url}2")):
        done = run(url, "sessions", *arguments)
        assert (done.code, done.out) == (1, "")
        assert "s3cret" not in done.errors
        assert "Traceback" not in done.errors


def test_interrupted_export_leaves_no_file(tmp_path: Path) -> None:
    migrated(f"sqlite:///{tmp_path}/a.db", 20)
    program = (
        "import os, signal, sys\n"
        "from vibeforge_sessions.archive import exporting\n"
        "export = exporting._export\n"
        "exporting._export = lambda *args: (os.kill(os.getpid(), signal.SIGINT), export(*args))\n"
        "from vibeforge_sessions.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, "sessions", "export", "x", "--url", f"sqlite:///{tmp_path}/a.db"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("x*")) == []
    assert run(f"sqlite:///{tmp_path}/a.db", "sessions", "export", "x").code == 0
    assert sorted(path.name for path in tmp_path.glob("x*")) == ["x"]
