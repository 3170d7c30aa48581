"""Locks that no other thread holds while the process forks: a child would never see them released."""

from __future__ import annotations

import os
import threading
from typing import Final
from weakref import WeakSet

_LONGEST: Final = 5.0
"""How long a fork waits for a lock, in seconds."""

_locks: Final[WeakSet[threading.Lock]] = WeakSet()
_held: Final = threading.local()


def fork_lock() -> threading.Lock:
    """Return a lock for short sections without input or output; a fork waits until it is free."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def hold(*locks: threading.Lock) -> None:
    """Hold locks until this thread has forked; for a hook that is run before."""
    _held.locks = [*getattr(_held, "locks", ()), *(lock for lock in locks if lock.acquire(timeout=_LONGEST))]


def _hold_all() -> None:
    hold(*_locks)


def _release() -> None:
    # in the child, too: what is held there was acquired by the thread that forked, which is the child's only one
    locks, _held.locks = getattr(_held, "locks", []), []
    for lock in locks:
        lock.release()


def _release_in_child() -> None:
    _release()
    for lock in _locks:
        if lock.locked():  # a thread kept it longer than the fork has waited, and does not exist here
            lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 (as the standard library does)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_all, after_in_parent=_release, after_in_child=_release_in_child)
