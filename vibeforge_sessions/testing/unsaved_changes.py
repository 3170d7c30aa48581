"""Finding lost writes, in development and in tests: sessions that were read, changed, and never stored.

A session that a repository hands out is a copy: a change to it counts once `update_session` was called, and one that
is not followed by that call is lost without a word. `track_lost_writes` says where.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Final, TypeVar, cast, overload

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.record import Baseline
from vibeforge_sessions.model.session import S, Session
from vibeforge_sessions.repository import serialization
from vibeforge_sessions.repository.aio import AsyncSessionRepository, AsyncShell
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.delegating import ForwardingSessionRepository
from vibeforge_sessions.repository.serialization import Record

__all__ = ["AsyncTrackedSessionRepository", "LostWrite", "TrackedSessionRepository", "track_lost_writes"]

T = TypeVar("T")

_KEPT: Final = 1000
"""How many lost writes are kept for `TrackedSessionRepository.lost_writes`; all of them are logged."""

_logger: Final = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class LostWrite:
    """A session that was changed and never stored. It names the fields and shows none of their values."""

    session_id: str
    fields: tuple[str, ...]
    """What was changed; without ``updated_at``, which moves with the others, unless it is all."""
    call_site: str
    """The file and line that got the session from the repository."""

    def __str__(self) -> str:
        return (
            f"session {self.session_id!r} was changed ({', '.join(self.fields)}) and never stored; "
            f"it was read at {self.call_site}"
        )


@overload
def track_lost_writes(repository: SessionRepository[S]) -> TrackedSessionRepository[S]: ...


@overload
def track_lost_writes(repository: AsyncSessionRepository[S]) -> AsyncTrackedSessionRepository[S]: ...


def track_lost_writes(
    repository: SessionRepository[S] | AsyncSessionRepository[S],
) -> TrackedSessionRepository[S] | AsyncTrackedSessionRepository[S]:
    """Return a repository that passes every call on to `repository` and finds the writes that its callers forget.

    Use it in place of the other in development, where each lost write is logged as a warning once the session is
    garbage, or in a test, which asks for `TrackedSessionRepository.lost_writes` at its end.
    """
    if isinstance(repository, AsyncSessionRepository):
        return AsyncTrackedSessionRepository(repository)
    return TrackedSessionRepository(repository)


class TrackedSessionRepository(ForwardingSessionRepository[S]):
    """A repository that finds lost writes; made by `track_lost_writes`.

    It watches each session that it hands out or stores, for as long as the caller has it and without keeping it. When
    the caller drops it (or the process ends) and it differs from what was stored of it last, that is a lost write,
    logged as a warning by the logger ``vibeforge_sessions.testing.unsaved_changes``.

    No lost writes are: changes whose `update_session` raised an error, since the caller was told (a session that is
    stored later is watched again); those of a session that was deleted by this repository; those within a
    `modify_session` that raised; those of a session given to `forget`. Copies that a caller makes of a session are not
    watched. A class of session with pydantic's ``validate_assignment`` cannot be watched and is refused.

    What it costs: one comparison of the session with what was stored of it, when the session is dropped.
    """

    def __init__(self, repository: SessionRepository[S]) -> None:
        self._repository = repository
        self._tracker = Tracker()

    @property
    def repository(self) -> SessionRepository[S]:
        """The repository that does the work."""
        return self._repository

    def lost_writes(self) -> list[LostWrite]:
        """Return the lost writes so far, the last 1000: of sessions that are gone, then of those that are still there.

        A session that somebody still has may yet be stored: ask when all the work is done.
        """
        return self._tracker.lost_writes()

    def forget(self, session: S) -> None:
        """Watch this session no longer: its changes are not meant to be stored."""
        self._tracker.forget(session)

    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        """Do what `SessionRepository.create_session` does, and watch the given session and the copy."""
        created = super().create_session(session, session_id=session_id)
        self._tracker.watch(session)
        self._tracker.watch(created)
        return created

    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        """Do what `SessionRepository.get_session` does, and watch the session."""
        session = super().get_session(session_id, recent=recent)
        self._tracker.watch(session)
        return session

    def update_session(self, session: S) -> None:
        """Do what `SessionRepository.update_session` does; watch the session, or no longer if that failed."""
        try:
            super().update_session(session)
        except Exception:
            self._tracker.forget(session)
            raise
        self._tracker.watch(session)

    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        """Do what `SessionRepository.delete_session` does; nothing is left to be lost."""
        deleted = super().delete_session(session_id, unchanged_since=unchanged_since)
        self._tracker.forget_all(session_id)
        return deleted

    def modify_session(self, session_id: str, change: Callable[[S], object], *, attempts: int = 10) -> S:
        """Do what `SessionRepository.modify_session` does, and watch the session that it returns."""
        session = super().modify_session(session_id, change, attempts=attempts)
        self._tracker.watch(session)
        return session


class AsyncTrackedSessionRepository(AsyncShell[S]):
    """`TrackedSessionRepository` for asyncio: finds the same lost writes."""

    def __init__(self, repository: AsyncSessionRepository[S]) -> None:
        super().__init__(cast("SessionRepository[S]", repository))  # the same names; `_run` awaits what they return
        self.repository = repository
        """The repository that does the work."""
        self._tracker = Tracker()

    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await cast("Awaitable[T]", call(*args, **kwargs))

    def lost_writes(self) -> list[LostWrite]:
        """Do what `TrackedSessionRepository.lost_writes` does."""
        return self._tracker.lost_writes()

    def forget(self, session: S) -> None:
        """Do what `TrackedSessionRepository.forget` does."""
        self._tracker.forget(session)

    async def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        """Do what `TrackedSessionRepository.create_session` does."""
        created = await super().create_session(session, session_id=session_id)
        self._tracker.watch(session)
        self._tracker.watch(created)
        return created

    async def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        """Do what `TrackedSessionRepository.get_session` does."""
        session = await super().get_session(session_id, recent=recent)
        self._tracker.watch(session)
        return session

    async def update_session(self, session: S) -> None:
        """Do what `TrackedSessionRepository.update_session` does."""
        try:
            await super().update_session(session)
        except Exception:
            self._tracker.forget(session)
            raise
        self._tracker.watch(session)

    async def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        """Do what `TrackedSessionRepository.delete_session` does."""
        deleted = await super().delete_session(session_id, unchanged_since=unchanged_since)
        self._tracker.forget_all(session_id)
        return deleted

    async def modify_session(
        self, session_id: str, change: Callable[[S], Awaitable[object] | object], *, attempts: int = 10
    ) -> S:
        """Do what `TrackedSessionRepository.modify_session` does."""
        session = await self.repository.modify_session(session_id, change, attempts=attempts)
        self._tracker.watch(session)
        return session

    async def close(self) -> None:
        """Do what `AsyncSessionRepository.close` does."""
        await self.repository.close()


class Tracker:
    """What watches sessions, whichever kind of repository they come from.

    Sessions die at any moment, also in the middle of a call here and in any thread: there is no lock, and each step is
    a single operation on a dict or a deque.
    """

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._lost: deque[LostWrite] = deque(maxlen=_KEPT)

    def watch(self, session: Session | None) -> None:
        """Watch a session that was just read or stored; one that is watched already stays so."""
        if session is None or id(session) in self._watched:
            return
        if type(session).model_config.get("validate_assignment"):
            # pydantic then gives the object new attributes at each assignment; those held here would be old ones
            raise InvalidSessionError(
                f"{type(session).__name__} cannot be tracked: it is a class of session with validate_assignment"
            )
        key = id(session)
        end = weakref.finalize(session, self._gone, key)
        private: Any = session.__pydantic_private__
        self._watched[key] = _Watched(type(session), session.__dict__, private, session.session_id, _call_site(), end)

    def forget(self, session: Session) -> None:
        """Watch a session no longer."""
        watched = self._watched.pop(id(session), None)
        if watched is not None:
            watched.end.detach()

    def forget_all(self, session_id: str) -> None:
        """Watch no longer what was read of a session."""
        for key, watched in self._watched.copy().items():
            if watched.session_id == session_id and watched.end.detach():
                self._watched.pop(key, None)

    def lost_writes(self) -> list[LostWrite]:
        """Return what was lost, and what would be if all sessions were dropped now."""
        there = [watched.lost_write() for watched in self._watched.copy().values()]
        return [*self._lost.copy(), *(lost for lost in there if lost is not None)]

    def _gone(self, key: int) -> None:
        lost = self._watched.pop(key).lost_write()
        if lost is not None:
            self._lost.append(lost)
            _logger.warning("%s", lost)


@dataclasses.dataclass(frozen=True, slots=True)
class _Watched:
    """What is held of a session: its attributes, which outlive it, and not the session itself."""

    session_type: type[Session]
    fields: dict[str, Any]
    private: dict[str, Any]
    session_id: str
    call_site: str
    end: weakref.finalize[[int], Any]

    def lost_write(self) -> LostWrite | None:
        """Return what is lost if the session is dropped as it is."""
        changed = self._changed_fields()
        return LostWrite(self.session_id, changed, self.call_site) if changed else None

    def _changed_fields(self) -> tuple[str, ...]:
        baseline: Baseline | None = self.private["_baseline"]
        if baseline is None or baseline.content is None or baseline.errors is None or baseline.logs is None:
            return ()  # it has been nowhere, or it came by JSON and nobody has compared it yet
        record = serialization.Record(
            session_id=self.session_id,
            created_at=baseline.created_at,
            updated_at=baseline.updated_at,
            version=1,  # whichever: it is not compared
            write_id=baseline.write_id,
            error_count=baseline.omitted_errors + len(baseline.errors),
            log_count=baseline.omitted_logs + len(baseline.logs),
            content=baseline.content,
        )
        stored = serialization.decode_session(self.session_type, record, baseline.errors, baseline.logs).__dict__
        names = [name for name in self.session_type.model_fields if name != "version"]
        changed = tuple(name for name in names if not _same(self.fields.get(name), stored[name]))
        return tuple(name for name in changed if name != "updated_at") or changed


def _same(value: object, stored: object) -> bool:
    """Tell whether a field holds what was stored, to the letter: 1 is not 1.0, and the order of keys counts."""
    try:
        texts = _text(value), _text(stored)
    except RuntimeError:  # another thread is changing it at this very moment: it is not lost yet
        return True
    return value == stored if texts == (None, None) else texts[0] == texts[1]


def _text(value: object) -> str | None:
    try:
        return validation.encode_json(value, "")
    except InvalidSessionError:  # a time, an entry, or what no repository would take
        return None


def _call_site() -> str:
    """Return the file and line of the first caller outside this package."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 (what `inspect` would return, without its costs)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("vibeforge_sessions."):
        frame = frame.f_back
    return "unknown" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
