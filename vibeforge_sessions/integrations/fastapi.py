"""FastAPI: open the repository when the application starts, inject it, and answer its refusals with the right status.

::

    app = FastAPI(lifespan=lifespan(), responses=RESPONSES)
    install_error_handlers(app)

    @app.get("/sessions/{session_id}")
    async def show(session_id: str, repository: Repository) -> dict[str, Any]:
        session = await repository.get_session(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session.to_dict()

====== ============================================================= ==========================================
status error                                                         further members of the body
====== ============================================================= ==========================================
404    `SessionNotFoundError`                                        session_id
409    `StaleSessionError`                                           session_id, version, stored_version
409    `SessionExistsError`                                          session_id
422    `InvalidSessionError`                                         path
500    `CorruptSessionError`                                         session_id
503    `StorageError`, `SchemaError`, with ``Retry-After``           none
503    `OutcomeUnknownError`, without: look before you do it again   none
====== ============================================================= ==========================================

Every body is a `Refusal`: ``error``, the name of the error's class, and ``detail``, its message. What went wrong in the
database or stands in the tables is not shown; it is logged by the logger ``vibeforge_sessions``, with its cause.

A WebSocket that was accepted is closed instead, the name of the error's class being the reason: 1013 (try again later)
where there would be a ``Retry-After``, 1011 for the other errors from 500 on, 1008 for the rest.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Final

try:
    from fastapi import Depends, FastAPI, WebSocket
    from fastapi.responses import JSONResponse
    from starlette.requests import HTTPConnection
    from starlette.websockets import WebSocketState
except ModuleNotFoundError as error:
    raise ImportError(
        "vibeforge_sessions.integrations.fastapi needs FastAPI: pip install 'vibeforge-sessions[fastapi]'"
    ) from error

from pydantic import BaseModel

from vibeforge_sessions.errors import (
    CorruptSessionError,
    InvalidSessionError,
    OutcomeUnknownError,
    SchemaError,
    SessionExistsError,
    SessionNotFoundError,
    SessionRepositoryError,
    StaleSessionError,
    StorageError,
)
from vibeforge_sessions.model.session import S, Session
from vibeforge_sessions.repository.aio import AsyncSessionRepository
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.settings import open_async_repository

__all__ = ["RESPONSES", "Refusal", "Repository", "get_repository", "install_error_handlers", "lifespan"]

RETRY_AFTER: Final = 1
"""Seconds, in the header of that name: most of what makes a database unavailable is over soon."""

_logger: Final = logging.getLogger("vibeforge_sessions")
_STATE: Final = "session_repository"

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def lifespan(
    url: str | None = None,
    *,
    migrate: bool | None = None,
    session_type: type[S] = Session,  # type: ignore[assignment]
    schema: str | None = None,
    retry: RetryPolicy | None = None,
) -> Lifespan:
    """Return a lifespan that opens the repository, with its schema checked, and closes it at the end.

    An application with a lifespan of its own enters it there: ``async with lifespan()(app): yield``, and finds the
    repository in ``app.state.session_repository``. The arguments are those of `open_async_repository`, and so are the
    errors, which keep the application from starting.
    """

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        repository = await open_async_repository(
            url, migrate=migrate, session_type=session_type, schema=schema, retry=retry
        )
        setattr(app.state, _STATE, repository)
        try:
            yield
        finally:
            delattr(app.state, _STATE)
            await repository.close()

    return opened


# a coroutine, since FastAPI would send a function through a thread, which has to be free, at each request
async def get_repository(connection: HTTPConnection) -> AsyncSessionRepository[Any]:
    """Return the application's repository: a dependency, of requests and of WebSockets.

    A test gives another one by ``app.dependency_overrides[get_repository]``.

    :raises RuntimeError: the lifespan has not run.
    """
    repository: AsyncSessionRepository[Any] | None = getattr(connection.app.state, _STATE, None)
    if repository is None:
        raise RuntimeError(
            "no repository is open: give the application vibeforge_sessions.integrations.fastapi.lifespan()"
        )
    return repository


Repository = Annotated[AsyncSessionRepository, Depends(get_repository)]
"""A parameter of this type is the application's repository.

With a class of session of one's own: ``Annotated[AsyncSessionRepository[MySession], Depends(get_repository)]``.
"""


class Refusal(BaseModel):
    """The body of an answer that is an error of this package; an error has only some of the further members."""

    error: str
    """The name of the error's class."""
    detail: str
    """For people to read: may become another one in a later version."""
    session_id: str | None = None
    version: int | None = None
    """The version the change was based on."""
    stored_version: int | None = None
    """The version that is stored now."""
    path: str | None = None
    """Where in the session it stands."""


# 422 is left to FastAPI, which has a body of its own for what it refuses itself
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": Refusal, "description": "There is no such session"},
    409: {"model": Refusal, "description": "The session was changed meanwhile, or is there already"},
    500: {"model": Refusal, "description": "The session cannot be read"},
    503: {"model": Refusal, "description": "The database cannot be reached at the moment"},
}
"""What OpenAPI is to say: ``FastAPI(responses=RESPONSES)``, or those of them that an endpoint has."""


def install_error_handlers(app: FastAPI) -> None:
    """Answer with a status and a `Refusal` where an endpoint raises an error of this package."""
    app.add_exception_handler(SessionRepositoryError, _answer)


_STATUS: Final[dict[type[SessionRepositoryError], int]] = {  # the first that an error is an instance of
    SessionNotFoundError: 404,
    StaleSessionError: 409,
    SessionExistsError: 409,
    InvalidSessionError: 422,
    CorruptSessionError: 500,
    SessionRepositoryError: 503,
}
_DETAILS: Final[dict[type[SessionRepositoryError], str]] = {
    CorruptSessionError: "the session is stored in a way that cannot be read",
    OutcomeUnknownError: "nobody can tell whether it was stored: read it before you do it again",
    StorageError: "the sessions cannot be reached at the moment; nothing was stored",
    SchemaError: "the sessions cannot be reached at the moment; nothing was stored",
}
"""What is said instead of a message that is for those who run the service."""
_SHOWN: Final = Refusal.model_fields.keys() - {"error", "detail"}
_SERVER_ERROR: Final = 500


async def _answer(connection: HTTPConnection, error: Exception) -> Any:  # Any: a response, or None
    name = type(error).__name__
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    if status >= _SERVER_ERROR:
        _logger.error("%s: %s", name, error, exc_info=error)
    again = isinstance(error, (StorageError, SchemaError)) and not isinstance(error, OutcomeUnknownError)
    if isinstance(connection, WebSocket) and connection.application_state is not WebSocketState.CONNECTING:
        if connection.application_state is connection.client_state is WebSocketState.CONNECTED:
            await connection.close(1013 if again else 1011 if status >= _SERVER_ERROR else 1008, name)
        return None
    detail = next((text for kind, text in _DETAILS.items() if isinstance(error, kind)), str(error))
    members = {member: getattr(error, member) for member in _SHOWN if hasattr(error, member)}
    body = Refusal(error=name, detail=detail, **members).model_dump(exclude_unset=True)
    return JSONResponse(body, status, headers={"Retry-After": str(RETRY_AFTER)} if again else None)
