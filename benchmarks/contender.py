"""A session store under measurement, and the sessions that all of them are given.

Nothing but the standard library in here: peers run in environments of their own.
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
"""Every call that is measured, in the order of the tables. Each takes a session's id, `list_page` none."""
RECENT = 20
PAGE = 50
LOG_LINES = 50
MESSAGE = (
    "Traceback (most recent call last): File 'app/tasks.py', line 41, in run\n" + "  assert result.ok, result\n" * 6
)
"""An error's message of 230 bytes: with its time, task and phase an entry has about 250."""
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
"""The JSON of one session: 19 KB as text."""


class Contender(ABC):
    """One session store; it lives in a process of its own.

    :param place: a folder for stores in files, the URL of an empty database for the others.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, place: str) -> None: ...

    @abstractmethod
    def about(self) -> Mapping[str, str]:
        """Return ``version``, ``durability`` and ``note``: what is not alike."""

    @abstractmethod
    def calls(self) -> Mapping[str, Callable[..., object]]:
        """Return what there is of `CALLS`."""

    @abstractmethod
    def prepare(self, entries: int) -> str:
        """Store a session of `DOCUMENTS`, with `LOG_LINES` log lines and so many errors; return its id."""

    @abstractmethod
    def fill(self, sessions: int) -> None:
        """Store more small sessions, until there are so many."""

    def draft(self, session_id: str) -> None:  # noqa: B027 (most are given plain data, which is there already)
        """Make what `create` is to store beforehand, outside of what is measured."""

    def hold(self, session_id: str) -> None:  # noqa: B027 (most read what they update)
        """Read what the updates of a session need beforehand, outside of what is measured."""

    def count(self, session_id: str) -> int:
        """Return how many errors are stored."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027 (not all have something to close)
        """Give everything back."""


class ConflictError(Exception):
    """A store has refused a write in favour of another's, as it says it does."""
