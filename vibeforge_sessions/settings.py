"""Environment variables, and functions that open a repository from a URL or from these variables."""

from __future__ import annotations

import difflib
import os
from typing import Any, Final, Self

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
_SPELLINGS: Final = {
    spelling: name for name in (_URL, _MIGRATE, _SCHEMA) for spelling in (name, name.replace("SESSIONS", "SESSION"))
}
"""Spellings that an unknown variable is compared with, and the correct name for each."""
_SIMILARITY: Final = 0.95
"""Minimum `difflib` similarity of a misspelled name. A valid name with one wrong letter has 0.958 or more."""
_NEXT_STEP: Final = f"set {_URL} to the database's URL, or to {MEMORY_URL} to keep sessions in memory"


class Settings(BaseSettings):
    """Values of the variables ``VIBEFORGE_SESSIONS_DATABASE_URL``, ``…_MIGRATE`` and ``…_SCHEMA``."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, hide_input_in_errors=True)

    database_url: SecretStr | None = None
    migrate: bool = False
    # not named `schema`, because BaseModel has a method of that name
    db_schema: str | None = Field(default=None, validation_alias="VIBEFORGE_SESSIONS_SCHEMA")

    @model_validator(mode="before")
    @classmethod
    def _ignore_empty(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Treat an empty value as unset, except an empty URL, which `url` rejects."""
        return {name: value for name, value in given.items() if value != "" or name == "database_url"}

    @classmethod
    def read(cls) -> Self:
        """Return the current values of the environment variables.

        :raises ConfigurationError: ``VIBEFORGE_SESSIONS_MIGRATE`` is neither true nor false, or the name of an
            environment variable is a misspelling of one of the three names.
        """
        reject_misspelled_variables()
        try:
            return cls()
        except ValidationError:
            raise ConfigurationError("the environment variable must be true or false", _MIGRATE) from None

    def url(self) -> str | None:
        """Return the database URL including its password, or None if it is not set.

        :raises ConfigurationError: the URL is empty.
        """
        return None if self.database_url is None else _not_empty(self.database_url.get_secret_value(), _URL)


def reject_misspelled_variables() -> None:
    """Reject environment variables whose name is a misspelling of a variable of this package.

    :raises ConfigurationError: a name is similar to a valid name, or to a valid name with SESSION for SESSIONS.
    """
    for name in sorted(os.environ):
        similar = difflib.get_close_matches(name.upper(), _SPELLINGS, n=1, cutoff=_SIMILARITY)
        valid = _SPELLINGS[similar[0]] if similar else name.upper()
        if name.upper() != valid:
            raise ConfigurationError(f"this environment variable is not read: rename it to {valid}, or unset it", name)


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
    """Open the repository for a URL, by default the URL in the environment; the caller must close the repository.

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
        extra); the URL is empty; ``VIBEFORGE_SESSIONS_MIGRATE`` is neither true nor false; that variable or
        ``VIBEFORGE_SESSIONS_SCHEMA`` is set without a URL; or the name of an environment variable is a misspelling of
        one of the three names.
    """
    database = _database("open_repository", url, migrate=migrate, schema=schema)
    if database is None:
        return InMemorySessionRepository(session_type=session_type)
    from vibeforge_sessions.sql.repository import open_database  # noqa: PLC0415 (memory:// needs no SQLAlchemy)

    return open_database(**database, session_type=session_type, retry=retry)


async def open_async_repository(
    url: str | None = None,
    *,
    migrate: bool | None = None,
    session_type: type[S] = Session,  # type: ignore[assignment]
    schema: str | None = None,
    retry: RetryPolicy | None = None,
) -> AsyncSessionRepository[S]:
    """Open the asynchronous repository for a URL, by default the URL in the environment; see `open_repository`.

    The same URLs are supported. ``postgresql+psycopg://…``, ``postgresql+asyncpg://…`` and ``mariadb+asyncmy://…`` run
    on the event loop; ``sqlite:///…`` and ``mariadb+pymysql://…`` run in threads.

    :raises ImportError: the extra ``async`` is not installed.
    """
    database = _database("open_async_repository", url, migrate=migrate, schema=schema)
    if database is None:
        return AsyncInMemorySessionRepository(session_type=session_type)
    from vibeforge_sessions.sql.aio import open_async_database  # noqa: PLC0415 (memory:// needs no SQLAlchemy)

    return await open_async_database(**database, session_type=session_type, retry=retry)


def _database(call: str, url: str | None, *, migrate: bool | None, schema: str | None) -> dict[str, Any] | None:
    """Return the URL, `migrate` and schema, from the arguments or else the environment; None for memory."""
    settings = Settings.read()
    url = settings.url() if url is None else _not_empty(url, "url")
    if url is None:
        for field, variable in (("migrate", _MIGRATE), ("db_schema", _SCHEMA)):
            if field in settings.model_fields_set:
                raise ConfigurationError(
                    f"this environment variable is set without a database URL: {_NEXT_STEP}", variable
                )
        instrumentation.warn(call, f"sessions are kept in memory, and are lost when this process ends: {_NEXT_STEP}")
        return None
    if url == MEMORY_URL:
        return None
    return {
        "url": url,
        "migrate": settings.migrate if migrate is None else migrate,
        "schema": settings.db_schema if schema is None else schema,
    }
