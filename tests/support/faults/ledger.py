"""Writers in processes, and the comparison of their journals with the database."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from tests.support import ROOT
from tests.support.faults.writer import FAILED, OK, UNKNOWN, Settings
from tests.support.servers.machine import wait_for
from vibeforge_sessions import Session, SessionRepository

PATIENCE: Final = 120.0
"""Seconds to wait for an event that must occur eventually: a deadline of 30 s on a slow machine."""
_SHARED: Final = 4

Call = dict[str, Any]


class Writers:
    """Processes of `writer`, which write inside the ``with`` block.

    :param code: a folder that contains another version of the package.
    """

    def __init__(self, settings: Iterable[Settings], *, code: Path | None = None) -> None:
        path = [] if code is None else [str(code), str(ROOT)]
        self._environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)} if path else {}
        self.settings = list(settings)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._read = dict.fromkeys((each.journal for each in self.settings), 0)
        self._acknowledged = 0

    def __enter__(self) -> Self:
        try:
            for each in self.settings:
                path = Path(each.journal).with_suffix(".settings")
                path.write_text(json.dumps(dataclasses.asdict(each)))
                with _output_path(each).open("w") as output:
                    command = [sys.executable, "-m", "tests.support.faults.writer", str(path)]
                    self._processes.append(
                        subprocess.Popen(
                            command,
                            cwd=ROOT,
                            env={**os.environ, **self._environment},
                            stdin=subprocess.PIPE,
                            stdout=output,
                            stderr=output,
                        )
                    )
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.stop()
        finally:
            self._kill()

    def acknowledged(self) -> int:
        """Return the number of acknowledged calls so far."""
        self._look_after()
        for name, place in self._read.items():
            path = Path(name)
            if path.exists():
                with path.open("rb") as file:
                    file.seek(place)
                    lines = file.read()
                whole = lines[: lines.rfind(b"\n") + 1]
                self._acknowledged += whole.count(b'"outcome": "ok"')
                self._read[name] = place + len(whole)
        return self._acknowledged

    def wait_for(self, calls: int, patience: float = PATIENCE) -> None:
        """Return when this many more calls have been acknowledged."""
        enough = self.acknowledged() + calls
        wait_for(lambda: self.acknowledged() >= enough, patience, f"{calls} calls to be acknowledged")

    def stop(self) -> None:
        """Let each process finish its current calls and exit."""
        self._look_after()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(PATIENCE)  # longer than any deadline: a call that still runs then has no working deadline
        self._look_after(ended=True)

    def _look_after(self, *, ended: bool = False) -> None:
        for process, each in zip(self._processes, self.settings, strict=True):
            code = process.poll()
            if code or (code == 0 and not ended):
                raise RuntimeError(f"{each.name} has exited with {code}: {_output_path(each).read_text()[-3000:]}")

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _output_path(settings: Settings) -> Path:
    return Path(settings.journal).with_suffix(".output")


@dataclasses.dataclass
class Findings:
    """The result of comparing the journals with the database."""

    calls: Counter[str]
    """Counts of calls, by name and outcome."""
    retries: Counter[str]
    """Counts of retries, by call and reason."""
    violations: list[str]
    longest_silence: float
    """The longest time without an acknowledgement, in seconds."""
    longest_call: float
    seconds: float
    """Time from the first acknowledgement to the last."""
    texts: Counter[str]
    """Counts of error messages of calls that were not acknowledged."""

    def outcomes(self, outcome: str) -> int:
        """Return the number of calls with this outcome."""
        return sum(number for call, number in self.calls.items() if call.endswith(f" {outcome}"))

    def retried(self, *reasons: str) -> int:
        """Return the number of retries for one of these reasons."""
        return sum(number for reason, number in self.retries.items() if reason.endswith(reasons))

    def as_figures(self) -> dict[str, Any]:
        """Return the findings for a report."""
        kinds = Counter(violation.split()[0] for violation in self.violations)
        return {
            "acknowledged": self.outcomes(OK),
            "lost": kinds.pop("LOST", 0),
            "twice": kinds.pop("TWICE", 0),
            "wrong": kinds.total(),
            "failed": self.outcomes(FAILED),
            "unknown": self.outcomes(UNKNOWN),
            "stale": self.retried("StaleSessionError"),
            "conflicts": self.retried(" 1213", " 40P01", " 40001"),
            "retried": self.retries.total(),
            "silence": self.longest_silence,
            "longest call": self.longest_call,
            "seconds": self.seconds,
            "calls": self.calls,
            "retries": self.retries,
            "texts": self.texts,
            "violations": self.violations,
        }


def shared_sessions(repository: SessionRepository) -> tuple[list[str], list[str]]:
    """Create the sessions that all writers use: those for appends, and those for updates."""
    made = [[f"{kind}-{number}" for number in range(_SHARED)] for kind in ("history", "state")]
    for session_id in [*made[0], *made[1]]:
        repository.create_session(session_id=session_id)
    return made[0], made[1]


def examine(repository: SessionRepository, settings: Sequence[Settings]) -> Findings:
    """Compare the journals of the writers with the database."""
    calls, retries = _read(settings)
    violations: list[str] = []
    by_session: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_session[call["session"]].append(call)
    for session_id in settings[0].histories:
        violations += _history(_whole(repository, session_id), by_session.pop(session_id, []))
    for session_id in settings[0].states:
        violations += _state(_whole(repository, session_id), by_session.pop(session_id, []))
    for session_id, reported in by_session.items():
        violations += _own(session_id, repository.get_session(session_id), reported)
    known = {*settings[0].histories, *settings[0].states, *by_session}
    violations += [f"{each} is stored, but no call has created it" for each in set(repository.list_sessions()) - known]
    acknowledged = sorted(call["ended"] for call in calls if call["outcome"] == OK)
    return Findings(
        calls=Counter(f"{call['call']} {call['outcome']}" for call in calls),
        retries=retries,
        violations=violations,
        longest_silence=max((b - a for a, b in itertools.pairwise(acknowledged)), default=0.0),
        longest_call=max((call["ended"] - call["began"] for call in calls), default=0.0),
        seconds=acknowledged[-1] - acknowledged[0] if acknowledged else 0.0,
        texts=Counter(f"{call['call']}: {call['text']}" for call in calls if "text" in call),
    )


def _read(settings: Sequence[Settings]) -> tuple[list[Call], Counter[str]]:
    calls, retries = list[Call](), Counter[str]()
    for each in settings:
        for line in Path(each.journal).read_text().splitlines():
            call = json.loads(line)
            if call["call"] == "retries":
                retries.update(call["reasons"])
            else:
                calls.append(call)
    return calls, retries


def _whole(repository: SessionRepository, session_id: str) -> Session:
    session = repository.get_session(session_id)
    assert session is not None, f"{session_id} is missing"
    return session


def _count_violations(reported: Sequence[Call], stored: Counter[str], what: str) -> Iterator[str]:
    """Yield a violation for each call that is stored more or less often than its answer allows."""
    for call in reported:
        times = stored.pop(call["token"], 0)
        name = f"{what}: {call['call']} {call['token']}, reported as {call['outcome']}"
        if call["outcome"] == OK and times == 0:
            yield f"LOST {name}"
        elif times > 1:
            yield f"TWICE {name}, is stored {times} times"
        elif call["outcome"] not in {OK, UNKNOWN} and times:
            yield f"STORED {name}"
        if call["outcome"] not in {OK, UNKNOWN, FAILED}:
            yield f"WRONG {name}: {call['text']}"
    for token, times in stored.items():
        yield f"UNREPORTED {what}: {token} is stored {times} times, but no call has reported it"


def _history(session: Session, reported: Sequence[Call]) -> Iterator[str]:
    what = session.session_id
    errors = [call for call in reported if call["call"] == "append_error"]
    yield from _count_violations(errors, Counter(entry.error_message for entry in session.error_history), what)
    logs = [call for call in reported if call["call"] == "append_log"]
    yield from _count_violations(logs, Counter(_message(line) for line in session.logs), what)
    if [entry.position for entry in session.error_history] != list(range(1, len(session.error_history) + 1)):
        yield f"GAPS {what}: the positions are not 1, 2, 3 …"
    places = {entry.error_message: entry.position for entry in session.error_history}
    for call in errors:
        if call["outcome"] == OK and call["token"] in places and call["place"] != places[call["token"]]:
            yield f"WRONG {what}: {call['token']} is stored at {places[call['token']]}, but reported at {call['place']}"


def _state(session: Session, reported: Sequence[Call]) -> Iterator[str]:
    what = session.session_id
    yield from _count_violations(reported, Counter(_message(line) for line in session.logs), what)
    stored = len(session.logs)
    if (session.current_question_index, session.version) != (stored, stored + 1):
        yield (
            f"LOST {what}: {stored} updates have appended logs, {session.current_question_index} have incremented the "
            f"counter, and the version is {session.version}"
        )
    # Each acknowledged version belongs to one update, and the position of its log corresponds to the version.
    order = {_message(line): place for place, line in enumerate(session.logs, 2)}
    for call in reported:
        if call["outcome"] == OK and order.get(call["token"], call["place"]) != call["place"]:
            yield f"WRONG {what}: {call['token']} created version {order[call['token']]}, but reported {call['place']}"


def _own(session_id: str, session: Session | None, reported: Sequence[Call]) -> Iterator[str]:
    """Yield the violations of a session that only one client has used, so that each call determines the next state."""
    reported = sorted(reported, key=lambda call: float(call["began"]))
    wrong = [call for call in reported if call["outcome"] not in {OK, FAILED, UNKNOWN}]
    for call in wrong:
        yield f"WRONG {session_id}: {call['call']} {call['token']} reported as {call['outcome']}: {call['text']}"
    last = reported[-1]
    if last["call"] == "delete" and last["outcome"] == OK:
        if session is not None:
            yield f"LOST {session_id}: deleted, but stored"
        if last["place"] != 1:
            yield f"WRONG {session_id}: the deletion reported that no session existed"
        return
    done = [call for call in reported if call["outcome"] == OK]
    if session is None:
        allowed = not done or (last["call"] == "delete" and last["outcome"] == UNKNOWN)
        if not allowed:
            yield f"LOST {session_id}: created, but not stored"
        return
    possible = [len(done)] + ([len(done) + 1] if last["outcome"] == UNKNOWN and last["call"] != "delete" else [])
    if session.version not in possible:
        yield f"LOST {session_id}: {len(done)} writes were reported, but the version is {session.version}"
        return
    stored = [call["token"] for call in reported if call["call"] != "delete"][: session.version]
    if session.answers.get("last") != stored[-1] or [_message(line) for line in session.logs] != stored[1:]:
        yield f"WRONG {session_id}: the stored content is not that of the last update"


def _message(line: str) -> str:
    return line.partition("] ")[2]


@contextlib.contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Record the duration of a block in seconds."""
    began = time.monotonic()
    yield
    seconds[what] = round(time.monotonic() - began, 2)
