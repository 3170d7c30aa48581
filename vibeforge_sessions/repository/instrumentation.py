"""What a call of a repository tells about itself: a log record, and a span where tracing is switched on.

Every call is a record of the logger ``vibeforge_sessions``, at DEBUG, with these attributes:

=============== =====================================================================================================
``call``        the method's name
``session_id``  of the session, None where there is none (or it is not a valid id)
``version``     of the session afterwards, None where the call has not told it
``attempts``    how often it was tried: a database rolled it back in favour of another, or `modify_session` was stale
``duration``    in seconds
``outcome``     ``ok``, or the name of the error's class
``reason``      None; see below
=============== =====================================================================================================

Each attempt after the first is a record at INFO, whose ``reason`` is the name of what made it necessary; it has neither
``duration`` nor ``outcome`` yet. A repository that is opened in memory because no database is named is a record at
WARNING, whose ``call`` is ``open_repository`` or ``open_async_repository``, and which has no ``duration``. No record
holds anything else of a session, a URL, or what a statement was given. A call that another call makes is not told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.session import Session

logger: Final = logging.getLogger("vibeforge_sessions")


@dataclasses.dataclass(slots=True)
class Call:
    """One call of a repository."""

    name: str
    session_id: str | None
    version: int | None = None
    attempts: int = 1
    outcome: str = ""
    """Empty as long as it goes on."""


Spans = Callable[[Call], AbstractContextManager[None]]

_CALLS: Final = frozenset(
    {
        "append_error",
        "append_log",
        "create_session",
        "delete_session",
        "find_sessions",
        "get_record",
        "get_session",
        "hold_session",
        "list_errors",
        "list_logs",
        "list_sessions",
        "modify_session",
        "release_session",
        "restore_record",
        "update_session",
    }
)
_current: Final[ContextVar[Call | None]] = ContextVar("vibeforge_sessions_call", default=None)
_spans: Spans | None = None


def use_spans(spans: Spans | None) -> None:
    """Put each call into a span from now on; None for no more."""
    global _spans  # noqa: PLW0603 (tracing is switched for the process)
    _spans = spans


class Observed:
    """What a repository is made of, whose own methods for the contract's calls are told, and so are its subclasses'."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _CALLS & vars(cls).keys():
            setattr(cls, name, _observed(vars(cls)[name]))


def _observed(method: Any) -> Any:
    """Return the method, so that each call of it is told."""
    name = method.__name__

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def call_and_wait(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not _is_wanted():
                return await method(self, *args, **kwargs)
            with _telling(name, args, kwargs) as told:
                return told(await method(self, *args, **kwargs))

        return call_and_wait

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_wanted():
            return method(self, *args, **kwargs)
        with _telling(name, args, kwargs) as told:
            return told(method(self, *args, **kwargs))

    return call


def again(reason: str) -> None:
    """Tell that the current call is tried once more.

    :param reason: a name of what happened, without data.
    """
    call = _current.get()
    if call is None:  # nobody listens
        return
    call.attempts += 1
    logger.info(
        "%s %s: attempt %d, after %s",
        call.name,
        call.session_id or "",
        call.attempts,
        reason,
        extra=_extra(call, None, reason),
    )


def warn(call: str, message: str) -> None:
    """Log a warning about a call that is not observed, with every attribute that records have.

    :param message: without data.
    """
    logger.warning("%s: %s", call, message, extra=_extra(Call(call, None, outcome="ok"), None, None))


def _is_wanted() -> bool:
    if _spans is None and not logger.isEnabledFor(logging.INFO):  # INFO: what is tried again names its call
        return False
    call = _current.get()
    return call is None or bool(call.outcome)  # a task that was started by a call outlives it


@contextlib.contextmanager
def _telling(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Callable[[Any], Any]]:
    given = args[0] if args else kwargs.get("session")
    given = kwargs.get("session_id") if given is None else given
    call = Call(name, _id_of(given) or _id_of(kwargs.get("session_id")))

    def told(result: Any) -> Any:
        session = next((each for each in (result, given) if issubclass(type(each), Session)), None)
        if session is not None:
            call.version = session.version
            call.session_id = _id_of(session)
        return result

    token = _current.set(call)
    began = time.perf_counter()
    try:
        with contextlib.nullcontext() if _spans is None else _spans(call):
            try:
                yield told
            except BaseException as error:
                call.outcome = type(error).__name__
                raise
            else:
                call.outcome = "ok"
    finally:
        _current.reset(token)
        _record(call, time.perf_counter() - began)


def _record(call: Call, duration: float) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug(
            "%s %s: %s in %.1f ms",
            call.name,
            call.session_id or "",
            call.outcome,
            duration * 1000,
            extra=_extra(call, duration, None),
        )


def _extra(call: Call, duration: float | None, reason: str | None) -> dict[str, Any]:
    """Return the attributes of a record; each record has all of them, so that one format serves."""
    return {
        "call": call.name,
        "session_id": call.session_id,
        "version": call.version,
        "attempts": call.attempts,
        "duration": duration,
        "outcome": call.outcome or None,
        "reason": reason,
    }


def _id_of(given: Any) -> str | None:
    """Return an id that may be shown: what breaks the rule of ids could be anything."""
    given = getattr(given, "session_id", None) if issubclass(type(given), Session) else given
    try:
        return validation.check_session_id(given)
    except InvalidSessionError:
        return None
