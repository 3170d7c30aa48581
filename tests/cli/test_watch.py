"""``watch``: what is new in a session, until its end."""

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

from tests.cli.conftest import Place
from tests.support.cli_runner import URL
from vibeforge_sessions import Session
from vibeforge_sessions.cli import watch
from vibeforge_sessions.cli.watch import FAILED, Watch


class Watching:
    """A ``watch`` that runs beside, of which each line is waited for."""

    def __init__(self, place: Place, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "vibeforge_sessions", "sessions", "watch", "s", "--every", "0.05", *options],
            env={**os.environ, URL: place.url, "COLUMNS": "200"},
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
def watching_(place: Place) -> Watching:
    place.repository.create_session(Session(session_id="s", phase="EXECUTION"))  # type: ignore[arg-type]
    place.repository.append_error("s", "before", "it was there before")
    return Watching(place)


def test_what_is_new_is_told_until_the_end(place: Place, watching_: Watching) -> None:
    assert re.fullmatch(r"phase  \S+ \S+  EXECUTION", watching_.line())
    place.repository.append_error("s", "compile", "first line\nsecond line\n")
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"error  {time}  2  compile  EXECUTION  first line", watching_.line())
    assert watching_.line() == "    second line"
    line = place.repository.append_log("s", "a log line")
    assert watching_.line().endswith(f"  1  {line}")
    place.repository.hold_session("s")
    assert watching_.line().startswith("held  ")
    place.repository.release_session("s")
    assert watching_.line().startswith("released  ")
    place.repository.modify_session("s", lambda session: setattr(session, "active_task_id", "tests"))
    assert re.fullmatch(r"task  \S+ \S+  tests", watching_.line())

    def end(session: Session) -> None:
        session.add_error("last", "the last one")
        session.active_task_id = None
        session.update_phase("COMPLETE")

    place.repository.modify_session("s", end)
    code, out, errors = watching_.end()
    assert (code, errors) == (0, "")
    told = out.splitlines()
    assert told[0].endswith("  3  last  EXECUTION  the last one")
    assert [line.split()[::3] for line in told[1:]] == [["task", "none"], ["phase", "COMPLETE"]]


def test_a_failure_has_a_code_of_its_own(on_sqlite: Place) -> None:
    on_sqlite.repository.create_session(Session(session_id="s", phase="FAILED"))  # type: ignore[arg-type]
    done = on_sqlite("watch", "s", "--json")
    assert done.code == FAILED == 9
    assert (done.json["event"], done.json["text"]) == ("phase", "FAILED")


def test_a_deletion_ends_it(on_sqlite: Place) -> None:
    on_sqlite.repository.create_session(session_id="s")
    watched = Watching(on_sqlite)
    watched.line()
    on_sqlite.repository.delete_session("s")
    assert watched.end() == (1, "", "error: there is no session 's': check the id, or create the session\n")


def test_interrupted(on_sqlite: Place) -> None:
    on_sqlite.repository.create_session(session_id="s")
    watched = Watching(on_sqlite, "--json")
    assert json.loads(watched.line())["event"] == "phase"
    watched.process.send_signal(signal.SIGINT)
    assert watched.end() == (130, "", "")


def test_each_entry_is_told_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are between two looks, and also one that is appended during a look."""
    monkeypatch.setattr(watch, "_PAGE", 3)
    repository = place.repository
    repository.create_session(session_id="s")
    watched = Watch(repository, "s")
    told: list[str] = []
    for turn in range(4):
        for number in range(turn * 3):
            repository.append_error("s", "t", f"error {turn}.{number}")
            repository.append_log("s", f"log {turn}.{number}")
        for change in watched.poll():
            if not told:
                repository.append_error("s", "t", "during a look")
            told.append(change["text"])
    wanted = [f"{kind} {turn}.{number}" for turn in range(4) for number in range(turn * 3) for kind in ("error", "log")]
    assert sorted(text.split("] ")[-1] for text in told) == sorted([*wanted, "during a look"])
    assert list(watched.poll()) == []


def test_made_anew(place: Place) -> None:
    repository = place.repository
    repository.create_session(session_id="s")
    repository.append_log("s", "of the first life")
    watched = Watch(repository, "s")
    repository.delete_session("s")
    repository.create_session(session_id="s")
    repository.append_log("s", "of the second")
    assert [change["event"] for change in watched.poll()] == ["recreated", "log"]


def test_on_a_terminal_it_also_shows_where_the_session_stands(on_sqlite: Place) -> None:
    on_sqlite.repository.create_session(Session(session_id="s", phase="EXECUTION"))  # type: ignore[arg-type]
    master, slave = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "vibeforge_sessions", "sessions", "watch", "s", "--every", "0.05"],
        env={**os.environ, URL: on_sqlite.url, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as process:
        os.close(slave)
        shown = b""
        told = threading.Event()
        with contextlib.suppress(OSError), open(master, "rb", buffering=0) as terminal:  # noqa: PTH123 (a descriptor)
            while part := terminal.read(4096):  # Linux ends with an error, macOS with an empty read
                shown += part
                if b"Ctrl-C ends" in shown and not told.is_set():
                    told.set()
                    on_sqlite.repository.append_error("s", "compile", "\x1b[2Jit broke")
                    on_sqlite.repository.modify_session("s", _complete)
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
