"""Migration scripts: their location, their properties, and their rendering as SQL without a database."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL

from vibeforge_sessions.errors import InvalidArgumentError, SchemaError
from vibeforge_sessions.sql.dialects.base import MigrationTimeouts
from vibeforge_sessions.sql.engine import parse_url

PREFIX: Final = "vibeforge_"
"""Prefix of the revision ids. It distinguishes them from the revisions of an application that uses the same Alembic."""

_REVISION: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_@]{0,99}([+-][0-9]{1,9})?|[+-][0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Revision:
    """Properties that a revision declares in its file. A test compares them with the behavior of the servers."""

    revision: str
    after: str | None
    """The previous revision."""
    summary: str
    locks: Mapping[str, Mapping[str, str]]
    """For each database: the existing tables that the migration locks, and the lock in the terms of the database."""
    rewrites: tuple[str, ...]
    """Tables that the migration rewrites, which takes time and disk space."""
    online: tuple[str, ...]
    """Databases on which applications may write during the migration."""
    loses: str | None
    """Data that a downgrade loses; None if it loses nothing."""


def history() -> list[Revision]:
    """Return all revisions in ascending order."""
    return [_revision(script) for script in _scripts().walk_revisions()][::-1]


def head() -> str:
    """Return the revision that this version of the package needs."""
    return str(_scripts().get_current_head())


def script_folder() -> Path:
    """Return the folder of ``alembic.ini`` and ``migrations``: the installed package, or a checkout."""
    package = Path(__file__).resolve().parents[2]
    checkout = package.parent
    if (package / "alembic.ini").is_file():
        return package
    if (checkout / "pyproject.toml").is_file() and (checkout / "alembic.ini").is_file():
        return checkout
    raise SchemaError("the migration scripts of vibeforge_sessions are missing: install the package from its wheel")


def render(
    url: str | URL,
    revision: str = "head",
    *,
    since: str | None = None,
    downgrade: bool = False,
    schema: str | None = None,
    lock_timeout: float | None = None,
    statement_timeout: float | None = None,
) -> str:
    """Return the SQL of a migration, without a connection and without the driver of the database.

    :param url: selects the kind of database; ``postgresql://`` is enough.
    :param revision: the target revision.
    :param since: the initial revision. By default an upgrade begins with an empty database and a downgrade at the head.
    :param schema: PostgreSQL only. The schema of the tables.
    :param lock_timeout: seconds to wait for a table lock; 10 by default.
    :param statement_timeout: time limit of a statement in seconds; by default the setting of the server.
    :raises SchemaError: a revision is unknown.
    :raises InvalidArgumentError: `revision` or `since` cannot be a revision.
    :raises ConfigurationError: the URL is not supported.
    """
    output = io.StringIO()
    run(
        command.downgrade if downgrade else command.upgrade,
        f"{check_revision(since or ('head' if downgrade else 'base'))}:{check_revision(revision)}",
        output=output,
        bind=parse_url(url),
        schema=schema,
        timeouts=MigrationTimeouts(lock_timeout, statement_timeout),
    )
    return output.getvalue()


def run(
    migrate: Callable[..., object], revision: str, *, output: io.StringIO | None = None, **attributes: object
) -> None:
    """Run a command of Alembic.

    :param output: receives the SQL, which is then not executed. None executes it.
    :param attributes: arguments of ``run`` in ``migrations/env.py``.
    :raises SchemaError: the revision is unknown.
    """
    settings = config(output)
    settings.attributes.update(attributes, upgrading=migrate is command.upgrade)
    try:
        migrate(settings, revision, **({} if output is None else {"sql": True}))
    except CommandError as error:  # the message contains no value except the revision id
        raise SchemaError(str(error)) from error


def check_revision(revision: str) -> str:
    """Return a revision if its form is valid. For other strings, Alembic raises errors of many kinds.

    :raises InvalidArgumentError: it does not have the form of a revision.
    """
    if not _REVISION.fullmatch(revision):
        raise InvalidArgumentError("must be a revision id, head, base, or a number of steps such as -1", "revision")
    return revision


def config(output: io.StringIO | None = None) -> Config:
    """Return the configuration of Alembic. What Alembic prints is discarded, except for SQL."""
    return Config(script_folder() / "alembic.ini", stdout=io.StringIO(), output_buffer=output)


@functools.cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(config())


def _revision(script: Script) -> Revision:
    after = None if script.down_revision is None else str(script.down_revision)
    declared: Any = vars(script.module).get
    locks, rewrites, online = declared("locks", {}), declared("rewrites", ()), declared("online", ())
    return Revision(script.revision, after, script.doc, locks, rewrites, online, declared("loses"))
