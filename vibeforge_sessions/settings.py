"""From the environment to a repository: the one switch that turns persistence on."""

from __future__ import annotations

import os
from typing import Any, Final, NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vibeforge_sessions.errors import InvalidSessionError
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
"""Variables of the command line whose names are within two edits of one of `_VARIABLES`."""
_MOST_EDITS: Final = 2
_NEXT_STEP: Final = f"set {_URL} to the database's URL, or to {MEMORY_URL} to keep sessions in memory"


class Settings(BaseSettings):
    """What the environment says: ``VIBEFORGE_SESSIONS_DATABASE_URL``, ``…_MIGRATE`` and ``…_SCHEMA``."""

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
        """Return what the environment says now.

        :raises InvalidSessionError: ``VIBEFORGE_SESSIONS_MIGRATE`` is neither true nor false, or the name of a variable
            is a misspelling of one of these.
        """
        reject_misspelt_variables()
        try:
            return cls()
        except ValidationError as error:
            name = str(error.errors(include_input=False)[0]["loc"][0]).upper()
            raise InvalidSessionError("the environment variable is neither true nor false", _PREFIX + name) from None

    def url(self) -> str | None:
        """Return the database's URL with its password, None where there is none.

        :raises InvalidSessionError: the URL is empty.
        """
        return None if self.database_url is None else _not_empty(self.database_url.get_secret_value(), _URL)

    def needs_database(self) -> str | None:
        """Return the name of a variable that is set and means nothing without a database, None if there is none."""
        names = {"migrate": _MIGRATE, "db_schema": _SCHEMA}
        return next((names[field] for field in names if field in self.model_fields_set), None)


def reject_misspelt_variables() -> None:
    """Look for misspelt names of this package's variables in the environment.

    :raises InvalidSessionError: a name is within two edits of one of ours, with or without the last S of SESSIONS.
    """
    for name in sorted(os.environ):
        if name.upper() in _VARIABLES or name.upper() in _SIMILAR:
            continue
        for ours in _VARIABLES:
            if any(_is_near(name.upper(), each) for each in (ours, ours.replace("SESSIONS", "SESSION"))):
                raise InvalidSessionError(
                    f"this environment variable is not read: rename it to {ours}, or unset it", name
                )


def _is_near(name: str, other: str) -> bool:
    """Tell whether at most `_MOST_EDITS` insertions, deletions and replacements of letters lead to another name."""
    if abs(len(name) - len(other)) > _MOST_EDITS:
        return False
    edits = list(range(len(other) + 1))
    for row, letter in enumerate(name, 1):
        above, edits = edits, [row]
        for column, wanted in enumerate(other, 1):
            edits.append(min(above[column] + 1, edits[-1] + 1, above[column - 1] + (letter != wanted)))
        if min(edits) > _MOST_EDITS:
            return False
    return edits[-1] <= _MOST_EDITS


def _not_empty(url: str, path: str) -> str:
    if not url.strip():
        raise InvalidSessionError(f"the database URL is empty: {_NEXT_STEP}", path)
    return url


def open_repository(
    url: str | None = None,
    *,
    migrate: bool | None = None,
    session_type: type[S] = Session,  # type: ignore[assignment]
    schema: str | None = None,
    retry: RetryPolicy | None = None,
) -> SessionRepository[S]:
    """Return the repository that `url`, or else the environment, asks for; close it at the end.

    With a database, its schema is checked first: an application finds out at its start, not at the first query.

    :param url: ``memory://``, or a database's; by default ``VIBEFORGE_SESSIONS_DATABASE_URL``. Without that sessions
        are kept in memory, and a WARNING is logged by the logger ``vibeforge_sessions``.
    :param migrate: upgrade the schema first; by default ``VIBEFORGE_SESSIONS_MIGRATE``, and without that not.
    :param session_type: the class of session it stores, `Session` or a subclass.
    :param schema: PostgreSQL's, in which the tables stand; by default ``VIBEFORGE_SESSIONS_SCHEMA``, and without that
        the database's own default.
    :param retry: how long a call may take, and how it is tried again; None for the defaults. (Opening is not.)
    :raises SchemaError: the schema is empty, behind, foreign or drifted, or ahead without letting this version go on;
        the error names the command to run.
    :raises StorageError: the database is not supported, its driver is not installed (the error names the extra),
        or it cannot be reached.
    :raises InvalidSessionError: the URL is empty; ``VIBEFORGE_SESSIONS_MIGRATE`` is neither true nor false; it or
        ``VIBEFORGE_SESSIONS_SCHEMA`` is set, and there is no URL; or the name of an environment variable is a
        misspelling of one of the three (at most two edits away, with or without the last S of SESSIONS).
    """
    asked = _asked("open_repository", url, migrate, schema)
    if asked is None:
        return InMemorySessionRepository(session_type=session_type)
    from vibeforge_sessions.sql.repository import open_database  # noqa: PLC0415 (in memory needs no SQLAlchemy)

    return open_database(asked.url, migrate=asked.migrate, session_type=session_type, schema=asked.schema, retry=retry)


async def open_async_repository(
    url: str | None = None,
    *,
    migrate: bool | None = None,
    session_type: type[S] = Session,  # type: ignore[assignment]
    schema: str | None = None,
    retry: RetryPolicy | None = None,
) -> AsyncSessionRepository[S]:
    """Return the asynchronous repository that `url`, or else the environment, asks for; see `open_repository`.

    The same URLs do: ``postgresql+psycopg://…`` works on the event loop, ``sqlite:///…`` and ``mariadb+pymysql://…``
    in threads; ``postgresql+asyncpg://…`` and ``mariadb+asyncmy://…`` work too.

    :raises ImportError: the extra ``async`` is not installed.
    """
    asked = _asked("open_async_repository", url, migrate, schema)
    if asked is None:
        return AsyncInMemorySessionRepository(session_type=session_type)
    from vibeforge_sessions.sql.aio import open_async_database  # noqa: PLC0415 (in memory needs no SQLAlchemy)

    return await open_async_database(
        asked.url, migrate=asked.migrate, session_type=session_type, schema=asked.schema, retry=retry
    )


class _Asked(NamedTuple):
    url: str
    migrate: bool
    schema: str | None


def _asked(call: str, url: str | None, migrate: bool | None, schema: str | None) -> _Asked | None:  # noqa: FBT001 (ours alone)
    """Return which database is asked for, by the arguments or else by the environment; None for memory."""
    settings = Settings.read()
    url = settings.url() if url is None else _not_empty(url, "url")
    if url is None:
        variable = settings.needs_database()
        if variable is not None:
            raise InvalidSessionError(f"this environment variable is set, and no database: {_NEXT_STEP}", variable)
        instrumentation.warn(call, f"sessions are kept in memory, and end with this process: {_NEXT_STEP}")
        return None
    if url == MEMORY_URL:
        return None
    return _Asked(
        url,
        settings.migrate if migrate is None else migrate,
        settings.db_schema if schema is None else schema,
    )
