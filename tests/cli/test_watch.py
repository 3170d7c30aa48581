"""The command `watch`: events of a session until its final phase."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from tests.cli.conftest import Cli
from tests.support.cli_runner import URL
from vibeforge_sessions import Session
from vibeforge_sessions.cli import watch
from vibeforge_sessions.cli.watch import FAILED, Watch


class WatchProcess:
    """A `watch` command in another process, whose output is read line by line."""

    def __init__(self, cli: Cli, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "vibeforge_sessions", "sessions", "watch", "s", "--every", "0.05", *options],
            env={**os.environ, URL: cli.url, "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> tuple[int, str, str]:
        out, errors = self.process.communicate()
        return self.process.returncode, out, errors


@pytest.fixture
def watch_process(cli: Cli) -> WatchProcess:
    cli.repository.create_session(Session(session_id="s", phase="EXECUTION"))  # type: ignore[arg-type]
    cli.repository.append_error("s", "before", "before the watch")
    return WatchProcess(cli)


def test_watch_prints_events_until_final_phase(cli: Cli, watch_process: WatchProcess) -> None:
    assert re.fullmatch(r"phase  \S+ \S+  EXECUTION", watch_process.line())
    cli.repository.append_error("s", "compile", "first line\nsecond line\n")
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"error  {time}  2  compile  EXECUTION  first line", watch_process.line())
    assert watch_process.line() == "    second line"
    line = cli.repository.append_log("s", "a log line")
    assert watch_process.line().endswith(f"  1  {line}")
    cli.repository.hold_session("s")
    assert watch_process.line().startswith("held  ")
    cli.repository.release_session("s")
    assert watch_process.line().startswith("released  ")
    cli.repository.modify_session("s", lambda session: setattr(session, "active_task_id", "tests"))
    assert re.fullmatch(r"task  \S+ \S+  tests", watch_process.line())

    def end(session: Session) -> None:
        session.add_error("last", "the last one")
        session.active_task_id = None
        session.update_phase("COMPLETE")

    cli.repository.modify_session("s", end)
    code, out, errors = watch_process.end()
    assert (code, errors) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("  3  last  EXECUTION  the last one")
    assert [line.split()[::3] for line in lines[1:]] == [["task", "none"], ["phase", "COMPLETE"]]


def test_watch_of_failed_session_exits_with_its_own_code(sqlite_cli: Cli) -> None:
    sqlite_cli.repository.create_session(Session(session_id="s", phase="FAILED"))  # type: ignore[arg-type]
    done = sqlite_cli("watch", "s", "--json")
    assert done.code == FAILED == 9
    assert (done.json["event"], done.json["text"]) == ("phase", "FAILED")


def test_deletion_ends_watch(sqlite_cli: Cli) -> None:
    sqlite_cli.repository.create_session(session_id="s")
    process = WatchProcess(sqlite_cli)
    process.line()
    sqlite_cli.repository.delete_session("s")
    assert process.end() == (1, "", "error: there is no session 's': check the id, or create the session\n")


def test_interrupted_watch_exits_with_130(sqlite_cli: Cli) -> None:
    sqlite_cli.repository.create_session(session_id="s")
    process = WatchProcess(sqlite_cli, "--json")
    assert json.loads(process.line())["event"] == "phase"
    process.process.send_signal(signal.SIGINT)
    assert process.end() == (130, "", "")


def test_each_entry_is_reported_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll after several pages of new entries, with an entry that is appended during a poll."""
    monkeypatch.setattr(watch, "_PAGE", 3)
    repository = cli.repository
    repository.create_session(session_id="s")
    session_watch = Watch(repository, "s")
    texts: list[str] = []
    for turn in range(4):
        for number in range(turn * 3):
            repository.append_error("s", "t", f"error {turn}.{number}")
            repository.append_log("s", f"log {turn}.{number}")
        for change in session_watch.poll():
            if not texts:
                repository.append_error("s", "t", "during a poll")
            texts.append(change["text"])
    expected = [
        f"{kind} {turn}.{number}" for turn in range(4) for number in range(turn * 3) for kind in ("error", "log")
    ]
    assert sorted(text.split("] ")[-1] for text in texts) == sorted([*expected, "during a poll"])
    assert list(session_watch.poll()) == []


def test_recreated_session_is_reported(cli: Cli) -> None:
    repository = cli.repository
    repository.create_session(session_id="s")
    repository.append_log("s", "of the first incarnation")
    session_watch = Watch(repository, "s")
    repository.delete_session("s")
    repository.create_session(session_id="s")
    repository.append_log("s", "of the second incarnation")
    assert [change["event"] for change in session_watch.poll()] == ["recreated", "log"]


def test_watch_on_terminal_shows_current_state(sqlite_cli: Cli) -> None:
    sqlite_cli.repository.create_session(Session(session_id="s", phase="EXECUTION"))  # type: ignore[arg-type]
    master, slave = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "vibeforge_sessions", "sessions", "watch", "s", "--every", "0.05"],
        env={**os.environ, URL: sqlite_cli.url, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as process:
        os.close(slave)
        shown = b""
        changed = threading.Event()
        with contextlib.suppress(OSError), open(master, "rb", buffering=0) as terminal:  # noqa: PTH123 (a descriptor)
            while part := terminal.read(4096):  # Linux ends with an error, macOS with an empty read
                shown += part
                if b"Ctrl-C ends" in shown and not changed.is_set():
                    changed.set()
                    sqlite_cli.repository.append_error("s", "compile", "\x1b[2Jit broke")
                    sqlite_cli.repository.modify_session("s", _complete)
    text = shown.decode()
    assert process.returncode == 0, text
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    assert re.search(r"error_count +1\b", plain)
    assert re.search(r"log_count +0\b", plain)
    assert "␛[2Jit broke" in text
    assert "\x1b[2J" not in text
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert text.rfind(hide) < text.rfind(show), "the cursor stays hidden"
    assert "COMPLETE" in text[text.rfind("session") :]


def _complete(session: Session) -> None:
    session.update_phase("COMPLETE")
