"""What clients asked and what they were told: every call of a repository, with the times between which it was made.

A journal is a file of one client, two lines a call: one before the call is made, one after its answer. Each line is in
the file before anything else happens, so that of a client that is killed every call is known, and of the last one that
nobody has heard the answer. Times are of the system's monotonic clock, which is one for all processes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from vibeforge_sessions import (
    OutcomeUnknownError,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
    StorageError,
)

T = TypeVar("T")

EVERYWHERE: Final = ("find_sessions", "list_sessions")
"""Calls that see every session at one moment; ``asked["ids"]`` tells which ones we look for in their answer."""
WRITES: Final = ("create_session", "update_session", "append_error", "append_log", "delete_session")


class Outcome(StrEnum):
    """What a client was told."""

    DONE = "done"
    STALE = "stale"
    NOT_FOUND = "not found"
    EXISTS = "exists"
    NOT_DONE = "not done"
    """`StorageError`: nothing was written."""
    UNKNOWN = "unknown"
    """`OutcomeUnknownError`, or no answer at all: done at some moment after the call was made, or never."""
    UNEXPECTED = "unexpected"
    """An exception that nothing here should raise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One call on one session."""

    client: str
    call: str
    session_id: str
    began: int
    """In nanoseconds of the monotonic clock: before this nothing of it can have happened."""
    ended: int | None
    """When its answer had come; None where none has."""
    outcome: Outcome
    asked: dict[str, Any]
    answer: Any = None

    @property
    def changes(self) -> bool:
        """Whether it may have changed something."""
        return self.call in WRITES and (
            self.outcome is Outcome.UNKNOWN
            or (self.outcome is Outcome.DONE and self.answer is not False)  # False: there was nothing to delete
        )

    def __str__(self) -> str:
        asked = ", ".join(f"{name}={value}" for name, value in self.asked.items())
        told = "" if self.answer is None else f" {self.answer}"
        ended = "…" if self.ended is None else f"{self.ended / 1e6:.3f}"
        return f"[{self.began / 1e6:.3f}, {ended}] {self.client}: {self.call}({asked}) -> {self.outcome}{told}"


class Told(NamedTuple):
    """A client's answer: the outcome, and what the call has returned if it was done."""

    outcome: Outcome
    result: Any = None


_OUTCOMES: Final[list[tuple[type[Exception], Outcome]]] = [
    (StaleSessionError, Outcome.STALE),
    (SessionNotFoundError, Outcome.NOT_FOUND),
    (SessionExistsError, Outcome.EXISTS),
    (OutcomeUnknownError, Outcome.UNKNOWN),
    (StorageError, Outcome.NOT_DONE),
]


class Journal:
    """The file of one client's calls."""

    def __init__(self, folder: Path, client: str) -> None:
        self.client = client
        self._file = os.open(folder / f"{client}.journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._count = 0

    def close(self) -> None:
        os.close(self._file)

    def record(
        self, call: str, session_id: str, asked: dict[str, Any], do: Callable[[], T], answer: Callable[[T], Any]
    ) -> Told:
        """Make a call and write down what comes of it; ``answer`` says what of its result is kept."""
        self._count += 1
        began = time.monotonic_ns()
        self._write(n=self._count, call=call, session_id=session_id, began=began, asked=asked)
        try:
            result = do()
        except Exception as error:  # noqa: BLE001 (it is the answer)
            ended = time.monotonic_ns()
            outcome, kept = _told(error)
            told = Told(outcome)
        else:
            ended = time.monotonic_ns()
            told, kept = Told(Outcome.DONE, result), answer(result)
        self._write(n=self._count, ended=ended, outcome=told.outcome, answer=kept)
        return told

    def _write(self, **line: Any) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def _told(error: Exception) -> tuple[Outcome, Any]:
    for kind, outcome in _OUTCOMES:
        if isinstance(error, kind):
            return outcome, error.stored_version if isinstance(error, StaleSessionError) else None
    return Outcome.UNEXPECTED, "".join(traceback.format_exception(error))


def read(folder: Path) -> list[Operation]:
    """Return the operations of all journals of a folder, in the order of their beginnings."""
    operations: list[Operation] = []
    for path in folder.glob("*.journal"):
        operations += _of_journal(path.stem, path.read_text().splitlines(keepends=True))
    return sorted(operations, key=lambda operation: operation.began)


def _of_journal(client: str, lines: Iterable[str]) -> Iterable[Operation]:
    begun: dict[int, dict[str, Any]] = {}
    for text in lines:
        if not text.endswith("\n"):  # killed while it was writing: the call was not made, or its answer not used
            break
        line = json.loads(text)
        number = line.pop("n")
        if "call" in line:
            begun[number] = line
        else:
            asked = begun.pop(number)
            yield Operation(client=client, **asked, **{**line, "outcome": Outcome(line["outcome"])})
    for asked in begun.values():
        yield Operation(client=client, ended=None, outcome=Outcome.UNKNOWN, **asked)


def by_session(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Return each session's operations; a call that sees them all is one operation on each of them."""
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        for each in _on_each(operation):
            found.setdefault(each.session_id, []).append(each)
    return found


def _on_each(operation: Operation) -> Iterable[Operation]:
    if operation.call not in EVERYWHERE:
        yield operation
        return
    for session_id in operation.asked["ids"]:
        answer = operation.answer.get(session_id) if operation.outcome is Outcome.DONE else operation.answer
        yield dataclasses.replace(operation, session_id=session_id, asked={}, answer=answer)


class Crash(NamedTuple):
    """A server's: when it was about to be killed, and when it was there again, by the clock of the operations."""

    killed: int
    restarted: int


def without_glimpses(operations: list[Operation], crashes: Iterable[Crash]) -> list[Operation]:
    """Return one session's operations without those whose answer a crash may have taken back.

    MariaDB without a binary log shows a commit to others before it is safe: only the writer waits for that. So what was
    answered by the server that was then killed is left out if it changed nothing and was not over when a write began
    that nobody was told the end of.
    """
    found = operations
    for crash in crashes:
        open_writes = [
            each.began
            for each in operations
            if each.call in WRITES and each.began < crash.killed and (each.ended is None or each.ended > crash.killed)
        ]
        since = min(open_writes, default=crash.restarted)
        found = [
            each
            for each in found
            if each.changes
            or each.ended is None
            or not since < each.ended <= crash.restarted  # an answer of the old one may be heard late
            or each.began > crash.killed
        ]
    return found


def longest_gap(operations: Iterable[Operation]) -> float:
    """Return for how many seconds at the most nobody was acknowledged anything."""
    ends = sorted(each.ended for each in operations if each.outcome is Outcome.DONE and each.ended is not None)
    return max((after - before for before, after in itertools.pairwise(ends)), default=0) / 1e9
