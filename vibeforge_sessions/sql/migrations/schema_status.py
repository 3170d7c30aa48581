"""Where a database stands, seen from this version of the package: one answer for all who ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Engine, Inspector, Table, column, select, table

from vibeforge_sessions.errors import SchemaError, SchemaState
from vibeforge_sessions.sql.dialects import database_of
from vibeforge_sessions.sql.migrations.scripts import PREFIX, head, history, script_folder
from vibeforge_sessions.sql.tables import (
    HOSTS_VERSION_TABLE,
    VERSION_TABLE,
    compatibility,
    metadata,
    metadata_in,
    schema_of,
)
from vibeforge_sessions.sql.transactions.error_translation import connected, translated

__all__ = ["SchemaStatus", "inspect_schema"]

UPGRADE: Final = "vibeforge-sessions db upgrade"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaStatus:
    """Where a database stands."""

    state: SchemaState
    usable: bool
    """Whether this version of the package can work with it: it is current; or it is ahead, and its floor lets older
    code go on; or it has drifted in what no statement of ours needs, such as an index."""
    revision: str | None
    """Where the database is."""
    head: str
    """Where this version of the package needs it to be."""
    reason: str
    """What a person should know, in a sentence without its end."""
    command: str | None = None
    """What to run next; None where that is for a person to decide, or there is nothing to do."""
    pending: tuple[str, ...] = ()
    """The revisions that an upgrade would run, in this order."""
    differences: tuple[str, ...] = ()
    """How the tables differ from those that the migrations make."""
    floor: str | None = None
    """The oldest revision whose code may go on with this schema, as the last migration has said; None where it has not,
    or where nobody asked for an exact answer."""
    of_host: bool = False
    """Whether the host's own Alembic runs our migrations, as a branch."""

    def error(self) -> SchemaError:
        """Return the error that says so."""
        text = self.reason
        if self.command == UPGRADE:
            alembic = f'alembic -c "{script_folder() / "alembic.ini"}" upgrade head'
            text += (
                f"; run: {UPGRADE} (of vibeforge-sessions[cli]) or {alembic} (with VIBEFORGE_SESSIONS_DATABASE_URL "
                "set), or set VIBEFORGE_SESSIONS_MIGRATE=1"
            )
        elif self.command is not None:
            text += f"; run: {self.command}"
        return SchemaError(text, self.state)


def inspect_schema(connection: Connection, *, exact: bool = False) -> SchemaStatus:
    """Return where the database of a connection stands.

    :param exact: compare everything with the models: types, indexes and constraints too, and what is there in
        addition. Otherwise only tables and columns that are missing are found, which takes a few milliseconds.
    :raises StorageError: the database failed.
    """
    with translated("inspect"):
        return _Looked(connection, exact=exact).status()


def revision_of(connection: Connection) -> str | None:
    """Return the revision that a database is at, None where there is none."""
    with translated("inspect"):
        return _Looked(connection, exact=False).revision


class _Looked:
    """What is seen of a database: its tables, and its revision."""

    def __init__(self, connection: Connection, *, exact: bool) -> None:
        self.connection = connection
        self.exact = exact
        self.schema = schema_of(connection)
        self.inspector: Inspector = sqlalchemy.inspect(connection)
        self.tables = set(self.inspector.get_table_names(schema=self.schema))
        self.ours = self.tables & metadata.tables.keys()
        self.revision, self.of_host = self._revision()

    def status(self) -> SchemaStatus:
        known = [each.revision for each in history()]
        needed = head()
        if self.revision is None:
            return self._without_revision(needed, known)
        if self.revision not in known:
            return self._ahead(needed, known)
        pending = tuple(known[known.index(self.revision) + 1 :])
        if pending:
            return self._status(
                "behind",
                f"this database is at revision {self.revision}, this version needs {needed}",
                command=_upgrade_of_host() if self.of_host else UPGRADE,
                pending=pending,
            )
        lacking = self.lacking()
        differences = tuple(self.differences()) if self.exact else lacking
        if not differences:
            return self._status("current", f"this database is at revision {self.revision}", usable=True)
        return self._status(
            "drifted",
            f"this database is at revision {self.revision}, but differs from what the migrations make: "
            f"{'; '.join(differences)}; "
            + ("restore it from a backup" if lacking else "this version works with it all the same"),
            usable=not lacking,
            differences=differences,
        )

    def _status(self, state: SchemaState, reason: str, *, usable: bool = False, **more: Any) -> SchemaStatus:
        return SchemaStatus(
            state=state,
            usable=usable,
            revision=self.revision,
            head=head(),
            reason=reason,
            # read where it is asked for only: after an upgrade the application may have no right to it yet
            floor=self.floor() if self.exact or state == "ahead" else None,
            of_host=self.of_host,
            **more,
        )

    def _without_revision(self, needed: str, known: list[str]) -> SchemaStatus:
        if not self.ours:
            reason = "this database has no tables of vibeforge_sessions yet"
            command = UPGRADE
            if self.schema is not None and not self.inspector.has_schema(self.schema):
                reason = f"this database has no schema {self.schema}"
                command = f'CREATE SCHEMA "{self.schema}"'  # the DBA's: who may use it is not ours to say
            return self._status("empty", reason, pending=tuple(known), command=command)
        names = ", ".join(sorted(self.ours))
        reason = (
            f"this database has tables of these names already, and no revision in {VERSION_TABLE} says that our "
            f"migrations made them: {names}"
        )
        differences = tuple(self.differences())
        if differences:
            reason += "; use another database or schema, or rename them"
            return self._status("foreign", reason, differences=differences)
        reason += f"; they equal those of revision {needed}: if they are ours, say so"
        return self._status("foreign", reason, command=f"vibeforge-sessions db stamp {needed}")

    def _ahead(self, needed: str, known: list[str]) -> SchemaStatus:
        floor, reason = self.floor(), f"this database is at revision {self.revision}, of a newer version"
        lacking = self.lacking()
        if floor in known and not lacking:
            return self._status(
                "ahead", f"{reason}; it lets code of revision {floor} and later go on, so this of {needed}", usable=True
            )
        return self._status(
            "ahead",
            f"{reason} of vibeforge_sessions: upgrade the package",
            command="pip install --upgrade vibeforge-sessions",
            differences=lacking,
        )

    def floor(self) -> str | None:
        """Return the oldest revision whose code may go on; None where the last migration has not said it."""
        if compatibility.name not in self.tables:
            return None
        of_revision = select(compatibility.c.floor).where(compatibility.c.revision == self.revision)
        return self.connection.execute(of_revision).scalar()

    def lacking(self) -> tuple[str, ...]:
        """Return the tables and columns that our statements name and the database lacks."""
        found = self.inspector.get_multi_columns(schema=self.schema, filter_names=sorted(self.ours))
        there = {name: {each["name"] for each in columns} for (_, name), columns in found.items()}
        return tuple(
            f"{each} is missing"
            for name, model in sorted(metadata.tables.items())
            if model is not compatibility  # which only newer migrations and older code ask
            for each in (
                (f"{name}.{column}" for column in sorted(model.columns.keys()) if column not in there[name])
                if name in there
                else [f"table {name}"]
            )
        )

    def differences(self) -> Iterator[str]:
        """Yield what differs from the models, in words."""
        options = {**comparison(self.schema), "version_table": VERSION_TABLE, "version_table_schema": self.schema}
        context = MigrationContext.configure(self.connection, opts=options)
        for found in compare_metadata(context, metadata_in(self.schema)):
            for each in found if isinstance(found, list) else [found]:
                yield _in_words(each)

    def _revision(self) -> tuple[str | None, bool]:
        """Return the revision, and whether it stands in the version table of the host."""
        for name in (VERSION_TABLE, HOSTS_VERSION_TABLE):
            if name not in self.tables:
                continue
            versions = table(
                name, column("version_num"), schema=self.schema
            )  # no `Table`: its schema is not translated
            found = self.connection.execute(select(versions.c.version_num)).scalars().all()
            heads = [each for each in found if name == VERSION_TABLE or str(each).startswith(PREFIX)]
            if len(heads) > 1:
                raise SchemaError(f"{name} names several revisions at once: {', '.join(sorted(heads))}", "foreign")
            if heads:
                return heads[0], name == HOSTS_VERSION_TABLE
        return None, False


def comparison(schema: str | None) -> dict[str, Any]:
    """Return Alembic's options for comparing our tables, and no other ones, with the database's."""

    def is_ours(name: str | None, kind: str, _parents: object) -> bool:
        if kind == "schema":
            return name == schema
        return kind != "table" or name in metadata.tables

    return {
        "include_name": is_ours,
        "include_schemas": schema is not None,
        "compare_type": True,
        "compare_server_default": True,
    }


def _upgrade_of_host() -> str:
    return "alembic upgrade vibeforge_sessions@head, with the host's own Alembic"


def _in_words(found: Any) -> str:
    """Return a difference of Alembic's as a person reads it."""
    kind, *what = found
    thing = what[-1]
    verb = "is not in the models" if kind.startswith("remove") else "is missing"
    if isinstance(thing, Table):
        return f"table {thing.name} {verb}"
    if isinstance(thing, Column):
        return f"{what[1]}.{thing.name} {verb}"
    if kind.startswith("modify"):
        _schema, name, of_column, _about, there, wanted = what
        return f"{kind.removeprefix('modify_')} of {name}.{of_column} is {there!r} and not {wanted!r}"
    owner = getattr(thing, "table", None)
    of = f" of {owner.name}" if owner is not None else ""
    return f"{type(thing).__name__.lower()} {getattr(thing, 'name', None)}{of} {verb}"


@contextmanager
def reading(bind: Engine | Connection) -> Iterator[Connection]:
    """Give a connection for looking; a host's is afterwards in a transaction only if it was before."""
    with translated("reach"):
        database_of(bind.dialect)
        if isinstance(bind, Engine):
            with connected(bind) as connection:
                yield connection
            return
        begun = bind.in_transaction()
        try:
            yield bind
        finally:
            if not begun:
                bind.rollback()
