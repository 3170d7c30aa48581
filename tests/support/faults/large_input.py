"""Input of 40 MB with a memory limit, for `test_large_input`: ``python -m tests.support.faults.large_input URL``.

The limit applies to this process alone. Each call stores its argument exactly, or rejects it with an error of the
package. A `MemoryError` is not such an error and ends the process.
"""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Callable
from typing import Any

from vibeforge_sessions import (
    InvalidArgumentError,
    InvalidSessionError,
    Session,
    SessionRepository,
    SessionRepositoryError,
    open_repository,
)
from vibeforge_sessions.testing.base import stored

SIZE = 40_000_000
LIMIT = 16 * SIZE
"""Bytes by which the process may grow: a text also exists as JSON, as the driver's copy and as the value read back."""


def main(url: str) -> None:
    """Pass one large value after another to the repository."""
    large = "x" * SIZE
    with open_repository(url) as repository:
        repository.create_session(session_id="s")
        repository.append_log("s", "everything is imported and connected")
        address_space = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (address_space + LIMIT, address_space + LIMIT))
        for name, call in REJECTED.items():
            _check_rejected(name, lambda: call(repository, large))  # noqa: B023 (called immediately)
        assert repository.list_sessions() == ["s"]
        _check_stored("an error", lambda: _error(repository, large))
        _check_stored("a log line", lambda: _log(repository, large))
        _check_stored("a document", lambda: _document(repository, {"text": large}))
        _check_stored("many values", lambda: _document(repository, [1.5] * (SIZE // 50)))
        _check_stored("text that is not ASCII", lambda: _document(repository, "é" * (SIZE // 10)))
        repository.delete_session("s")
        assert repository.list_sessions() == []


REJECTED: dict[str, Callable[[SessionRepository, str], Any]] = {
    "an id": lambda repository, large: repository.get_session(large),
    "the id of an append": lambda repository, large: repository.append_error(large, "t", "m"),
    "the id of a new session": lambda repository, large: repository.create_session(session_id=large),
    "a cursor": lambda repository, large: repository.find_sessions(cursor=large),
    "an order": lambda repository, large: repository.find_sessions(order=large),  # type: ignore[arg-type]
    "a task id": lambda repository, large: repository.create_session(Session(completed_task_ids=[large])),
    "the name of a field": lambda _, large: Session.from_dict({large: 1}),
    "the text of a time": lambda _, large: Session.from_dict({"created_at": large}),
    "digits": lambda repository, large: repository.create_session(Session(answers={"n": 1 << len(large)})),
    "a key next to a rejected value": lambda repository, large: repository.create_session(
        Session(answers={large: float("nan")})
    ),
}


def _rejection(call: Callable[[], Any]) -> SessionRepositoryError | None:
    try:
        call()
    except SessionRepositoryError as error:
        return error
    return None


def _check_rejected(name: str, call: Callable[[], Any]) -> None:
    error = _rejection(call)
    assert isinstance(error, (InvalidArgumentError, InvalidSessionError)), name
    assert len(str(error)) < 1000, name


def _check_stored(name: str, call: Callable[[], None]) -> None:
    error = _rejection(call)
    outcome = "stored" if error is None else f"{type(error).__name__}: {error}"
    assert len(outcome) < 1000, name
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name}: {outcome} (peak {peak} MB)", flush=True)


def _error(repository: SessionRepository, large: str) -> None:
    position = repository.append_error("s", large, large, large).position
    assert position is not None
    (entry,) = repository.list_errors("s", after=position - 1)
    assert (len(entry.task_id), len(entry.phase)) == (255, 64)
    assert _digest(entry.error_message) == _digest(large)


def _log(repository: SessionRepository, large: str) -> None:
    repository.append_log("s", large)
    (*_, line) = repository.list_logs("s")
    assert _digest(line.split("] ", 1)[1]) == _digest(large)


def _document(repository: SessionRepository, value: Any) -> None:
    repository.create_session(Session(session_id="d", clarification_answer=value))
    assert stored(repository, "d").clarification_answer == value
    repository.delete_session("d")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 (not a regular file)
        return int(statm.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1])
