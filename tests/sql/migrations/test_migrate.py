"""Migration API: the chain of revisions, and the schema that they produce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Engine

from tests.support.migrations import (
    HEAD,
    OTHER_APPLICATION,
    OTHER_TYPE,
    chain,
    committed,
    fill,
    opened,
    run_script,
    scripts,
    without,
)
from vibeforge_sessions import SchemaError, SQLAlchemySessionRepository
from vibeforge_sessions.sql import metadata, migrate
from vibeforge_sessions.sql.migrations.schema_status import comparison
from vibeforge_sessions.sql.tables import VERSION_TABLE

# ---------------------------------------------------------------------------------------------------------------- chain


def test_revisions_form_single_chain() -> None:
    assert scripts().get_heads() == [HEAD]
    assert scripts().get_bases() == [chain()[0].revision]
    assert [script.down_revision for script in chain()] == [None, *(script.revision for script in chain()[:-1])]


@pytest.mark.parametrize("script", chain(), ids=lambda script: str(script.revision))
def test_each_revision_has_description(script: Script) -> None:
    assert script.doc.strip()
    assert script.module.__doc__


@pytest.mark.parametrize("script", chain(), ids=lambda script: str(script.revision))
def test_downgrade_undoes_each_revision(script: Script, engine: Engine) -> None:
    before = str(script.down_revision or "base")
    run_script(engine, OTHER_APPLICATION)
    migrate.upgrade(engine, before)
    expected = without(committed(engine), VERSION_TABLE)
    migrate.upgrade(engine, script.revision)
    at_revision = committed(engine)
    assert at_revision[""] != expected[""]
    migrate.downgrade(engine, before)
    assert without(committed(engine), VERSION_TABLE) == expected
    migrate.upgrade(engine, script.revision)
    assert committed(engine) == at_revision


def test_downgrade_to_base_keeps_only_tables_of_application(engine: Engine) -> None:
    run_script(engine, OTHER_APPLICATION)
    tables_before = committed(engine)
    migrate.upgrade(engine)
    empty = committed(engine)
    assert without(empty, VERSION_TABLE, *metadata.tables) == tables_before
    fill(engine)
    filled = committed(engine)
    assert {name: len(filled[name]) for name in metadata.tables} == {
        "vibeforge_sessions": 3,
        "vibeforge_session_documents": 3,
        "vibeforge_session_errors": 6,
        "vibeforge_session_logs": 3,
        "vibeforge_sessions_compatibility": 1,
    }
    migrate.upgrade(engine)
    assert committed(engine) == filled
    migrate.downgrade(engine, "base")
    assert migrate.current(engine) is None
    assert without(committed(engine), VERSION_TABLE) == tables_before
    assert committed(engine)[VERSION_TABLE] == []  # Alembic keeps its table without a row
    migrate.upgrade(engine)
    assert committed(engine) == empty
    fill(engine)
    session = SQLAlchemySessionRepository(engine).get_session("s1")
    assert session is not None
    assert [entry.error_message for entry in session.error_history] == ["it broke", "it broke again"]


# --------------------------------------------------------------------------------------------------- models and scripts


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, **comparison(None)})
        return list(compare_metadata(context, metadata))


def structure(engine: Engine) -> dict[str, Any]:
    """Return columns, keys and indexes, with the primary keys and ON DELETE that Alembic does not compare."""
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        for table in sorted(metadata.tables):
            columns = connection.exec_driver_sql(f'SELECT * FROM pragma_table_xinfo("{table}")').fetchall()
            keys = connection.exec_driver_sql(f'SELECT * FROM pragma_foreign_key_list("{table}")').fetchall()
            sql = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ?"
            indexes = connection.exec_driver_sql(sql, (table,)).fetchall()
            found[table] = [
                sorted(tuple(row)[1:] for row in columns),  # a later revision may change the order of columns
                sorted(map(tuple, keys)),
                sorted(map(tuple, indexes)),
            ]
    return found


def test_scripts_create_schema_of_models(engine: Engine, tmp_path: Path) -> None:
    migrate.upgrade(engine)
    assert differences(engine) == []
    with opened("plain", tmp_path / "models.db") as models:
        metadata.create_all(models)
        assert structure(engine) == structure(models)


def test_comparison_ignores_tables_of_application(engine: Engine) -> None:
    migrate.upgrade(engine)
    run_script(engine, OTHER_APPLICATION)
    assert differences(engine) == []
    migrate.check(engine)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE vibeforge_sessions ADD COLUMN colour TEXT",
        OTHER_TYPE,
        "ALTER TABLE vibeforge_session_errors DROP COLUMN task_id",
        "DROP INDEX ix_vibeforge_sessions_created_at_session_id",
        "CREATE INDEX odd ON vibeforge_session_logs (write_id)",
        "DROP TABLE vibeforge_session_logs",
        "DROP TABLE vibeforge_session_logs; CREATE TABLE vibeforge_session_logs (position TEXT NOT NULL)",
    ],
    ids=[
        "added column",
        "type",
        "missing column",
        "missing index",
        "added index",
        "missing table",
        "other table",
    ],
)
def test_comparison_finds_difference(engine: Engine, change: str) -> None:
    migrate.upgrade(engine)
    run_script(engine, change)
    assert differences(engine) != []


# ----------------------------------------------------------------------------------------- tables of other applications


@pytest.mark.parametrize("action", ["current", "check", "upgrade", "downgrade"])
def test_operations_leave_other_tables_unchanged(engine: Engine, action: str) -> None:
    run_script(engine, OTHER_APPLICATION)
    tables_before = committed(engine)
    if action == "check":
        with pytest.raises(SchemaError):
            migrate.check(engine)
    elif action == "downgrade":
        migrate.downgrade(engine, "base")
    else:
        getattr(migrate, action)(engine)
    assert without(committed(engine), VERSION_TABLE, *metadata.tables) == tables_before
    if action in {"current", "check"}:
        assert committed(engine) == tables_before


# Alembic alone would create the version table.
def test_downgrade_of_empty_database_creates_no_table(engine: Engine) -> None:
    run_script(engine, OTHER_APPLICATION)
    tables_before = committed(engine)
    migrate.downgrade(engine, "base")
    assert committed(engine) == tables_before
