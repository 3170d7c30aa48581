"""What only the in-memory implementation could get wrong."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import pytest

from vibeforge_sessions import InMemorySessionRepository, Session, StaleSessionError
from vibeforge_sessions.testing.base import SESSION_ID, full_session, stored


class LockLetGo:
    """A lock; somebody else is quick when it is let go for the first time."""

    def __init__(self, lock: Lock, somebody_else: Callable[[], object]) -> None:
        self._lock = lock
        self._somebody_else = [somebody_else]

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self._somebody_else:
            self._somebody_else.pop()()


def test_a_session_written_by_another_before_its_creator_has_it_back() -> None:
    repository = InMemorySessionRepository()

    def somebody_else() -> None:
        repository.append_error(SESSION_ID, "other", "m")
        repository.modify_session(SESSION_ID, lambda session: session.add_answer("q", "theirs"))

    repository._lock = LockLetGo(repository._lock, somebody_else)  # type: ignore[assignment]
    given = full_session()
    returned = repository.create_session(given)
    assert given.version == returned.version == 1
    assert [entry.position for entry in given.error_history] == [1]
    for late in (given, returned):
        late.add_answer("q", "mine")
        with pytest.raises(StaleSessionError):
            repository.update_session(late)
    assert stored(repository).answers["q"] == "theirs"


class Guarded(dict[str, Any]):
    """A dict that is only looked at by whoever holds the lock."""

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
    travelled = Session.from_dict(session.to_dict())
    travelled.add_log("m")
    repository.update_session(travelled)
    repository.append_error(SESSION_ID, "t", "m")
    repository.append_log(SESSION_ID, "m")
    assert len(repository.list_errors(SESSION_ID)) == 2
    assert len(repository.list_logs(SESSION_ID)) == 4
    assert repository.list_sessions() == [SESSION_ID]
    assert len(repository.find_sessions().items) == 1
    assert repository.get_session(SESSION_ID, recent=1)
    assert repository.delete_session(SESSION_ID)
