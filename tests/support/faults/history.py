"""Histories of repository calls: arguments, answers, and the times between which each call was made.

A journal is the file of one client. It has two lines per call, one before the call and one after its answer. Each line
is written before anything else happens. For a killed client every call is therefore known, and the last call is known
to have no answer. Times are those of the system's monotonic clock, which all processes share.
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
"""Calls that read every session at one moment; ``arguments["ids"]`` lists the sessions to look for in their answers."""
WRITES: Final = ("create_session", "update_session", "append_error", "append_log", "delete_session")


class Outcome(StrEnum):
    """The outcome that a call reported to its client."""

    DONE = "done"
    STALE = "stale"
    NOT_FOUND = "not found"
    EXISTS = "exists"
    NOT_DONE = "not done"
    """`StorageError`: nothing was written."""
    UNKNOWN = "unknown"
    """`OutcomeUnknownError`, or no answer: the write happened at some moment after the call began, or never."""
    UNEXPECTED = "unexpected"
    """An exception that no call should raise here."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One call on one session."""

    client: str
    call: str
    session_id: str
    began: int
    """Nanoseconds of the monotonic clock. The call had no effect before this time."""
    ended: int | None
    """Time when the answer had arrived; None without an answer."""
    outcome: Outcome
    arguments: dict[str, Any]
    answer: Any = None

    @property
    def changes(self) -> bool:
        """Whether the call may have changed the session."""
        return self.call in WRITES and (
            self.outcome is Outcome.UNKNOWN
            or (self.outcome is Outcome.DONE and self.answer is not False)  # False: there was no session to delete
        )

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        reply = "" if self.answer is None else f" {self.answer}"
        ended = "…" if self.ended is None else f"{self.ended / 1e6:.3f}"
        return f"[{self.began / 1e6:.3f}, {ended}] {self.client}: {self.call}({arguments}) -> {self.outcome}{reply}"


class Reply(NamedTuple):
    """A client's answer: the outcome, and the return value of a successful call."""

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
        self, call: str, session_id: str, arguments: dict[str, Any], do: Callable[[], T], answer: Callable[[T], Any]
    ) -> Reply:
        """Make a call and write its outcome to the journal; ``answer`` converts its result for the journal."""
        self._count += 1
        began = time.monotonic_ns()
        self._write(n=self._count, call=call, session_id=session_id, began=began, arguments=arguments)
        try:
            result = do()
        except Exception as error:  # noqa: BLE001 (the error is the answer)
            ended = time.monotonic_ns()
            outcome, kept = _reply_to(error)
            reply = Reply(outcome)
        else:
            ended = time.monotonic_ns()
            reply, kept = Reply(Outcome.DONE, result), answer(result)
        self._write(n=self._count, ended=ended, outcome=reply.outcome, answer=kept)
        return reply

    def _write(self, **line: Any) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def _reply_to(error: Exception) -> tuple[Outcome, Any]:
    for kind, outcome in _OUTCOMES:
        if isinstance(error, kind):
            return outcome, error.stored_version if isinstance(error, StaleSessionError) else None
    return Outcome.UNEXPECTED, "".join(traceback.format_exception(error))


def read(folder: Path) -> list[Operation]:
    """Return the operations of all journals of a folder, ordered by their beginnings."""
    operations: list[Operation] = []
    for path in folder.glob("*.journal"):
        operations += _of_journal(path.stem, path.read_text().splitlines(keepends=True))
    return sorted(operations, key=lambda operation: operation.began)


def _of_journal(client: str, lines: Iterable[str]) -> Iterable[Operation]:
    begun: dict[int, dict[str, Any]] = {}
    for text in lines:
        if not text.endswith("\n"):  # killed during this write: the call was not made, or its answer was not used
            break
        line = json.loads(text)
        number = line.pop("n")
        if "call" in line:
            begun[number] = line
        else:
            beginning = begun.pop(number)
            yield Operation(client=client, **beginning, **{**line, "outcome": Outcome(line["outcome"])})
    for beginning in begun.values():
        yield Operation(client=client, ended=None, outcome=Outcome.UNKNOWN, **beginning)


def by_session(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Return each session's operations; a call that reads all sessions is one operation on each of them."""
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        for each in _on_each(operation):
            found.setdefault(each.session_id, []).append(each)
    return found


def _on_each(operation: Operation) -> Iterable[Operation]:
    if operation.call not in EVERYWHERE:
        yield operation
        return
    for session_id in operation.arguments["ids"]:
        answer = operation.answer.get(session_id) if operation.outcome is Outcome.DONE else operation.answer
        yield dataclasses.replace(operation, session_id=session_id, arguments={}, answer=answer)


class Crash(NamedTuple):
    """A crash of the server: the time before its kill, and the time after its restart."""

    killed: int
    restarted: int


def without_glimpses(operations: list[Operation], crashes: Iterable[Crash]) -> list[Operation]:
    """Return one session's operations without those whose answers a crash may have revoked.

    MariaDB without a binary log shows a commit to other clients before it is durable: only the writer waits for that.
    The killed server may therefore have answered a read with data that was lost. Such a read is left out if it changed
    nothing and ended after the beginning of a write that had no answer at the crash.
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
            or not since < each.ended <= crash.restarted  # an answer of the killed server may arrive late
            or each.began > crash.killed
        ]
    return found


def longest_gap(operations: Iterable[Operation]) -> float:
    """Return the longest time in seconds without an acknowledged call."""
    ends = sorted(each.ended for each in operations if each.outcome is Outcome.DONE and each.ended is not None)
    return max((after - before for before, after in itertools.pairwise(ends)), default=0) / 1e9
