"""Base class of repositories that add behavior to another repository."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar, cast

from vibeforge_sessions.model.session import S
from vibeforge_sessions.repository.base import SessionRepository

F = TypeVar("F", bound=Callable[..., Any])


def _forwarded(method: F) -> F:
    """Return a method with the same signature that calls the method of the same name on `repository`."""
    name = method.__name__

    @functools.wraps(method, updated=())  # does not copy the mark of an abstract method
    def forward(self: DelegatingSessionRepository[Any], *args: Any, **kwargs: Any) -> Any:
        return getattr(self.repository, name)(*args, **kwargs)

    return cast("F", forward)


class DelegatingSessionRepository(SessionRepository[S]):
    """Repository that forwards every call unchanged to `repository`."""

    @property
    @abstractmethod
    def repository(self) -> SessionRepository[S]:
        """The repository that the calls are forwarded to."""

    create_session = _forwarded(SessionRepository[S].create_session)
    get_session = _forwarded(SessionRepository[S].get_session)
    update_session = _forwarded(SessionRepository[S].update_session)
    delete_session = _forwarded(SessionRepository[S].delete_session)
    modify_session = _forwarded(SessionRepository[S].modify_session)
    list_sessions = _forwarded(SessionRepository[S].list_sessions)
    find_sessions = _forwarded(SessionRepository[S].find_sessions)
    append_error = _forwarded(SessionRepository[S].append_error)
    append_log = _forwarded(SessionRepository[S].append_log)
    list_errors = _forwarded(SessionRepository[S].list_errors)
    list_logs = _forwarded(SessionRepository[S].list_logs)
    hold_session = _forwarded(SessionRepository[S].hold_session)
    release_session = _forwarded(SessionRepository[S].release_session)
    get_record = _forwarded(SessionRepository[S].get_record)
    restore_record = _forwarded(SessionRepository[S].restore_record)
    close = _forwarded(SessionRepository[S].close)
