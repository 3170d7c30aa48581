"""The migration scripts: where they are, what each of them says of itself, and their SQL without a database."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL

from vibeforge_sessions.errors import SchemaError
from vibeforge_sessions.sql.dialects import Timeouts
from vibeforge_sessions.sql.engine import parse_url

__all__ = ["PREFIX", "Revision", "history", "render", "script_folder"]

PREFIX: Final = "vibeforge_"
"""What the ids of our revisions begin with, so that they cannot be those of a host whose Alembic runs them too."""

_REVISION: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_@]{0,99}([+-][0-9]{1,9})?|[+-][0-9]{1,9}")

Locks = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Revision:
    """What a revision's file says of itself; its attributes are held to what the servers do by a test."""

    revision: str
    after: str | None
    """The revision before it."""
    summary: str
    locks: Locks
    """For each database: the tables that were there before and are locked meanwhile, and how, in its own words."""
    rewrites: tuple[str, ...]
    """The tables that are written anew, which takes time and room."""
    online: tuple[str, ...]
    """The databases on which others may write meanwhile."""
    loses: str | None
    """What a downgrade of it loses, None for nothing."""


def history() -> list[Revision]:
    """Return all revisions, the first one first."""
    return [_revision(script) for script in _scripts().walk_revisions()][::-1]


def head() -> str:
    """Return the revision that this version of the package works with."""
    return str(_scripts().get_current_head())


def script_folder() -> Path:
    """Return the folder that holds ``alembic.ini`` and ``migrations``: the installed package, or a checkout."""
    package = Path(__file__).resolve().parents[2]
    checkout = package.parent
    if (package / "alembic.ini").is_file():
        return package
    if (checkout / "pyproject.toml").is_file() and (checkout / "alembic.ini").is_file():
        return checkout
    raise SchemaError("the migration scripts were not installed with vibeforge_sessions")


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
    """Return the SQL of a migration, without connecting and without the database's driver.

    :param url: only its kind of database counts: ``postgresql://`` will do.
    :param revision: where it leads to.
    :param since: where it begins; by default an upgrade begins with nothing and a downgrade at the head.
    :param schema: PostgreSQL's, in which the tables stand.
    :param lock_timeout: seconds to wait for a table's lock; 10 by default.
    :param statement_timeout: seconds that a statement may take; as the server has it by default.
    :raises SchemaError: a revision is unknown.
    :raises StorageError: the URL is not supported.
    """
    printed = io.StringIO()
    settings = config(printed)
    settings.attributes.update(
        connection=parse_url(url),
        schema=schema,
        timeouts=Timeouts(lock_timeout, statement_timeout),
        upgrading=not downgrade,
    )
    run = command.downgrade if downgrade else command.upgrade
    since = check_revision(since or ("head" if downgrade else "base"))
    try:
        run(settings, f"{since}:{check_revision(revision)}", sql=True)
    except CommandError as error:
        raise SchemaError(str(error)) from error
    return printed.getvalue()


def check_revision(revision: str) -> str:
    """Return what may be a revision: of anything else Alembic says what it likes.

    :raises SchemaError: it cannot be one.
    """
    if not _REVISION.fullmatch(revision):
        raise SchemaError("a revision is an id, head or base, or so many steps from one of them, such as head or -1")
    return revision


def config(printed: io.StringIO | None = None) -> Config:
    """Return Alembic's configuration; what it prints is nobody's, apart from SQL."""
    return Config(script_folder() / "alembic.ini", stdout=io.StringIO(), output_buffer=printed)


@functools.cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(config())


def _revision(script: Script) -> Revision:
    told: Any = vars(script.module)
    return Revision(
        revision=script.revision,
        after=None if script.down_revision is None else str(script.down_revision),
        summary=script.doc,
        locks=dict(told.get("locks", {})),
        rewrites=tuple(told.get("rewrites", ())),
        online=tuple(told.get("online", ())),
        loses=told.get("loses"),
    )
