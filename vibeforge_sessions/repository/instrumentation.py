"""Log records of repository calls, and spans if tracing is enabled.

Every call writes a record to the logger ``vibeforge_sessions`` at DEBUG, with these attributes:

=============== =====================================================================================================
``call``        name of the method
``session_id``  id of the session; None for a call without a session, or with an invalid id
``version``     version of the session after the call; None if the call does not return it
``attempts``    number of attempts: more than 1 after transient failures or stale updates in `modify_session`
``duration``    duration in seconds
``outcome``     ``ok``, or the name of the error's class
``reason``      None, except in the record of a retry (see below)
=============== =====================================================================================================

Each attempt after the first also writes a record at INFO. Its ``reason`` is the name of the failure that caused the
retry; its ``duration`` and ``outcome`` are None. If a repository is opened in memory because no database is configured,
a record is written at WARNING. Its ``call`` is ``open_repository`` or ``open_async_repository``; ``duration`` is None.

No record contains other data of a session, a URL, or the parameters of a statement. A call within another call, such as
`get_session` within `modify_session`, writes no record.
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
from typing import Any, ClassVar, Final

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.session import Session

logger: Final = logging.getLogger("vibeforge_sessions")


@dataclasses.dataclass(slots=True)
class Call:
    """Call of a repository."""

    name: str
    session_id: str | None
    version: int | None = None
    attempts: int = 1
    outcome: str = ""
    """Empty until the call has ended."""


Spans = Callable[[Call], AbstractContextManager[None]]

_current: Final[ContextVar[Call | None]] = ContextVar("vibeforge_sessions_call", default=None)
_spans: Spans | None = None


def use_spans(spans: Spans | None) -> None:
    """Run each later call within the context manager that `spans` returns; None disables spans."""
    global _spans  # noqa: PLW0603 (tracing is switched for the process)
    _spans = spans


class Instrumented:
    """Base class of the abstract repositories; reports the calls of their methods, also of overridden ones."""

    _reported: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls._reported:
            public = {name for name, value in vars(cls).items() if inspect.isfunction(value) and name[0] != "_"}
            cls._reported = frozenset(public - {"close"})
        for name in cls._reported & vars(cls).keys():
            setattr(cls, name, _instrument(vars(cls)[name]))


def _instrument(method: Any) -> Any:
    """Return a wrapper of the method that reports each call."""
    name = method.__name__

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def call_and_wait(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not _is_enabled():
                return await method(self, *args, **kwargs)
            with _report_call(name, args, kwargs) as record_result:
                return record_result(await method(self, *args, **kwargs))

        return call_and_wait

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_enabled():
            return method(self, *args, **kwargs)
        with _report_call(name, args, kwargs) as record_result:
            return record_result(method(self, *args, **kwargs))

    return call


def report_retry(reason: str) -> None:
    """Report that the current call is retried.

    :param reason: the name of the failure, without data.
    """
    call = _current.get()
    if call is None:  # reports are disabled
        return
    call.attempts += 1
    _log(logging.INFO, call, f"attempt {call.attempts}, after {reason}", reason=reason)


def warn(call: str, message: str) -> None:
    """Log a warning about a function that is not instrumented, with the same attributes as the other records.

    :param message: a message without data of sessions.
    """
    _log(logging.WARNING, Call(call, None, outcome="ok"), message)


def _is_enabled() -> bool:
    if _spans is None and not logger.isEnabledFor(logging.INFO):  # INFO, because the record of a retry names the call
        return False
    call = _current.get()
    return call is None or bool(call.outcome)  # a task that was started during a call may run after the call has ended


@contextlib.contextmanager
def _report_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Callable[[Any], Any]]:
    given = args[0] if args else kwargs.get("session")
    given = kwargs.get("session_id") if given is None else given
    call = Call(name, _loggable_id(given) or _loggable_id(kwargs.get("session_id")))

    def record_result(result: Any) -> Any:
        session = next((each for each in (result, given) if issubclass(type(each), Session)), None)
        if session is not None:
            call.version = session.version
            call.session_id = _loggable_id(session)
        return result

    token = _current.set(call)
    began = time.perf_counter()
    try:
        with contextlib.nullcontext() if _spans is None else _spans(call):
            try:
                yield record_result
            except BaseException as error:
                call.outcome = type(error).__name__
                raise
            else:
                call.outcome = "ok"
    finally:
        _current.reset(token)
        duration = time.perf_counter() - began
        _log(logging.DEBUG, call, f"{call.outcome} in {duration * 1000:.1f} ms", duration)


def _log(level: int, call: Call, message: str, duration: float | None = None, reason: str | None = None) -> None:
    """Log a record; every record has all attributes, so that one log format fits all records."""
    if not logger.isEnabledFor(level):
        return
    attributes = dataclasses.asdict(call) | {"duration": duration, "outcome": call.outcome or None, "reason": reason}
    name = attributes["call"] = attributes.pop("name")
    about = name if call.session_id is None else f"{name} {call.session_id}"
    logger.log(level, "%s: %s", about, message, extra=attributes)


def _loggable_id(given: Any) -> str | None:
    """Return the id if it is valid, else None, because an invalid id may contain secrets."""
    given = getattr(given, "session_id", None) if issubclass(type(given), Session) else given
    try:
        return validation.check_session_id(given)
    except InvalidSessionError:
        return None
