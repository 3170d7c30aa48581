"""SQLite and ``kill -9``: acknowledged writes are stored exactly once, and the file stays intact."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support import cases
from tests.support.faults.sqlite_writers import OPERATIONS, SHARED, Written, state_after
from tests.support.repositories import SQLiteFiles
from vibeforge_sessions import Session, SessionRepository, open_repository
from vibeforge_sessions.testing.base import stored

ROUNDS = int(os.environ.get("VIBEFORGE_SESSIONS_TEST_KILLS", "200"))
FILES = 8
"""Files per run. Each file is used in many rounds: writes of the first round must still exist after the last."""
AFTERWARDS = "afterwards"


@contextmanager
def launcher(seed: str) -> Iterator[subprocess.Popen[str]]:
    """Start the process that forks the writers."""
    command = [sys.executable, "-m", "tests.support.faults.sqlite_writers", seed]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


def run_round(process: subprocess.Popen[str], url: str, name: str) -> list[int]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{url} {name}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, "a writer has failed without being killed: see the output above"
    acknowledged: list[int] = json.loads(line)
    return acknowledged


@pytest.mark.parametrize("number", cases(range(FILES), (0,)))
def test_acknowledged_writes_are_stored_once_after_kill_of_four_writers(
    sqlite_files: SQLiteFiles, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "sessions.db"  # on a real disk, where a kill can interrupt a sync
    url = f"sqlite:///{path}"
    shutil.copyfile(sqlite_files.new_url().removeprefix("sqlite:///"), path)
    with open_repository(url) as repository:
        repository.create_session(session_id=SHARED)
    known: dict[str, dict[str, Written]] = {}
    with launcher(str(number)) as process:
        for name in range(ROUNDS // FILES):
            acknowledged = run_round(process, url, str(name))
            with open_repository(url) as repository:  # the first connection recovers the file
                repository.append_log(SHARED, f"{AFTERWARDS}.{name}")
                found = everything(repository)
            for writer, count in enumerate(acknowledged):
                known[f"{name}.{writer}"] = state_left_by(found, f"{name}.{writer}", count)
            check(found, known, rounds=name + 1)
            check_file(path)
    # at least one writer has acknowledged every kind of operation
    assert max(int(token.split(".")[2]) for state in known.values() for token in state[SHARED].errors) > OPERATIONS


def everything(repository: SessionRepository) -> dict[str, Written]:
    return {session_id: written(stored(repository, session_id)) for session_id in repository.list_sessions()}


def written(session: Session) -> Written:
    assert [entry.position for entry in session.error_history] == list(range(1, len(session.error_history) + 1))
    return Written(
        version=session.version,
        concept=None if session.concept is None else session.concept["token"],
        answers=[name for name in session.answers if name != "size"],
        errors=[entry.task_id for entry in session.error_history],
        logs=[line.split("] ", 1)[1] for line in session.logs],
    )


def state_left_by(found: dict[str, Written], name: str, acknowledged: int) -> dict[str, Written]:
    """Return what a killed writer has left: its interrupted operation is stored completely, or not at all."""
    own = part_of(found, name)
    assert own in (state_after(name, acknowledged), state_after(name, acknowledged + 1))
    return own


def part_of(found: dict[str, Written], name: str) -> dict[str, Written]:
    """Return what one writer has left in the database."""

    def own(tokens: list[str]) -> list[str]:
        return [token for token in tokens if token.startswith(f"{name}.")]

    shared = found[SHARED]
    answers = own(shared.answers)
    shared_part = Written(1 + len(answers), None, answers, own(shared.errors), own(shared.logs))
    return {SHARED: shared_part} | {key: found[key] for key in own(list(found))}


def check(found: dict[str, Written], known: dict[str, dict[str, Written]], rounds: int) -> None:
    """Assert that the state of this and all earlier rounds is stored exactly once, and nothing else."""
    for name, state in known.items():
        assert part_of(found, name) == state
    assert found.keys() == {key for state in known.values() for key in state}
    shared, parts = found[SHARED], [state[SHARED] for state in known.values()]
    assert shared.version == 1 + len(shared.answers)
    assert len(shared.answers) == sum(len(part.answers) for part in parts)
    assert len(shared.errors) == sum(len(part.errors) for part in parts)
    assert len(shared.logs) == sum(len(part.logs) for part in parts) + rounds
    assert [log for log in shared.logs if log.startswith(AFTERWARDS)] == [f"{AFTERWARDS}.{n}" for n in range(rounds)]


def check_file(path: Path) -> None:
    """Assert that the file is intact for SQLite, and that its tables are consistent."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        for table, count in (("session_errors", "error_count"), ("session_logs", "log_count")):
            entries = (
                "SELECT session_id, count(*) AS n, min(position) AS least, max(position) AS most"
                f" FROM vibeforge_{table} GROUP BY session_id"
            )
            wrong = connection.execute(
                f"SELECT * FROM vibeforge_sessions LEFT JOIN ({entries}) USING (session_id)"
                f" WHERE {count} <> coalesce(n, 0) OR n <> most OR least <> 1"
            )
            assert wrong.fetchall() == []
        alone = "SELECT session_id FROM vibeforge_sessions EXCEPT SELECT session_id FROM vibeforge_session_documents"
        assert connection.execute(alone).fetchall() == []
