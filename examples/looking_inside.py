"""Output of ``vibeforge-sessions sessions`` for the documentation: ``python examples/looking_inside.py``.

The program creates the same sessions on each run, in its own SQLite file, sets the clock to a fixed time, and runs the
commands. docs/looking-inside.md shows the output. ``--keep PATH`` writes the file to that path and keeps it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vibeforge_sessions import ErrorEntry, Session, SessionPhase, open_repository
from vibeforge_sessions.cli import main
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.spi import Record, changeset_for_create

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
COMMANDS = (
    "list --phase EXECUTION --limit 5",
    "show forge-0042 --last 2",
    "errors forge-0042 --task compile_module",
    "stats",
)
WIDTH = 100
SESSIONS = 180
PHASES = {
    SessionPhase.COMPLETE: 110,
    SessionPhase.FAILED: 14,
    SessionPhase.EXECUTION: 21,
    SessionPhase.QUESTIONNAIRE: 19,
    SessionPhase.PLAN_REVIEW: 7,
    SessionPhase.CLARIFICATION: 5,
    SessionPhase.VERIFICATION: 4,
}
TASKS = ["write_module", "compile_module", "write_tests", "run_tests", "write_script", "check_script", "pack"]
FAILURES = {
    "compile_module": "File bill.py, line 6\n    def share(total, people)\n                            ^\nSyntaxError",
    "run_tests": "FAIL: test_no_cent_is_lost\nAssertionError: 9999 != 10000\nexit status 1",
    "check_script": "usage: bill.py [-h] total people\nbill.py: error: the following arguments are required: people",
}
MARK = 42
"""Number of the session that is shown in detail: it is in EXECUTION, and has three errors."""


def sessions() -> Iterator[tuple[Record, list[ErrorEntry], list[str]]]:
    """Yield the same sessions on each run, the oldest first."""
    chance = random.Random(2026)  # noqa: S311 (no secret)
    phases = [phase for phase, count in PHASES.items() for _ in range(count)]
    chance.shuffle(phases)
    for number in range(SESSIONS):
        ago = timedelta(minutes=7) * (SESSIONS - number) ** 1.6
        phase = SessionPhase.EXECUTION if number == MARK else phases[number]
        yield _session(number, phase, NOW - ago, chance)


def _session(
    number: int, phase: SessionPhase, created: datetime, chance: random.Random
) -> tuple[Record, list[ErrorEntry], list[str]]:
    underway = list(SessionPhase).index(phase) >= list(SessionPhase).index(SessionPhase.EXECUTION)
    done = (
        3
        if number == MARK
        else len(TASKS)
        if phase in {"COMPLETE", "VERIFICATION"}
        else chance.randrange(2, 6)
        if underway
        else 0
    )
    times = [created + timedelta(seconds=40 * step + chance.random() * 30) for step in range(1, 2 * done + 3)]
    times = [time for time in times if time < NOW]
    session = Session(
        session_id=f"forge-{number:04}",
        phase=phase,
        created_at=created,
        updated_at=times[-1] if times else created,
        current_question_index=3 if phase != "QUESTIONNAIRE" else chance.randrange(3),
        answers={"audience": "two friends", "platform": "a terminal", "test": "thirds of a sum"},
        completed_task_ids=TASKS[:done],
        failed_task_ids=["pack"] if phase == "FAILED" else [],
        active_task_id=TASKS[done] if underway and done < len(TASKS) and phase != "FAILED" else None,
    )
    if phase != "QUESTIONNAIRE":
        session.intent_profile = {"wants": "to share a bill", "knows": "nothing of rounding"}
        session.build_spec = {"language": "Python", "files": ["bill.py", "test_bill.py"], "checks": 3}
        session.concept = {"name": "bill", "about": "shares a sum among people, to the cent. " * 12}
        session.task_graph = {"tasks": [{"id": task, "needs": TASKS[:index]} for index, task in enumerate(TASKS)]}
    failures = 3 if number == MARK else chance.choice([0, 0, 1, 2, 5]) if underway else 0
    tasks = (
        ["compile_module", "run_tests", "run_tests"]
        if number == MARK
        else chance.choices(list(FAILURES), [6, 3, 1], k=5)
    )
    errors = [
        ErrorEntry(time, task, FAILURES[task], SessionPhase.EXECUTION, position)
        for position, (time, task) in enumerate(zip(times[:failures], tasks, strict=False), 1)
    ]
    logs = [
        f"[{time.isoformat(timespec='seconds')}] {TASKS[min(index // 2, 6)]} {'ended' if index % 2 else 'began'}"
        for index, time in enumerate(times[: 2 * done])
    ]
    record = Record(
        session_id=session.session_id,
        created_at=session.created_at,
        updated_at=session.updated_at,
        version=done + 2,
        write_id=validation.new_write_id(),
        error_count=len(errors),
        log_count=len(logs),
        content=changeset_for_create(session).content,
        held_at=NOW - timedelta(hours=1) if number % 60 == MARK else None,
    )
    return record, errors, logs


def fill(url: str) -> None:
    """Store the sessions in a new database."""
    with open_repository(url, migrate=True) as repository:
        for record, errors, logs in sessions():
            repository.restore_record(record, errors, logs)


def shown(command: str, url: str) -> str:
    """Return what a command prints at `NOW`."""
    printed = io.StringIO()
    clock, validation.utc_now = validation.utc_now, lambda: NOW
    kept = dict(os.environ), sys.argv
    try:
        os.environ |= {"VIBEFORGE_SESSIONS_DATABASE_URL": url, "COLUMNS": str(WIDTH)}
        sys.argv = ["vibeforge-sessions", "sessions", *command.split()]
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
            main()
    finally:
        validation.utc_now = clock
        os.environ.clear()
        os.environ.update(kept[0])
        sys.argv = kept[1]
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().rstrip().splitlines())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Show what the commands of `vibeforge-sessions sessions` look like.")
    parser.add_argument("--keep", type=Path, help="write the database to this new file, and leave it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{(arguments.keep or Path(folder) / 'sessions.db').absolute()}"
        fill(database)
        for each in COMMANDS:
            print(f"$ vibeforge-sessions sessions {each}\n{shown(each, database)}")
