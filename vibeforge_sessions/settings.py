"""From the environment to a repository: the one switch that turns persistence on."""

from __future__ import annotations

from typing import NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.memory import AsyncInMemorySessionRepository, InMemorySessionRepository
from vibeforge_sessions.model import S, Session
from vibeforge_sessions.repository import AsyncSessionRepository, SessionRepository
from vibeforge_sessions.retry import RetryPolicy

__all__ = ["MEMORY_URL", "Settings", "open_async_repository", "open_repository"]

MEMORY_URL = "memory://"
_PREFIX = "VIBEFORGE_SESSIONS_"


class Settings(BaseSettings):
    """What the environment says: ``VIBEFORGE_SESSIONS_DATABASE_URL``, ``…_MIGRATE`` and ``…_SCHEMA``."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, hide_input_in_errors=True, env_ignore_empty=True)

    database_url: SecretStr | None = None
    migrate: bool = False
    # BaseModel has a `schema` of its own
    db_schema: str | None = Field(default=None, validation_alias="VIBEFORGE_SESSIONS_SCHEMA")

    @classmethod
    def read(cls) -> Self:
        """Return what the environment says now.

        :raises InvalidSessionError: ``VIBEFORGE_SESSIONS_MIGRATE`` is neither true nor false.
        """
        try:
            return cls()
        except ValidationError as error:
            name = str(error.errors(include_input=False)[0]["loc"][0]).upper()
            raise InvalidSessionError("the environment variable is neither true nor false", _PREFIX + name) from None

    def url(self) -> str | None:
        """Return the database's URL with its password, None where there is none."""
        return None if self.database_url is None else self.database_url.get_secret_value()


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

    :param url: ``memory://``, or a database's; by default ``VIBEFORGE_SESSIONS_DATABASE_URL``, and without that
        sessions are kept in memory.
    :param migrate: upgrade the schema first; by default ``VIBEFORGE_SESSIONS_MIGRATE``, and without that not.
    :param session_type: the class of session it stores, `Session` or a subclass.
    :param schema: PostgreSQL's, in which the tables stand; by default ``VIBEFORGE_SESSIONS_SCHEMA``, and without that
        the database's own default.
    :param retry: how long a call may take, and how it is tried again; None for the defaults. (Opening is not.)
    :raises SchemaError: the schema is empty, behind, foreign or drifted, or ahead without letting this version go on;
        the error names the command to run.
    :raises StorageError: the database is not supported, its driver is not installed (the error names the extra),
        or it cannot be reached.
    :raises InvalidSessionError: ``VIBEFORGE_SESSIONS_MIGRATE`` is neither true nor false.
    """
    asked = _asked(url, migrate, schema)
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
    asked = _asked(url, migrate, schema)
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


def _asked(url: str | None, migrate: bool | None, schema: str | None) -> _Asked | None:  # noqa: FBT001 (ours alone)
    """Return which database is asked for, by the arguments or else by the environment; None for memory."""
    settings = Settings.read()
    url = settings.url() if url is None else url
    if url is None or url == MEMORY_URL:
        return None
    return _Asked(
        url,
        settings.migrate if migrate is None else migrate,
        settings.db_schema if schema is None else schema,
    )
