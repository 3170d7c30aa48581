"""Environment variables, and repositories opened from a URL or from these variables."""

from __future__ import annotations

import os
from typing import Any, Final, NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vibeforge_sessions.errors import ConfigurationError
from vibeforge_sessions.memory import AsyncInMemorySessionRepository, InMemorySessionRepository
from vibeforge_sessions.model.session import S, Session
from vibeforge_sessions.repository import instrumentation
from vibeforge_sessions.repository.aio import AsyncSessionRepository
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.retry import RetryPolicy

__all__ = ["MEMORY_URL", "Settings", "open_async_repository", "open_repository"]

MEMORY_URL = "memory://"
_PREFIX: Final = "VIBEFORGE_SESSIONS_"
_URL: Final = f"{_PREFIX}DATABASE_URL"
_MIGRATE: Final = f"{_PREFIX}MIGRATE"
_SCHEMA: Final = f"{_PREFIX}SCHEMA"
_VARIABLES: Final = (_URL, _MIGRATE, _SCHEMA)
_SIMILAR: Final = frozenset({f"{_PREFIX}MIGRATOR"})
"""Valid variables of the command line whose names are within two edits of one of `_VARIABLES`."""
_MAX_EDITS: Final = 2
_NEXT_STEP: Final = f"set {_URL} to the database's URL, or to {MEMORY_URL} to keep sessions in memory"


class Settings(BaseSettings):
    """Values of the variables ``VIBEFORGE_SESSIONS_DATABASE_URL``, ``…_MIGRATE`` and ``…_SCHEMA``."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, hide_input_in_errors=True)

    database_url: SecretStr | None = None
    migrate: bool = False
    # BaseModel has a `schema` of its own
    db_schema: str | None = Field(default=None, validation_alias="VIBEFORGE_SESSIONS_SCHEMA")

    @model_validator(mode="before")
    @classmethod
    def _ignore_empty(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Treat an empty value as unset, except the URL's: `url` rejects that."""
        return {name: value for name, value in given.items() if value != "" or name == "database_url"}

    @classmethod
    def read(cls) -> Self:
        """Return the current values of the environment variables.

        :raises ConfigurationError: ``VIBEFORGE_SESSIONS_MIGRATE`` is neither true nor false, or the name of a variable
            is a misspelling of one of these.
        """
        reject_misspelled_variables()
        try:
            return cls()
        except ValidationError as error:
            name = str(error.errors(include_input=False)[0]["loc"][0]).upper()
            raise ConfigurationError("the environment variable must be true or false", _PREFIX + name) from None

    def url(self) -> str | None:
        """Return the database URL including its password, or None if it is not set.

        :raises ConfigurationError: the URL is empty.
        """
        return None if self.database_url is None else _not_empty(self.database_url.get_secret_value(), _URL)

    def variable_requiring_database(self) -> str | None:
        """Return the name of a variable that is set but has no effect without a database, or None."""
        names = {"migrate": _MIGRATE, "db_schema": _SCHEMA}
        return next((names[field] for field in names if field in self.model_fields_set), None)


def reject_misspelled_variables() -> None:
    """Reject environment variables whose name is a misspelling of a variable of this package.

    :raises ConfigurationError: a name is within two edits of a valid name, with or without the last S of SESSIONS.
    """
    for name in sorted(os.environ):
        if name.upper() in _VARIABLES or name.upper() in _SIMILAR:
            continue
        for valid in _VARIABLES:
            if any(_is_near(name.upper(), each) for each in (valid, valid.replace("SESSIONS", "SESSION"))):
                raise ConfigurationError(
                    f"this environment variable is not read: rename it to {valid}, or unset it", name
                )


def _is_near(name: str, other: str) -> bool:
    """Return whether the Levenshtein distance of two names is at most `_MAX_EDITS`."""
    if abs(len(name) - len(other)) > _MAX_EDITS:
        return False
    edits = list(range(len(other) + 1))
    for row, letter in enumerate(name, 1):
        above, edits = edits, [row]
        for column, wanted in enumerate(other, 1):
            edits.append(min(above[column] + 1, edits[-1] + 1, above[column - 1] + (letter != wanted)))
        if min(edits) > _MAX_EDITS:
            return False
    return edits[-1] <= _MAX_EDITS


def _not_empty(url: str, path: str) -> str:
    if not url.strip():
        raise ConfigurationError(f"the database URL is empty: {_NEXT_STEP}", path)
    return url


def open_repository(
    url: str | None = None,
    *,
    migrate: bool | None = None,
    session_type: type[S] = Session,  # type: ignore[assignment]
    schema: str | None = None,
    retry: RetryPolicy | None = None,
) -> SessionRepository[S]:
    """Open the repository for a URL, by default the one of the environment; the caller closes it.

    The schema of a database is checked first, so that an application fails at its start and not at its first query.

    :param url: ``memory://`` or a database URL; by default ``VIBEFORGE_SESSIONS_DATABASE_URL``. If neither is given,
        sessions are kept in memory, and the logger ``vibeforge_sessions`` logs a WARNING.
    :param migrate: upgrade the schema first; by default ``VIBEFORGE_SESSIONS_MIGRATE``, or False.
    :param session_type: the class of the stored sessions, `Session` or a subclass.
    :param schema: the PostgreSQL schema of the tables; by default ``VIBEFORGE_SESSIONS_SCHEMA``, or the default schema
        of the database.
    :param retry: the deadline and retries of each call; None for the defaults. Opening itself is not retried.
    :raises SchemaError: the schema is empty, behind, foreign or drifted, or ahead and incompatible with this version;
        the error names the command to run.
    :raises StorageError: the database cannot be reached.
    :raises ConfigurationError: the database is not supported, or its driver is not installed (the error names the
        extra); the URL is empty; ``VIBEFORGE_SESSIONS_MIGRATE`` is neither true nor false; it or
        ``VIBEFORGE_SESSIONS_SCHEMA`` is set, and there is no URL; or the name of an environment variable is a
        misspelling of one of the three (at most two edits away, with or without the last S of SESSIONS).
    """
    request = _resolve_database("open_repository", url, migrate=migrate, schema=schema)
    if request is None:
        return InMemorySessionRepository(session_type=session_type)
    from vibeforge_sessions.sql.repository import open_database  # noqa: PLC0415 (in memory needs no SQLAlchemy)

    return open_database(
        request.url, migrate=request.migrate, session_type=session_type, schema=request.schema, retry=retry
    )


async def open_async_repository(
    url: str | None = None,
    *,
    migrate: bool | None = None,
    session_type: type[S] = Session,  # type: ignore[assignment]
    schema: str | None = None,
    retry: RetryPolicy | None = None,
) -> AsyncSessionRepository[S]:
    """Open the asynchronous repository for a URL, by default the one of the environment; see `open_repository`.

    The same URLs are supported. ``postgresql+psycopg://…``, ``postgresql+asyncpg://…`` and ``mariadb+asyncmy://…`` run
    on the event loop, ``sqlite:///…`` and ``mariadb+pymysql://…`` in threads.

    :raises ImportError: the extra ``async`` is not installed.
    """
    request = _resolve_database("open_async_repository", url, migrate=migrate, schema=schema)
    if request is None:
        return AsyncInMemorySessionRepository(session_type=session_type)
    from vibeforge_sessions.sql.aio import open_async_database  # noqa: PLC0415 (in memory needs no SQLAlchemy)

    return await open_async_database(
        request.url, migrate=request.migrate, session_type=session_type, schema=request.schema, retry=retry
    )


class _DatabaseRequest(NamedTuple):
    url: str
    migrate: bool
    schema: str | None


def _resolve_database(
    call: str, url: str | None, *, migrate: bool | None, schema: str | None
) -> _DatabaseRequest | None:
    """Return the database of the arguments, or by default of the environment; None for memory."""
    settings = Settings.read()
    url = settings.url() if url is None else _not_empty(url, "url")
    if url is None:
        variable = settings.variable_requiring_database()
        if variable is not None:
            raise ConfigurationError(f"this environment variable is set, but no database URL: {_NEXT_STEP}", variable)
        instrumentation.warn(call, f"sessions are kept in memory, and end with this process: {_NEXT_STEP}")
        return None
    if url == MEMORY_URL:
        return None
    return _DatabaseRequest(
        url,
        settings.migrate if migrate is None else migrate,
        settings.db_schema if schema is None else schema,
    )
