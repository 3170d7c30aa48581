"""Schema status checks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Engine, Inspector, MetaData, Table, column, select, table

from vibeforge_sessions.errors import SchemaError, SchemaState
from vibeforge_sessions.sql.dialects import database_dialect_of
from vibeforge_sessions.sql.dialects.base import quoted
from vibeforge_sessions.sql.migrations.scripts import PREFIX, head, history, script_folder
from vibeforge_sessions.sql.tables import DEFAULT_VERSION_TABLE, VERSION_TABLE, compatibility, metadata, schema_of
from vibeforge_sessions.sql.transactions.error_translation import connected, translated

UPGRADE: Final = "vibeforge-sessions db upgrade"
_UPGRADE_OF_HOST: Final = "alembic upgrade vibeforge_sessions@head, with the Alembic of the application"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaStatus:
    """State of a database's schema, compared with the schema that this version of the package needs."""

    state: SchemaState
    usable: bool
    """Whether this version of the package can use the database.

    That is the case if the schema is current, if it is ahead and its minimum compatible revision is known to this
    version, or if it has drifted only in parts that no statement needs, such as an index.
    """
    revision: str | None
    """The revision of the database."""
    head: str
    """The revision that this version of the package needs."""
    reason: str
    """Explanation for a person, without a final period."""
    command: str | None = None
    """The command to run next. None if a person must decide, or if there is nothing to do."""
    pending: tuple[str, ...] = ()
    """Revisions that an upgrade would run, in this order."""
    differences: tuple[str, ...] = ()
    """Differences between the tables and those that the migrations create."""
    floor: str | None = None
    """Minimum compatible revision, as the last migration has recorded it.

    None if it is not recorded. It is read only if the schema is ahead, or for an exact status.
    """
    of_host: bool = False
    """Whether the Alembic of the application runs the migrations of this package as a branch."""

    def error(self) -> SchemaError:
        """Return the error for this status."""
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
    """Return the schema status of a connection's database.

    :param exact: compare everything with the models, including types, indexes, constraints and additional objects.
        Otherwise only missing tables and columns are detected, which takes a few milliseconds.
    :raises StorageError: the database failed.
    """
    with translated("inspect"):
        return _Inspection(connection, exact=exact).status()


class _Inspection:
    """The tables and the revision of a database, read once."""

    def __init__(self, connection: Connection, *, exact: bool) -> None:
        self.connection = connection
        self.exact = exact
        self.schema = schema_of(connection)
        self.inspector: Inspector = sqlalchemy.inspect(connection)
        self.tables = set(self.inspector.get_table_names(schema=self.schema))
        self.existing = self.tables & metadata.tables.keys()
        self.revision, self.of_host = self._revision()

    def status(self) -> SchemaStatus:
        known, needed = [each.revision for each in history()], head()
        if self.revision is None:
            return self._without_revision(needed, known)
        if self.revision not in known:
            return self._ahead(needed, known)
        here = f"this database is at revision {self.revision}"
        pending = tuple(known[known.index(self.revision) + 1 :])
        if pending:
            command = _UPGRADE_OF_HOST if self.of_host else UPGRADE
            return self._status("behind", f"{here}, but this version needs {needed}", command=command, pending=pending)
        missing = self.missing()
        differences = tuple(self.differences()) if self.exact else missing
        if not differences:
            return self._status("current", here, usable=True)
        advice = "restore it from a backup" if missing else "this version can still use it"
        reason = f"{here}, but differs from the tables that the migrations create: {'; '.join(differences)}; {advice}"
        return self._status("drifted", reason, usable=not missing, differences=differences)

    def _status(self, state: SchemaState, reason: str, *, usable: bool = False, **more: Any) -> SchemaStatus:
        return SchemaStatus(
            state=state,
            usable=usable,
            revision=self.revision,
            head=head(),
            reason=reason,
            # read only if needed: after an upgrade, the application may not yet be allowed to read the table
            floor=self.minimum_compatible() if self.exact or state == "ahead" else None,
            of_host=self.of_host,
            **more,
        )

    def _without_revision(self, needed: str, known: list[str]) -> SchemaStatus:
        if not self.existing:
            reason = "this database has no tables of vibeforge_sessions yet"
            command = UPGRADE
            if self.schema is not None and not self.inspector.has_schema(self.schema):
                reason = f"this database has no schema {self.schema}"
                command = f"CREATE SCHEMA {quoted(self.schema)}"  # run by the DBA, who also decides on its privileges
            return self._status("empty", reason, pending=tuple(known), command=command)
        names = ", ".join(sorted(self.existing))
        reason = (
            f"this database already has the tables {names}, and no revision in {VERSION_TABLE} shows that the "
            "migrations of vibeforge_sessions created them"
        )
        differences = tuple(self.differences())
        if differences:
            reason += "; use another database or schema, or rename them"
            return self._status("foreign", reason, differences=differences)
        reason += f"; they equal the tables of revision {needed}: if the migrations created them, record that revision"
        return self._status("foreign", reason, command=f"vibeforge-sessions db stamp {needed}")

    def _ahead(self, needed: str, known: list[str]) -> SchemaStatus:
        reason = f"this database is at revision {self.revision}, which belongs to a newer version"
        minimum, missing = self.minimum_compatible(), self.missing()
        if minimum in known and not missing:
            return self._status(
                "ahead",
                f"{reason}; code for revision {minimum} and later can use it, including this version ({needed})",
                usable=True,
            )
        return self._status(
            "ahead",
            f"{reason} of vibeforge_sessions: upgrade the package",
            command="pip install --upgrade vibeforge-sessions",
            differences=missing,
        )

    def minimum_compatible(self) -> str | None:
        """Return the minimum compatible revision; None if the last migration has not recorded it."""
        if compatibility.name not in self.tables:
            return None
        of_revision = select(compatibility.c.floor).where(compatibility.c.revision == self.revision)
        return self.connection.execute(of_revision).scalar()

    def missing(self) -> tuple[str, ...]:
        """Return the tables and columns that statements use and the database lacks."""
        found = self.inspector.get_multi_columns(schema=self.schema, filter_names=sorted(self.existing))
        columns_of = {name: {each["name"] for each in columns} for (_, name), columns in found.items()}
        missing: list[str] = []
        for name, model in sorted(metadata.tables.items()):
            if model is compatibility:  # only migrations and the compatibility check of older code use it
                continue
            if name not in columns_of:
                missing.append(f"table {name} is missing")
                continue
            lacking = set(model.columns.keys()) - columns_of[name]
            missing += [f"{name}.{each} is missing" for each in sorted(lacking)]
        return tuple(missing)

    def differences(self) -> Iterator[str]:
        """Yield descriptions of the differences from the models."""
        options = {**comparison(self.schema), "version_table": VERSION_TABLE, "version_table_schema": self.schema}
        context = MigrationContext.configure(self.connection, opts=options)
        for found in compare_metadata(context, metadata_in(self.schema)):
            for each in found if isinstance(found, list) else [found]:
                yield _describe(each)

    def _revision(self) -> tuple[str | None, bool]:
        """Return the revision, and whether it is in the version table of the application's Alembic."""
        for name in (VERSION_TABLE, DEFAULT_VERSION_TABLE):
            if name not in self.tables:
                continue
            # the schema is explicit, because SQLAlchemy does not translate that of `table()`
            versions = table(name, column("version_num"), schema=self.schema)
            found = self.connection.execute(select(versions.c.version_num)).scalars().all()
            heads = [each for each in found if name == VERSION_TABLE or str(each).startswith(PREFIX)]
            if len(heads) > 1:
                raise SchemaError(
                    f"{name} contains several revisions: {', '.join(sorted(heads))}: keep only the revision of the "
                    "current schema",
                    "foreign",
                )
            if heads:
                return heads[0], name == DEFAULT_VERSION_TABLE
        return None, False


@functools.cache
def metadata_in(schema: str | None) -> MetaData:
    """Return the metadata of the tables in a schema of PostgreSQL, for comparison."""
    if schema is None:
        return metadata
    copy = MetaData(schema=schema, naming_convention=metadata.naming_convention)
    for each in metadata.sorted_tables:
        each.to_metadata(copy, schema=schema)
    return copy


def comparison(schema: str | None) -> dict[str, Any]:
    """Return the options of Alembic that restrict a comparison to the tables of this package."""

    def belongs_to_package(name: str | None, kind: str, _parents: object) -> bool:
        if kind == "schema":
            return name == schema
        return kind != "table" or name in metadata.tables

    return {
        "include_name": belongs_to_package,
        "include_schemas": schema is not None,
        "compare_type": True,
        "compare_server_default": True,
    }


def _describe(found: Any) -> str:
    """Return a readable description of a difference that Alembic has found."""
    kind, *what = found
    thing = what[-1]
    verb = "is not in the models" if kind.startswith("remove") else "is missing"
    if isinstance(thing, Table):
        return f"table {thing.name} {verb}"
    if isinstance(thing, Column):
        return f"{what[1]}.{thing.name} {verb}"
    if kind.startswith("modify"):
        _schema, name, of_column, _about, stored, wanted = what
        return f"{kind.removeprefix('modify_')} of {name}.{of_column} is {stored!r} instead of {wanted!r}"
    return f"{type(thing).__name__.lower()} {thing.name} of {thing.table.name} {verb}"


@contextmanager
def connection_of(bind: Engine | Connection) -> Iterator[Connection]:
    """Provide a connection. A caller's connection is in a transaction afterwards only if it was in one before."""
    with translated("reach"):
        database_dialect_of(bind.dialect)
        with connected(bind) if isinstance(bind, Engine) else nullcontext(bind) as connection:
            begun = connection.in_transaction()
            try:
                yield connection
            finally:
                if not begun:
                    connection.rollback()
