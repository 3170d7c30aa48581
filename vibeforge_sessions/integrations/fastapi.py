"""FastAPI integration: lifespan, dependency and error handlers for a repository.

An application uses it like this:

    app = FastAPI(lifespan=lifespan(), responses=RESPONSES)
    install_error_handlers(app)

    @app.get("/sessions/{session_id}")
    async def show(session_id: str, repository: Repository) -> dict[str, Any]:
        session = await repository.get_session(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session.to_dict()

| status | error | other members of the body |
|---|---|---|
| 404 | `SessionNotFoundError` | `session_id` |
| 409 | `StaleSessionError` | `session_id`, `version`, `stored_version` |
| 409 | `SessionExistsError` | `session_id` |
| 422 | `InvalidSessionError` | `path` |
| 422 | `InvalidArgumentError` | `argument` |
| 500 | `CorruptSessionError` | `session_id` |
| 500 | `ConfigurationError` | |
| 503 | `StorageError`, `SchemaError`, with ``Retry-After`` | |
| 503 | `OutcomeUnknownError`, without that header | |

Every body is a `RepositoryErrorBody`: ``error`` is the name of the error's class, and ``detail`` its message. The
details of server errors (status 500 and above) are not sent to the client; the logger ``vibeforge_sessions`` logs them
with their cause. After an `OutcomeUnknownError` the client must read the session before it repeats the request.

An accepted WebSocket is closed instead, with the name of the error's class as the reason. The close code is 1013 (try
again later) for errors with ``Retry-After``, 1011 for the other server errors, and 1008 for all other errors.
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

from vibeforge_sessions import errors
from vibeforge_sessions.model.session import S, Session
from vibeforge_sessions.repository.aio import AsyncSessionRepository
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.settings import open_async_repository

__all__ = ["RESPONSES", "Repository", "RepositoryErrorBody", "get_repository", "install_error_handlers", "lifespan"]

_RETRY_AFTER: Final = 1
"""Value of the header ``Retry-After``, in seconds; most failures of a database are short."""

_logger: Final = logging.getLogger("vibeforge_sessions")


def lifespan(
    url: str | None = None,
    *,
    migrate: bool | None = None,
    session_type: type[S] = Session,  # type: ignore[assignment]
    schema: str | None = None,
    retry: RetryPolicy | None = None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a lifespan that opens the repository at the start of the application and closes it at the end.

    An application with its own lifespan enters this lifespan inside its own: ``async with lifespan()(app): yield``. The
    repository is stored as ``app.state.session_repository``. The arguments and errors are those of
    `open_async_repository`; an error prevents the application from starting.
    """

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        repository = await open_async_repository(
            url, migrate=migrate, session_type=session_type, schema=schema, retry=retry
        )
        app.state.session_repository = repository
        try:
            yield
        finally:
            del app.state.session_repository
            await repository.close()

    return opened


# a coroutine function, because FastAPI runs each call of a plain function in a thread of its pool
async def get_repository(connection: HTTPConnection) -> AsyncSessionRepository[Any]:
    """Return the application's repository; a dependency for requests and WebSockets.

    A test replaces it with ``app.dependency_overrides[get_repository]``.

    :raises RuntimeError: the lifespan has not run.
    """
    repository: AsyncSessionRepository[Any] | None = getattr(connection.app.state, "session_repository", None)
    if repository is None:
        raise RuntimeError(
            "no repository is open: create the application with lifespan=lifespan() of "
            "vibeforge_sessions.integrations.fastapi"
        )
    return repository


Repository = Annotated[AsyncSessionRepository, Depends(get_repository)]
"""Type of a parameter that receives the application's repository.

For a session class of your own: ``Annotated[AsyncSessionRepository[MySession], Depends(get_repository)]``.
"""


class RepositoryErrorBody(BaseModel):
    """Body of a response to an error of this package; members that do not apply to the error are absent."""

    error: str
    """Name of the error's class."""
    detail: str
    """Text for humans; it may change between versions."""
    session_id: str | None = None
    version: int | None = None
    """Version that the change was based on."""
    stored_version: int | None = None
    """Version that is stored."""
    path: str | None = None
    """Path of the invalid value in the session."""
    argument: str | None = None
    """Name of the invalid argument, such as ``limit``."""


# 422 is absent, because FastAPI documents its own body for requests that it rejects itself
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": RepositoryErrorBody, "description": "The session does not exist"},
    409: {"model": RepositoryErrorBody, "description": "The session was changed meanwhile, or already exists"},
    500: {"model": RepositoryErrorBody, "description": "The session cannot be read"},
    503: {"model": RepositoryErrorBody, "description": "The database is currently unavailable"},
}
"""Responses for the OpenAPI document: ``FastAPI(responses=RESPONSES)``, or a selection for an endpoint."""


def install_error_handlers(app: FastAPI) -> None:
    """Respond with a status and a `RepositoryErrorBody` if an endpoint raises an error of this package."""
    app.add_exception_handler(errors.SessionRepositoryError, _respond)


_UNKNOWN: Final = "it is unknown whether the change was stored: read the session before you repeat the request"
_UNAVAILABLE: Final = "the session store is currently unavailable; nothing was stored"
_ANSWERS: Final[dict[type[errors.SessionRepositoryError], tuple[int, str | None]]] = {
    errors.SessionNotFoundError: (404, None),
    errors.StaleSessionError: (409, None),
    errors.SessionExistsError: (409, None),
    errors.InvalidSessionError: (422, None),
    errors.InvalidArgumentError: (422, None),
    errors.CorruptSessionError: (500, "the stored session cannot be read"),
    errors.ConfigurationError: (500, "the service is not configured correctly; nothing was stored"),
    errors.OutcomeUnknownError: (503, _UNKNOWN),
    errors.StorageError: (503, _UNAVAILABLE),
    errors.SchemaError: (503, _UNAVAILABLE),
    errors.SessionRepositoryError: (503, "the session store failed"),
}
"""Status, and the text that replaces the message of a server error. The first class that matches the error applies.

The messages of server errors are for the operators of the service.
"""
_SHOWN: Final = RepositoryErrorBody.model_fields.keys() - {"error", "detail"}
_SERVER_ERROR: Final = 500


async def _respond(connection: HTTPConnection, error: Exception) -> Any:  # Any, because WebSockets get no response
    name = type(error).__name__
    status, detail = next(answer for kind, answer in _ANSWERS.items() if isinstance(error, kind))
    if status >= _SERVER_ERROR:
        _logger.error("%s: %s", name, error, exc_info=error)
    is_retryable = isinstance(error, (errors.StorageError, errors.SchemaError))
    if isinstance(connection, WebSocket) and connection.application_state is not WebSocketState.CONNECTING:
        if connection.application_state is connection.client_state is WebSocketState.CONNECTED:
            await connection.close(1013 if is_retryable else 1011 if status >= _SERVER_ERROR else 1008, name)
        return None
    members = {member: getattr(error, member) for member in _SHOWN if hasattr(error, member)}
    body = RepositoryErrorBody(error=name, detail=detail or str(error), **members).model_dump(exclude_unset=True)
    return JSONResponse(body, status, headers={"Retry-After": str(_RETRY_AFTER)} if is_retryable else None)
