"""Input of 40 MB, under a limit of memory: ``python -m tests.support.faults.large_input URL``, for `test_large_input`.

A process of its own, so that the limit is its own. Each call stores what it was given, exactly, or refuses it with one
of our errors; a `MemoryError`, which is none of them, ends it.
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
"""Bytes that the process may grow by: of a text there is its JSON, the driver's copy, what is read back."""


def main(url: str) -> None:
    """Hand in one large thing after the other."""
    large = "x" * SIZE
    with open_repository(url) as repository:
        repository.create_session(session_id="s")
        repository.append_log("s", "everything is imported and connected")
        used = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
        for name, call in REFUSED.items():
            _refused(name, lambda: call(repository, large))  # noqa: B023 (called at once)
        assert repository.list_sessions() == ["s"]
        _stored("an error", lambda: _error(repository, large))
        _stored("a log line", lambda: _log(repository, large))
        _stored("a document", lambda: _document(repository, {"text": large}))
        _stored("many values", lambda: _document(repository, [1.5] * (SIZE // 50)))
        _stored("what is not ASCII", lambda: _document(repository, "é" * (SIZE // 10)))
        repository.delete_session("s")
        assert repository.list_sessions() == []


REFUSED: dict[str, Callable[[SessionRepository, str], Any]] = {
    "an id": lambda repository, large: repository.get_session(large),
    "the id of an append": lambda repository, large: repository.append_error(large, "t", "m"),
    "the id of a new session": lambda repository, large: repository.create_session(session_id=large),
    "a cursor": lambda repository, large: repository.find_sessions(cursor=large),
    "an order": lambda repository, large: repository.find_sessions(order=large),  # type: ignore[arg-type]
    "a task id": lambda repository, large: repository.create_session(Session(completed_task_ids=[large])),
    "the name of a field": lambda _, large: Session.from_dict({large: 1}),
    "the text of a time": lambda _, large: Session.from_dict({"created_at": large}),
    "digits": lambda repository, large: repository.create_session(Session(answers={"n": 1 << len(large)})),
    "a key beside what is refused": lambda repository, large: repository.create_session(
        Session(answers={large: float("nan")})
    ),
}


def _refusal(call: Callable[[], Any]) -> SessionRepositoryError | None:
    try:
        call()
    except SessionRepositoryError as error:
        return error
    return None


def _refused(name: str, call: Callable[[], Any]) -> None:
    error = _refusal(call)
    assert isinstance(error, (InvalidArgumentError, InvalidSessionError)), name
    assert len(str(error)) < 1000, name


def _stored(name: str, call: Callable[[], None]) -> None:
    error = _refusal(call)
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
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 (no file)
        return int(statm.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1])
