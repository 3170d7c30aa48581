"""A worker process for `test_processes`: ``python -m tests.support.worker TASK URL SESSION_ID NAME COUNT``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from vibeforge_sessions import Session, SessionRepository, open_repository


def append_and_update(repository: SessionRepository, session_id: str, name: str, count: int) -> None:
    """Append errors and logs and update the session, `count` times each."""
    for number in range(count):
        repository.append_error(session_id, name, str(number))
        repository.append_log(session_id, f"{name} {number}")
        answer = functools.partial(Session.add_answer, question_id=f"{name}.{number}", answer=number)
        repository.modify_session(session_id, answer, attempts=10_000)


def append_until_killed(repository: SessionRepository, session_id: str, name: str, _: int) -> None:
    """Write without end, and print each acknowledgment."""
    session = repository.get_session(session_id)
    assert session is not None
    while True:
        entry = repository.append_error(session_id, name, "x" * 1000)
        # one write per line, because the process may be killed between two writes
        print(f"appended {entry.position}\n", end="", flush=True)
        session.add_answer(name, entry.position)
        session.concept = {"version": entry.position}
        session.add_log(f"{entry.position}")
        repository.update_session(session)
        print(f"updated {session.version}\n", end="", flush=True)


TASKS: dict[str, Callable[[SessionRepository, str, str, int], None]] = {
    "append_and_update": append_and_update,
    "append_until_killed": append_until_killed,
}

if __name__ == "__main__":
    task, url, session_id, name, count = sys.argv[1:]
    with open_repository(url) as repository:
        print("ready", flush=True)
        sys.stdin.readline()  # so that all workers begin together
        TASKS[task](repository, session_id, name, int(count))
