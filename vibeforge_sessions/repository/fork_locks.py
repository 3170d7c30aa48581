"""Locks that are free in a forked child process.

A lock that another thread has acquired at the time of a fork would stay locked in the child forever.
"""

from __future__ import annotations

import os
import threading
from typing import Final
from weakref import WeakSet

_TIMEOUT_SECONDS: Final = 5.0
"""Maximum time that a fork waits for each lock."""

_locks: Final[WeakSet[threading.Lock]] = WeakSet()
_acquired: Final = threading.local()


def fork_lock() -> threading.Lock:
    """Return a lock for short sections without I/O; a fork waits until the lock is free."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def acquire_until_fork(*locks: threading.Lock) -> None:
    """Acquire locks and keep them until this thread has forked; to be called in a hook that runs before the fork."""
    acquired = [lock for lock in locks if lock.acquire(timeout=_TIMEOUT_SECONDS)]
    _acquired.locks = [*getattr(_acquired, "locks", ()), *acquired]


def _acquire_all() -> None:
    acquire_until_fork(*_locks)


def _release() -> None:
    # also correct in the child: its only thread is the copy of the thread that acquired the locks and forked
    locks, _acquired.locks = getattr(_acquired, "locks", []), []
    for lock in locks:
        lock.release()


def _release_in_child() -> None:
    _release()
    for lock in _locks:
        if lock.locked():  # a thread that does not exist in the child kept the lock for longer than the timeout
            lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 (as the standard library does)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_acquire_all, after_in_parent=_release, after_in_child=_release_in_child)
