"""Concurrent processes on one database, and acknowledged writes of a process that is killed."""

from __future__ import annotations

import subprocess
from collections import Counter
from contextlib import AbstractContextManager, ExitStack

import pytest

from tests.support.processes import begin, read_line, started
from vibeforge_sessions import open_repository

PROCESSES = 20
ROUNDS = 5


def worker(task: str, url: str, name: str, count: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start a process that waits for a line on its standard input before it begins."""
    return started("tests.support.worker", task, url, "shared", name, str(count))


def test_writes_of_twenty_processes_are_all_stored_once(url: str) -> None:
    with open_repository(url) as repository:
        repository.create_session(session_id="shared")
    with ExitStack() as stack:
        processes = [
            stack.enter_context(worker("append_and_update", url, f"w{number}", ROUNDS)) for number in range(PROCESSES)
        ]
        for process in processes:
            assert read_line(process) == "ready"
        for process in processes:
            begin(process)
        for process in processes:
            _, errors = process.communicate()
            assert (process.returncode, errors) == (0, "")
    total = PROCESSES * ROUNDS
    with open_repository(url) as repository:
        session = repository.get_session("shared")
    assert session is not None
    assert len(session.answers) == total
    assert session.version == total + 1
    assert [entry.position for entry in session.error_history] == list(range(1, total + 1))
    assert Counter(entry.task_id for entry in session.error_history) == {f"w{w}": ROUNDS for w in range(PROCESSES)}
    assert len(set(session.logs)) == len(session.logs) == total


@pytest.mark.parametrize("acknowledged", [1, 2, 7, 30])
def test_acknowledged_writes_survive_sigkill(url: str, acknowledged: int) -> None:
    with open_repository(url) as repository:
        repository.create_session(session_id="shared")
    with worker("append_until_killed", url, "w", 0) as process:
        assert read_line(process) == "ready"
        begin(process)
        lines = [read_line(process) for _ in range(acknowledged)]
        process.kill()
        assert process.stdout is not None
        lines += process.stdout.read().split("\n")
        process.wait()
    reports = [line.split() for line in lines if line]
    appended = max(int(number) for action, number in reports if action == "appended")
    updated = max([int(number) for action, number in reports if action == "updated"], default=1)
    with open_repository(url) as repository:
        session = repository.get_session("shared")
        assert session is not None
        # one more write of each kind may have been committed without an acknowledgment
        assert len(session.error_history) in {appended, appended + 1}
        assert session.version in {updated, updated + 1}
        assert [entry.position for entry in session.error_history] == list(range(1, len(session.error_history) + 1))
        if session.version > 1:  # each update is complete: documents, log and version
            assert session.answers == {"w": session.version - 1}
            assert session.concept == {"version": session.version - 1}
            assert [line.split("] ")[1] for line in session.logs] == [str(n) for n in range(1, session.version)]
        assert repository.append_error("shared", "t", "after the kill").position == len(session.error_history) + 1
