"""Base class of the measured session stores, and the session that all of them store.

This module imports the standard library only, because each peer runs in its own environment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

CALLS = (
    "create",
    "append",
    "get",
    "get_recent",
    "update_phase",
    "update_artifact",
    "update_phase_and_error",
    "list_page",
    "list_errors_start",
    "list_errors_middle",
    "list_errors_end",
    "delete",
)
"""Measured calls, in the order of the tables. Each takes the id of a session, except `list_page`."""
RECENT = 20
PAGE = 50
LOG_LINES = 50
MESSAGE = (
    "Traceback (most recent call last): File 'app/tasks.py', line 41, in run\n" + "  assert result.ok, result\n" * 6
)
"""Error message of 230 bytes. With its time, task and phase, an entry has about 250 bytes."""
DOCUMENTS: dict[str, Any] = {
    "answers": {f"question-{n}": f"an answer of some length to question {n}, as people write them" for n in range(20)},
    "intent_profile": {"platform": "web", "audience": "general", "weights": [n / 7 for n in range(60)]},
    "build_spec": {
        "stack": "vite-react",
        "files": [{"path": f"src/part_{n}/index.tsx", "lines": 40 + n, "public": n % 2 == 0} for n in range(80)],
    },
    "concept": {"title": "A shop for plants", "pages": [f"Page {n}: what is on it and why" * 2 for n in range(40)]},
    "task_graph": {
        "tasks": [
            {"id": f"task-{n}", "title": f"Write part {n}", "needs": [f"task-{n - 1}"] if n else [], "minutes": n * 1.5}
            for n in range(100)
        ]
    },
}
"""Documents of one session: 19 KB of JSON text."""


class Contender(ABC):
    """Session store in its own process.

    :param place: a folder for a store in files, or the URL of an empty database.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, place: str) -> None: ...

    @abstractmethod
    def about(self) -> Mapping[str, str]:
        """Return ``version``, ``durability`` and ``note``: the differences to other stores."""

    @abstractmethod
    def calls(self) -> Mapping[str, Callable[..., object]]:
        """Return the calls of `CALLS` that the store supports."""

    @abstractmethod
    def prepare(self, entries: int) -> str:
        """Store a session with `DOCUMENTS`, `LOG_LINES` log lines and this number of errors; return its id."""

    @abstractmethod
    def fill(self, sessions: int) -> None:
        """Store small sessions until the store contains this number of sessions."""

    def draft(self, session_id: str) -> None:  # noqa: B027 (most stores take data that needs no preparation)
        """Prepare the session that `create` stores, before the measurement."""

    def hold(self, session_id: str) -> None:  # noqa: B027 (most updates read the session themselves)
        """Read the session that updates change, before the measurement."""

    def count(self, session_id: str) -> int:
        """Return the number of stored errors."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027 (not every store has resources)
        """Release all resources."""


class ConflictError(Exception):
    """The store rejected a write because of a concurrent write, as it documents."""
