"""The demo `examples/forge_run.py`: output, stored sessions, and failure if a step has no effect."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import ROOT, cases
from vibeforge_sessions import Session, SessionPhase, open_repository

EXAMPLES = ROOT / "examples"
PHASES = ["QUESTIONNAIRE", "BUILD_SPEC", "IDEA", "PLAN_REVIEW", "EXECUTION", "CLARIFICATION", "EXECUTION"]
PHASES += ["VERIFICATION", "COMPLETE"]
TASKS_BEFORE_KILL = ["write_module", "write_tests", "compile_module"]
TASKS = [*TASKS_BEFORE_KILL, "run_tests", "pack_program", "verify_tests", "verify_program"]
ESCAPE = "\x1b"


class Sandbox:
    """Empty home, temporary and working folders outside the repository, and runs of programs in them."""

    def __init__(self, folder: Path) -> None:
        self.home, self.temp, self.cwd = (folder / name for name in ("home", "temp", "cwd"))
        for path in (self.home, self.temp, self.cwd):
            path.mkdir()

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
        return inherited | {"HOME": str(self.home), "TMPDIR": str(self.temp), "COLUMNS": "80", "FORCE_COLOR": "1"}

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.cwd,
            env=self.environment(),
            capture_output=True,
            encoding="utf-8",
            timeout=240,
            check=False,
        )

    def demo(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(EXAMPLES / "forge_run.py", *options)

    def remaining_files(self) -> list[Path]:
        return [path for folder in (self.home, self.temp, self.cwd) for path in folder.iterdir()]


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def check_order(text: str, parts: Sequence[str]) -> None:
    at = 0
    for part in parts:
        found = text.find(part, at)
        assert found >= 0, f"{part!r} is missing or out of order in:\n{text}"
        at = found + len(part)


def messages(logs: Sequence[str]) -> list[str]:
    return [line.split("] ", 1)[1] for line in logs]


def check_output(output: str) -> None:
    progress, report = output.split("\nPhases", 1)
    words = " ".join(progress.split())  # long lines are wrapped
    check_order(words, [f"phase {phase}" for phase in PHASES])
    check_order(words, ["begins", "killed (SIGKILL) in run_tests", "resumes at run_tests and skips", "phase COMPLETE"])
    assert f"skips {', '.join(TASKS_BEFORE_KILL)} " in words
    phases, report = report.split("\nTasks", 1)
    check_order(phases, PHASES)
    tasks, errors = report.split("\nError history", 1)
    check_order(tasks, TASKS)
    assert tasks.count("completed") == len(TASKS)
    assert tasks.count("skipped") == len(TASKS_BEFORE_KILL)
    check_order(errors, ["compile_module", "py_compile", 'File "bill.py", line 6', "SyntaxError: expected ':'"])
    check_order(
        errors, ["run_tests", "unittest", "FAIL: test_no_cent_is_lost", "AssertionError: 9999 != 10000", "FAILED"]
    )
    assert errors.count(" EXECUTION ") == 2
    # no escape codes although FORCE_COLOR is set, and no line longer than 80 characters
    assert ESCAPE not in output
    assert max(len(line) for line in output.splitlines()) <= 80


def test_demo_prints_and_stores_phases_tasks_and_errors(sandbox: Sandbox) -> None:
    done = sandbox.demo("--keep")
    assert (done.returncode, done.stderr) == (0, "")
    output, _, path = done.stdout.rpartition("\nkept: ")
    check_output(output)
    folder = Path(path.rstrip())
    assert sandbox.remaining_files() == [folder]
    with open_repository(f"sqlite:///{folder / 'sessions.sqlite'}") as repository:
        (session_id,) = repository.list_sessions()
        session = repository.get_session(session_id)
    assert session is not None
    assert session.phase is SessionPhase.COMPLETE
    assert session.completed_task_ids == TASKS
    assert session.failed_task_ids == []
    assert session.active_task_id is None
    assert session.pending_clarification is None
    assert session.clarification_answer == "first"
    assert session.current_question_index == len(session.answers) == 3
    assert None not in (session.intent_profile, session.build_spec, session.concept, session.task_graph)

    syntax, test = session.error_history
    assert [(entry.position, entry.task_id, entry.phase) for entry in (syntax, test)] == [
        (1, "compile_module", SessionPhase.EXECUTION),
        (2, "run_tests", SessionPhase.EXECUTION),
    ]
    assert session.created_at < syntax.timestamp < test.timestamp < session.updated_at
    check_order(syntax.error_message, ['File "bill.py", line 6', "^", "SyntaxError: expected ':'", "exit status 1"])
    check_order(test.error_message, ["FAIL: test_no_cent_is_lost", "Traceback", "AssertionError: 9999 != 10000"])
    check_order(test.error_message, ["Ran 3 tests", "FAILED (failures=1)", "exit status 1"])
    assert ESCAPE not in syntax.error_message + test.error_message

    logged = messages(session.logs)
    assert [message.removeprefix("phase ") for message in logged if message.startswith("phase ")] == PHASES
    workers = [message.split()[1:3] for message in logged if message.startswith("worker ")]
    assert [verb for _, verb in workers] == ["begins", "killed", "resumes"]
    (first, _), (killed, _), (second, _) = workers
    assert first == killed != second
    started = [message.split()[1] for message in logged if message.endswith(" started")]
    assert started == [*TASKS_BEFORE_KILL, "run_tests", *TASKS[3:]]

    # the demo's tasks have produced a working program whose tests pass
    program = sandbox.run(folder / "bill.pyz", "100.00", "3")
    assert (program.returncode, program.stdout) == (0, "33.34 + 33.33 + 33.33 = 100.00\n")
    assert sandbox.run("-m", "unittest", "discover", "-s", folder / "workspace").returncode == 0


def test_demo_keeps_other_sessions_of_given_database(sandbox: Sandbox, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.sqlite'}"
    with open_repository(url, migrate=True) as repository:
        other = repository.create_session(
            Session(phase=SessionPhase.EXECUTION, task_graph={"workspace": "/elsewhere", "tasks": []})
        )
        repository.create_session(Session(session_id="bare", phase=SessionPhase.EXECUTION))
        done = sandbox.demo("--database", url)
        assert done.returncode == 0, done.stderr
        assert "resumes at run_tests" in done.stdout
        assert set(repository.list_sessions()) == {other.session_id, "bare"}
        assert repository.get_session(other.session_id) == other
    assert sandbox.remaining_files() == []


def test_demo_rejects_database_that_processes_cannot_share(sandbox: Sandbox) -> None:
    done = sandbox.demo("--database", "memory://")
    assert done.returncode == 1
    assert "no session in EXECUTION" in done.stderr
    assert "error: the worker ended with status 1" in done.stderr
    assert sandbox.remaining_files() == []


WITHOUT_EFFECT = [
    ("forge_app.toml", 'list[int]\n    """', 'list[int]:\n    """', "the syntax error is in the history"),
    ("forge_app.toml", "10_000, 3)), 10_000", "10_000, 3)), 9_999", "before the tests failed"),
    ("forge_app.toml", "[share + 1] * rest + [share]", "[share] * rest + [share]", "in FAILED, before it was done"),
    ("forge_app.toml", '"= 100.00"', '"= 99.99"', "in FAILED, before it was done"),
    ("forge_worker.py", "if task.id in self._completed:", "if not task:", "no completed task ran again"),
    ("forge_run.py", "worker.send_signal(signal.SIGKILL)", "worker.terminate()", "the first worker was not killed"),
]


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    cases(WITHOUT_EFFECT, WITHOUT_EFFECT[5:]),
    ids=["no_syntax_error", "no_bug", "no_repair", "no_success", "no_resume", "no_kill"],
)
def test_demo_fails_if_a_step_has_no_effect(
    sandbox: Sandbox, tmp_path: Path, file: str, old: str, new: str, complaint: str
) -> None:
    examples = tmp_path / "examples"
    shutil.copytree(EXAMPLES, examples)
    text = (examples / file).read_text("utf-8")
    assert text.count(old) == 1
    (examples / file).write_text(text.replace(old, new), "utf-8")
    done = sandbox.run(examples / "forge_run.py")
    assert done.returncode == 1, done.stdout
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sandbox.remaining_files() == []


def test_demo_without_rich_names_missing_extra(sandbox: Sandbox) -> None:
    program = "import runpy, sys; sys.modules['rich'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = sandbox.run("-c", program, EXAMPLES / "forge_run.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'vibeforge-sessions[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_on_terminal_shows_progress(sandbox: Sandbox) -> None:
    master, slave = os.openpty()
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "forge_run.py"],
        cwd=sandbox.cwd,
        env=sandbox.environment() | {"TERM": "xterm-256color"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError), open(master, "rb", buffering=0) as terminal:  # noqa: PTH123 (a descriptor)
            while part := terminal.read(4096):  # Linux ends with an error, macOS with an empty read
                shown += part
    text = shown.decode()
    assert process.returncode == 0, text
    assert "3/7" in text
    check_order(text, ["phase COMPLETE", "Error history", "AssertionError: 9999 != 10000"])
    hide, show = f"{ESCAPE}[?25l", f"{ESCAPE}[?25h"
    assert text.rfind(hide) < text.rfind(show), "the cursor stays hidden"
    assert sandbox.remaining_files() == []
