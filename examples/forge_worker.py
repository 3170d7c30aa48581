"""Worker that claims a session in EXECUTION, runs its remaining tasks, verifies the result, and completes the session.

`forge_run.py` starts a worker, kills it, and starts a second one. The programs share only the database and the
workspace. The session contains everything that a worker needs to resume the session of another worker.

The commands are real. The model that repairs their failures is simulated: its answers are in `forge_app.toml`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from vibeforge_sessions import (
    Session,
    SessionFilter,
    SessionNotFoundError,
    SessionPhase,
    SessionRepository,
    SessionRepositoryError,
    SessionSummary,
    StaleSessionError,
    open_repository,
)

APP = Path(__file__).resolve().with_name("forge_app.toml")
COMMAND_TIMEOUT = 60.0  # seconds
ANSWER_TIMEOUT = 120.0
MAX_REPAIRS = 2


class TaskFailedError(Exception):
    """The command of a task failed; the message is the output of the command."""


class GaveUpError(Exception):
    """The worker cannot complete the session; the message is the reason."""


class PhaseChangedError(Exception):
    """Another program has changed the phase of the session, so this worker must no longer change the session."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Node of ``session.task_graph``: a file to write or a command to run."""

    id: str
    phase: SessionPhase
    needs: Sequence[str]
    file: str = ""
    content: str = ""
    command: Sequence[str] = ()
    expect: str = ""
    """Text that the output of the command must contain; the exit status must be 0 too."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Answer of the model to a failure: an edit of one file."""

    file: str
    old: str
    new: Mapping[str, str]
    """New text for each answer of the user to the question; a single text if there is no question."""
    question: str = ""


def tasks_in_order(task_graph: Mapping[str, Any]) -> list[Task]:
    """Return the tasks, each after its dependencies."""
    tasks = {node["id"]: Task(**{**node, "phase": SessionPhase(node["phase"])}) for node in task_graph["tasks"]}
    order = TopologicalSorter({task.id: task.needs for task in tasks.values()}).static_order()
    return [tasks[task_id] for task_id in order]


def repairs() -> dict[str, Repair]:
    """Return the model's answers by task id."""
    answers = tomllib.loads(APP.read_text(encoding="utf-8"))["repairs"]
    return {task_id: Repair(**repair) for task_id, repair in answers.items()}


def execute(task: Task, workspace: Path) -> str:
    """Run the task; return the output of its command.

    :raises TaskFailedError: the command failed, exceeded its time limit, or did not print the expected text.
    """
    if task.file:
        (workspace / task.file).write_text(task.content, encoding="utf-8")
        return ""
    shown = f"$ {' '.join(task.command)}\n"
    try:
        done = subprocess.run(
            # the graph contains "python" and no path, because a worker that resumes it may use another interpreter
            [sys.executable if part == "python" else part for part in task.command],
            cwd=workspace,
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="surrogateescape",  # output may have any encoding; the error history stores any text
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TaskFailedError(f"{shown}no end after {COMMAND_TIMEOUT:.0f} seconds") from None
    if done.returncode != 0:
        raise TaskFailedError(f"{shown}{done.stdout}exit status {done.returncode}")
    if task.expect not in done.stdout:
        raise TaskFailedError(f"{shown}{done.stdout}does not print {task.expect!r}")
    return done.stdout


def _plain_environment() -> dict[str, str]:
    """Return the environment without variables that change the behavior of Python or enable colored output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FORCE_COLOR"))}
    return kept | {"NO_COLOR": "1", "PYTHONUTF8": "1"}


# --- the worker ---


class Worker:
    """Worker on the tasks of one session. Every step is stored before the next one starts."""

    def __init__(self, repository: SessionRepository, session: Session, *, silent_on: str | None = None) -> None:
        if session.task_graph is None:
            raise ValueError("a session without a plan")
        self._repository = repository
        self._id = session.session_id
        self._phase = session.phase
        self._repairs = repairs()
        self._tasks = tasks_in_order(session.task_graph)
        self._workspace = Path(session.task_graph["workspace"])
        self._completed = set(session.completed_task_ids)
        self._silent_on = silent_on

    def work(self) -> None:
        """Run the remaining tasks, and complete the session.

        :raises GaveUpError: a task failed and cannot be repaired.
        :raises PhaseChangedError: another program has changed the phase of the session.
        """
        for task in self._tasks:
            if task.id in self._completed:
                continue
            if task.phase is not self._phase:
                self._move_to(task.phase)
            self._complete(task)
        self._move_to(SessionPhase.COMPLETE)

    def give_up(self, reason: str) -> None:
        """Move the session to FAILED."""

        def fail(session: Session) -> None:
            session.active_task_id = None
            session.add_log(f"gave up: {reason}")

        self._move_to(SessionPhase.FAILED, fail)

    def _complete(self, task: Task) -> None:
        """Run the task, and repair and repeat it until it succeeds; store its success."""
        self._begin(task)
        while True:
            # Failures are counted in the stored history and not in a variable, so that a worker that resumes the
            # session gets the same number.
            failures = len(self._repository.list_errors(self._id, task_id=task.id))
            if failures:
                self._repair(task, failures)
            try:
                output = execute(task, self._workspace)
            except TaskFailedError as error:
                self._fail(task, str(error))
            else:
                self._finish(task, output)
                return

    def _begin(self, task: Task) -> None:
        def begin(session: Session) -> None:
            session.active_task_id = task.id
            session.add_log(f"task {task.id} started")

        self._store(begin)

    def _fail(self, task: Task, output: str) -> None:
        # The error is appended first: an append needs no version, so it is stored even if the update fails.
        self._repository.append_error(self._id, task.id, output)

        def fail(session: Session) -> None:
            if task.id not in session.failed_task_ids:
                session.failed_task_ids.append(task.id)
            session.add_log(f"task {task.id} failed")

        self._store(fail)

    def _finish(self, task: Task, output: str) -> None:
        def finish(session: Session) -> None:
            session.completed_task_ids.append(task.id)
            session.failed_task_ids = [failed for failed in session.failed_task_ids if failed != task.id]
            session.active_task_id = None
            last_line = output.strip().rpartition("\n")[2]
            session.add_log(f"task {task.id} completed" + (f": {last_line}" if last_line else ""))

        self._store(finish)

    def _repair(self, task: Task, failures: int) -> None:
        repair = self._repairs.get(task.id)
        if repair is None or failures > MAX_REPAIRS:
            raise GaveUpError(f"{task.id} fails, and nothing is left to repair it with")
        self._repository.append_log(self._id, f"asking the model to repair {repair.file} for {task.id}")
        if task.id == self._silent_on:
            time.sleep(ANSWER_TIMEOUT)  # here forge_run.py kills this process
            raise GaveUpError("the model does not answer")
        option = self._clarify(task, repair) if repair.question else next(iter(repair.new))
        path = self._workspace / repair.file
        path.write_text(path.read_text(encoding="utf-8").replace(repair.old, repair.new[option]), encoding="utf-8")

    def _clarify(self, task: Task, repair: Repair) -> str:
        """Return the user's answer to the question of the repair; the question is asked only once."""

        def ask(session: Session) -> None:
            session.pending_clarification = {
                "task_id": task.id,
                "question": repair.question,
                "options": list(repair.new),
            }

        def go_on(session: Session) -> None:
            session.pending_clarification = None

        answer = self._read().clarification_answer
        if answer is None:
            self._move_to(SessionPhase.CLARIFICATION, ask)
            answer = self._wait_for_answer()
            self._move_to(SessionPhase.EXECUTION, go_on)
        if answer not in repair.new:
            raise GaveUpError(f"the answer for {task.id} is none of {', '.join(repair.new)}")
        return str(answer)

    def _wait_for_answer(self) -> Any:
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while time.monotonic() < deadline:
            answer = self._read().clarification_answer
            if answer is not None:
                return answer
            time.sleep(0.05)
        raise GaveUpError("no answer to the clarification")

    def _move_to(self, phase: SessionPhase, change: Callable[[Session], object] = lambda _: None) -> None:
        def move(session: Session) -> None:
            session.update_phase(phase)
            session.add_log(f"phase {phase}")
            change(session)

        self._store(move)
        self._phase = phase

    def _store(self, change: Callable[[Session], None]) -> None:
        """Store the change.

        Web handlers update the same session, for example with the answer to a clarification or an abort. The change is
        therefore applied to the stored session and repeated if it is stale; an older copy is never stored.
        """

        def change_in_phase(session: Session) -> None:
            if session.phase is not self._phase:  # for example after an abort, which the change would undo
                raise PhaseChangedError(f"another program changed the phase from {self._phase} to {session.phase}")
            change(session)

        self._repository.modify_session(self._id, change_in_phase)

    def _read(self) -> Session:
        session = self._repository.get_session(self._id, recent=0)  # without histories, because callers poll
        if session is None:
            raise SessionNotFoundError(self._id)
        return session


# --- finding a session ---


def sessions_in_execution(repository: SessionRepository) -> Iterator[SessionSummary]:
    """Yield the summaries of all sessions in EXECUTION, newest first."""
    wanted = SessionFilter(phases={SessionPhase.EXECUTION})
    page = repository.find_sessions(wanted)
    yield from page.items
    while page.next_cursor is not None:
        page = repository.find_sessions(wanted, cursor=page.next_cursor)
        yield from page.items


def claim_session(repository: SessionRepository, workspace: str) -> Session | None:
    """Find the session of this workspace, and claim it by an update; return None if there is no such session."""
    for summary in sessions_in_execution(repository):
        session = repository.get_session(summary.session_id, recent=0)
        if session is None or session.task_graph is None or session.task_graph.get("workspace") != workspace:
            continue
        session.add_log(f"worker {os.getpid()} {_start_message(session)}")
        try:
            repository.update_session(session)
        except (StaleSessionError, SessionNotFoundError):
            continue  # claimed by another worker: of two updates of the same version, only one succeeds
        return session
    return None


def _start_message(session: Session) -> str:
    if not session.completed_task_ids:
        return "begins"
    skipped = ", ".join(session.completed_task_ids)
    return f"resumes at {session.active_task_id or 'the next task'} and skips {skipped}"


def main() -> int:
    """Work on one session."""
    parser = argparse.ArgumentParser(description="Run the tasks of the session in EXECUTION that has this workspace.")
    parser.add_argument("--database", metavar="URL", required=True)
    parser.add_argument("--workspace", metavar="FOLDER", required=True)
    parser.add_argument(
        "--silent-on",
        metavar="TASK",
        help="the model never answers the request to repair this task, so that the worker can be killed there",
    )
    options = parser.parse_args()
    try:
        with open_repository(options.database, migrate=True) as repository:
            session = claim_session(repository, options.workspace)
            if session is None:
                print(f"no session in EXECUTION has the workspace {options.workspace}", file=sys.stderr)
                return 1
            worker = Worker(repository, session, silent_on=options.silent_on)
            try:
                worker.work()
            except GaveUpError as error:
                print(f"worker {os.getpid()}: {error}", file=sys.stderr)
                worker.give_up(str(error))
                return 1
    except (SessionRepositoryError, PhaseChangedError) as error:
        print(f"worker {os.getpid()}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
