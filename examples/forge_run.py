"""Demonstration of a session from its first question to its end, with a crash: ``python examples/forge_run.py``.

Real commands write, compile, test and package a small program (`forge_app.toml`), whose draft has a syntax error and a
bug. The worker that runs the commands is killed by SIGKILL when half of them are done. A second worker finds the
session in the database, resumes it at the interrupted task, and completes it.

This program acts as the web service, the operator and the user; `forge_worker.py` is the worker. The two programs share
only the database and the workspace. All output is read from the database.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vibeforge_sessions import (
    ErrorEntry,
    Session,
    SessionPhase,
    SessionRepository,
    SessionRepositoryError,
    open_repository,
)

try:
    from rich.console import Console
    from rich.panel import Panel
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as missing:
    sys.exit(f"error: {missing}; this example needs an extra: pip install 'vibeforge-sessions[demo]'")

WORKER = Path(__file__).resolve().with_name("forge_worker.py")
APP = WORKER.with_name("forge_app.toml")
TIMEOUT = 120.0  # seconds; each step takes about one second
PHASES = ["QUESTIONNAIRE", "BUILD_SPEC", "IDEA", "PLAN_REVIEW", "EXECUTION", "CLARIFICATION", "EXECUTION"]
PHASES += ["VERIFICATION", "COMPLETE"]


class StoryError(Exception):
    """An expected event of this demonstration did not happen."""


# --- the web service ---


def plan_session(repository: SessionRepository, workspace: Path) -> str:
    """Run a new session from its first question to its approved plan; return its id."""
    app = tomllib.loads(APP.read_text(encoding="utf-8"))
    session = Session()
    session.add_log(f"phase {session.phase}")
    repository.create_session(session)
    for question_id, answer in app["answers"].items():
        session.add_answer(question_id, answer)
        session.current_question_index += 1
        repository.update_session(session)  # after a crash the user repeats at most one answer
    session.intent_profile = app["intent_profile"]
    enter(repository, session, SessionPhase.BUILD_SPEC)
    session.build_spec = app["build_spec"]
    enter(repository, session, SessionPhase.IDEA)
    session.concept = app["concept"]
    enter(repository, session, SessionPhase.PLAN_REVIEW)
    session.task_graph = {"workspace": str(workspace), **app["task_graph"]}
    enter(repository, session, SessionPhase.EXECUTION)
    return session.session_id


def enter(repository: SessionRepository, session: Session, phase: SessionPhase) -> None:
    """Change the phase, and store it together with the other changes of the session in one transaction."""
    session.update_phase(phase)
    session.add_log(f"phase {phase}")
    repository.update_session(session)  # no StaleSessionError here, because no other client has the session


def answer_clarification(session: Session) -> None:
    """Answer the pending question with its first option, as the user."""
    if session.pending_clarification is None:
        raise StoryError("the worker waits for an answer without having asked a question")
    session.clarification_answer = session.pending_clarification["options"][0]
    session.add_log(f"the user answers: {session.clarification_answer}")


# --- the operator ---


class Screen:
    """Display of the stored session: new log lines and, on a terminal, a progress bar of the tasks."""

    def __init__(self, console: Console, repository: SessionRepository, session_id: str) -> None:
        self._console = console
        self._repository = repository
        self._id = session_id
        self._lines_shown = 0

    def follow(self, process: subprocess.Popen[bytes], until: Callable[[Session], bool], what: str) -> Session:
        """Show the progress until ``until(session)`` is true for the stored session; return that session."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        deadline = time.monotonic() + TIMEOUT
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            tasks = bar.add_task("", total=None)
            while time.monotonic() < deadline:
                ended = process.poll()  # polled before the read, so that the last write of the process is read
                session = read(self._repository, self._id)
                done, total = len(session.completed_task_ids), len(tasks_of(session))
                bar.update(tasks, description=session.active_task_id or session.phase, completed=done, total=total)
                self._show_new_lines()
                if until(session):
                    return session
                if ended is not None:
                    raise StoryError(f"the worker ended with status {ended}, in {session.phase}, before {what}")
                time.sleep(0.02)
        raise StoryError(f"waited {TIMEOUT:.0f} seconds in vain until {what}")

    def _show_new_lines(self) -> None:
        for line in self._repository.list_logs(self._id, after=self._lines_shown, limit=1000):
            self._lines_shown += 1
            when, message = split_log_line(line)
            self._console.print(Text(f"{clock(when)}  {message}"))


@dataclass(frozen=True)
class Operator:
    """Operator who starts the workers and kills the first one."""

    repository: SessionRepository
    url: str
    session_id: str
    workspace: Path
    screen: Screen

    def kill_first_worker(self) -> Session:
        """Run the first worker, kill it halfway, and return the session in the state that the worker stored last."""
        # The model never answers this worker's question about the failed tests. The worker is therefore killed at the
        # same point in every run, independently of the speed of the machine.
        with self._worker("--silent-on", "run_tests") as worker:
            self.screen.follow(worker, self._is_halfway, "the tests failed")
            worker.send_signal(signal.SIGKILL)
            if worker.wait() != -signal.SIGKILL:
                raise StoryError(f"the first worker was not killed: it ended with status {worker.returncode}")
        left = read(self.repository, self.session_id)
        self.repository.append_log(self.session_id, f"worker {worker.pid} killed (SIGKILL) in {left.active_task_id}")
        return left

    def finish_with_second_worker(self) -> None:
        """Run the second worker until it exits, and answer its question."""
        with self._worker() as worker:
            self.screen.follow(worker, lambda session: session.phase is SessionPhase.CLARIFICATION, "it asked the user")
            # The worker updates this session too, so modify_session reads it again and retries if it is stale.
            # plan_session can keep its copy, because no other program updates the session in that time.
            self.repository.modify_session(self.session_id, answer_clarification)
            self.screen.follow(worker, lambda session: session.phase is SessionPhase.COMPLETE, "it was done")
            if worker.wait(TIMEOUT) != 0:
                raise StoryError(f"the second worker ended with status {worker.returncode}")

    def _is_halfway(self, session: Session) -> bool:
        failures = self.repository.list_errors(session.session_id, task_id="run_tests", limit=1)
        return session.active_task_id == "run_tests" and bool(failures)

    @contextmanager
    def _worker(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker, and kill it at the end of the block."""
        command = [sys.executable, str(WORKER), "--database", self.url, "--workspace", str(self.workspace), *options]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


# --- the stored session at the end ---


def read(repository: SessionRepository, session_id: str, *, recent: int | None = 0) -> Session:
    """Return the stored session, by default without its histories."""
    session = repository.get_session(session_id, recent=recent)
    if session is None:
        raise StoryError(f"session {session_id} is gone")
    return session


def tasks_of(session: Session) -> list[dict[str, Any]]:
    """Return the tasks of the session's graph."""
    return [] if session.task_graph is None else list(session.task_graph["tasks"])


def split_log_line(line: str) -> tuple[datetime, str]:
    """Return the time and the message of a line ``[<ISO time>] message``."""
    when, _, message = line.removeprefix("[").partition("] ")
    return datetime.fromisoformat(when), message


def clock(when: datetime) -> str:
    """Return the time of day, in UTC, to the millisecond."""
    return f"{when:%H:%M:%S}.{when.microsecond // 1000:03}"


def phases_of(logs: list[str]) -> list[tuple[str, datetime]]:
    """Return each phase with the time of its start, from the log lines of the phase changes."""
    entries = [split_log_line(line) for line in logs]
    return [(message.removeprefix("phase "), when) for when, message in entries if message.startswith("phase ")]


def phase_table(phases: list[tuple[str, datetime]]) -> Table:
    """Return a table of the phases with their times."""
    table = Table("phase", "entered (UTC)", "seconds", title="Phases", title_justify="left")
    table.columns[2].justify = "right"
    ends = [when for _, when in phases[1:]]
    for index, (phase, when) in enumerate(phases):
        lasted = f"{(ends[index] - when).total_seconds():.3f}" if index < len(ends) else ""
        table.add_row(phase, clock(when), lasted)
    return table


def task_table(session: Session, skipped: list[str]) -> Table:
    """Return a table of the tasks with their states."""
    table = Table("task", "phase", "state", "failures", "second worker", title="Tasks", title_justify="left")
    for task in tasks_of(session):
        task_id = task["id"]
        failures = sum(entry.task_id == task_id for entry in session.error_history)
        table.add_row(
            task_id,
            task["phase"],
            state_of(task_id, session),
            str(failures or ""),
            "skipped" if task_id in skipped else "ran",
        )
    return table


def state_of(task_id: str, session: Session) -> str:
    """Return the state of a task as one word."""
    if task_id in session.completed_task_ids:
        return "completed"
    if task_id in session.failed_task_ids:
        return "failed"
    return "active" if task_id == session.active_task_id else "open"


def relevant_lines(message: str, most: int = 7) -> str:
    """Return the output of a tool; if the output is long, only the lines with errors and locations."""
    lines = [line for line in message.splitlines() if line.strip(" -=.^~")]
    if len(lines) > most:
        words = ("$ ", "FAIL", "ERROR", "File ", "exit status")
        lines = [line for line in lines if line.strip().startswith(words) or "Error" in line]
    return "\n".join(lines[:most])


def error_panel(entry: ErrorEntry) -> Panel:
    """Return a panel with one entry of the error history."""
    title = f"{entry.position}  {clock(entry.timestamp)}  {entry.task_id}  {entry.phase}"
    return Panel(Text(relevant_lines(entry.error_message)), title=title, title_align="left")


def show(console: Console, session: Session, skipped: list[str]) -> None:
    """Print the phases, the tasks and the error history."""
    console.print()
    console.print(phase_table(phases_of(session.logs)))
    console.print(task_table(session, skipped))
    console.print("Error history", style="table.title")
    for entry in session.error_history:
        console.print(error_panel(entry))


def check(session: Session, left: Session) -> None:
    """Raise `StoryError` unless all expected events have happened.

    :param left: the last state of the session that the first worker stored.
    """
    printed = {entry.task_id: entry.error_message for entry in session.error_history}
    messages = [split_log_line(line)[1] for line in session.logs]
    tasks = [task["id"] for task in tasks_of(session)]
    starts_of_skipped = [messages.count(f"task {task_id} started") for task_id in left.completed_task_ids]
    happened = {
        "the session went through all phases": [phase for phase, _ in phases_of(session.logs)] == PHASES,
        "the syntax error is in the history": "SyntaxError" in printed.get("compile_module", ""),
        "the failed test is in the history": "AssertionError" in printed.get("run_tests", ""),
        "the first worker died halfway": 0 < len(left.completed_task_ids) < len(tasks),
        "it left the session in EXECUTION": left.phase is SessionPhase.EXECUTION,
        "the second worker resumed": any(" resumes at run_tests" in message for message in messages),
        "no completed task ran again": set(starts_of_skipped) == {1},
        "each task was completed, once": sorted(session.completed_task_ids) == sorted(tasks),
        "nothing is active or failed at the end": session.active_task_id is None and not session.failed_task_ids,
    }
    missing = [what for what, did in happened.items() if not did]
    if missing:
        raise StoryError(f"not as it should be: {'; '.join(missing)}")


# --- the program ---


def run(console: Console, url: str, workspace: Path, *, keep_session: bool) -> None:
    """Run the demonstration on a database, and show the stored session at the end."""
    with open_repository(url, migrate=True) as repository:
        session_id = plan_session(repository, workspace)
        try:
            operator = Operator(repository, url, session_id, workspace, Screen(console, repository, session_id))
            left = operator.kill_first_worker()
            operator.finish_with_second_worker()
            session = read(repository, session_id, recent=None)
            show(console, session, left.completed_task_ids)
            check(session, left)
        finally:
            if not keep_session:
                repository.delete_session(session_id)


def main() -> int:
    """Run the demonstration in a new folder, and delete it at the end."""
    parser = argparse.ArgumentParser(description="A session through all its phases, with a crash in the middle.")
    parser.add_argument("--keep", action="store_true", help="keep the session and the folder, and print its path")
    parser.add_argument(
        "--database", metavar="URL", help="instead of an SQLite file in the folder; one that processes can share"
    )
    options = parser.parse_args()
    # Without a terminal the output has no escape codes, even if FORCE_COLOR is set.
    console = Console(force_terminal=None if sys.stdout.isatty() else False)
    folder = Path(tempfile.mkdtemp(prefix="forge-run-"))
    workspace = folder / "workspace"
    workspace.mkdir()
    url = options.database or f"sqlite:///{folder / 'sessions.sqlite'}"
    try:
        run(console, url, workspace, keep_session=options.keep)
    except (StoryError, SessionRepositoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
