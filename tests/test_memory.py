"""Locking of the in-memory repository."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest

from vibeforge_sessions import InMemorySessionRepository, Session, StaleSessionError
from vibeforge_sessions.testing.base import SESSION_ID, full_session, stored


class LockWithConcurrentCall:
    """Lock that makes the call of another thread when it is released for the first time."""

    def __init__(self, lock: Lock, concurrent_call: Callable[[], object]) -> None:
        self._lock = lock
        self._concurrent_calls = [concurrent_call]

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self._concurrent_calls:
            self._concurrent_calls.pop()()


def test_session_changed_before_create_returns_is_stale() -> None:
    repository = InMemorySessionRepository()

    def concurrent_call() -> None:
        repository.append_error(SESSION_ID, "other", "m")
        repository.modify_session(SESSION_ID, lambda session: session.add_answer("q", "concurrent"))

    repository._lock = LockWithConcurrentCall(repository._lock, concurrent_call)  # type: ignore[assignment]
    given = full_session()
    returned = repository.create_session(given)
    assert given.version == returned.version == 1
    assert [entry.position for entry in given.error_history] == [1]
    for late in (given, returned):
        late.add_answer("q", "late")
        with pytest.raises(StaleSessionError):
            repository.update_session(late)
    assert stored(repository).answers["q"] == "concurrent"


class Guarded(dict[str, Any]):
    """Dictionary that asserts at each access that the lock is held."""

    def __init__(self, lock: Lock) -> None:
        super().__init__()
        self._lock = lock

    def __getattribute__(self, name: str) -> Any:
        if name in {"get", "pop", "values", "items", "keys"}:
            assert super().__getattribute__("_lock").locked()
        return super().__getattribute__(name)

    def __getitem__(self, key: str) -> Any:
        assert self._lock.locked()
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        assert self._lock.locked()
        super().__setitem__(key, value)

    def __contains__(self, key: object) -> bool:
        assert self._lock.locked()
        return super().__contains__(key)


def test_every_call_holds_the_lock() -> None:
    repository = InMemorySessionRepository()
    repository._sessions = Guarded(repository._lock)
    session = repository.create_session(full_session())
    session.add_log("m")
    repository.update_session(session)
    restored = Session.from_dict(session.to_dict())
    restored.add_log("m")
    repository.update_session(restored)
    repository.append_error(SESSION_ID, "t", "m")
    repository.append_log(SESSION_ID, "m")
    assert len(repository.list_errors(SESSION_ID)) == 2
    assert len(repository.list_logs(SESSION_ID)) == 4
    assert repository.list_sessions() == [SESSION_ID]
    assert len(repository.find_sessions().items) == 1
    assert repository.get_session(SESSION_ID, recent=1)
    assert repository.delete_session(SESSION_ID)
