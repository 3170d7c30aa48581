"""For a host whose own Alembic works on the same database: it leaves our tables alone, or runs our migrations too.

In the host's ``env.py``::

    context.configure(connection=connection, target_metadata=metadata, include_name=hosting.include_name)

With that the host's ``--autogenerate`` does not drop what it finds of ours. Our migrations run as they always do, and
keep their revision in a version table of their own. To run them by the host's Alembic instead, as a branch of its own::

    config.set_main_option("version_locations", hosting.version_locations("migrations/versions"))

and then ``alembic upgrade heads`` (or ``vibeforge_sessions@head`` for ours alone). The host's ``alembic_version`` then
holds our revision beside the host's, and `vibeforge_sessions.sql.check_schema` finds it there. Do not merge the two
branches: after that nobody could tell where ours stands.
"""

from __future__ import annotations

import os
from typing import Any

from vibeforge_sessions.sql.migrations.scripts import script_folder
from vibeforge_sessions.sql.tables import VERSION_TABLE, metadata

__all__ = ["include_name", "include_object", "version_locations"]


def include_name(name: str | None, kind: str, _parents: Any = None) -> bool:
    """Tell whether Alembic's comparison shall look at a name of the database: not at our tables.

    For ``context.configure(include_name=…)``; a host that has one of its own calls this in it.
    """
    return kind != "table" or (name not in metadata.tables and name != VERSION_TABLE)


def include_object(_object: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:  # noqa: FBT001 (Alembic calls it)
    """Tell the same of an object, for ``context.configure(include_object=…)``."""
    return include_name(name, kind)


def version_locations(*of_host: str) -> str:
    """Return the host's folders of revisions and ours, as ``version_locations`` with ``path_separator = os``."""
    return os.pathsep.join([*of_host, str(script_folder() / "migrations" / "versions")])
