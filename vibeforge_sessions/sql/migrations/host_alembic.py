"""Integration with the Alembic environment of an application that uses the same database.

In the ``env.py`` of the application:

    context.configure(connection=connection, target_metadata=metadata, include_name=host_alembic.include_name)

With this argument, the application's ``--autogenerate`` does not drop the tables of this package. The migrations of
this package run as usual, and keep their revision in their own version table. To let the application's Alembic run
these migrations instead, as a branch:

    config.set_main_option("version_locations", host_alembic.version_locations("migrations/versions"))

Then run ``alembic upgrade heads``, or ``alembic upgrade vibeforge_sessions@head`` for this branch alone. After
that, the application's ``alembic_version`` table contains the revisions of both branches, and
`vibeforge_sessions.sql.check_schema` reads the revision of this branch there. Do not merge the two branches: a merge
revision does not show the state of this branch.
"""

from __future__ import annotations

import os
from typing import Any

from vibeforge_sessions.sql.migrations.scripts import script_folder
from vibeforge_sessions.sql.tables import VERSION_TABLE, metadata

__all__ = ["include_name", "include_object", "version_locations"]


def include_name(name: str | None, kind: str, _parents: Any = None) -> bool:
    """Return whether Alembic compares a name in the database: True unless it is a table of this package.

    For ``context.configure(include_name=…)``. A function of your own can call this one.
    """
    return kind != "table" or (name not in metadata.tables and name != VERSION_TABLE)


def include_object(_object: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:  # noqa: FBT001 (Alembic calls it)
    """Return what `include_name` returns, for ``context.configure(include_object=…)``."""
    return include_name(name, kind)


def version_locations(*of_host: str) -> str:
    """Return ``version_locations`` for both branches, separated as ``path_separator = os`` requires.

    :param of_host: folders with the revisions of the application.
    """
    return os.pathsep.join([*of_host, str(script_folder() / "migrations" / "versions")])
