"""Migrating from Python: the chain of revisions, what they make, and whose transaction they run in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Engine

from tests.support.migrations import (
    FILES,
    HEAD,
    HOST,
    MEMORY,
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


@pytest.fixture(params=[*FILES, MEMORY])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with opened(request.param, tmp_path / "host.db") as engine:
        yield engine


@pytest.fixture(params=FILES)
def file_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with opened(request.param, tmp_path / "host.db") as engine:
        yield engine


# ------------------------------------------------------------------------------------------------------------ the chain


def test_there_is_a_single_chain() -> None:
    assert scripts().get_heads() == [HEAD]
    assert scripts().get_bases() == [chain()[0].revision]
    assert [script.down_revision for script in chain()] == [None, *(script.revision for script in chain()[:-1])]


@pytest.mark.parametrize("script", chain(), ids=lambda script: str(script.revision))
def test_every_revision_says_what_it_does(script: Script) -> None:
    assert script.doc.strip()
    assert script.module.__doc__


@pytest.mark.parametrize("script", chain(), ids=lambda script: str(script.revision))
def test_every_revision_is_undone_by_its_downgrade(script: Script, engine: Engine) -> None:
    before = str(script.down_revision or "base")
    run_script(engine, HOST)
    migrate.upgrade(engine, before)
    expected = without(committed(engine), VERSION_TABLE)
    migrate.upgrade(engine, script.revision)
    at_revision = committed(engine)
    assert at_revision[""] != expected[""]
    migrate.downgrade(engine, before)
    assert without(committed(engine), VERSION_TABLE) == expected
    migrate.upgrade(engine, script.revision)
    assert committed(engine) == at_revision


def test_there_and_back_with_data(engine: Engine) -> None:
    run_script(engine, HOST)
    host = committed(engine)
    migrate.upgrade(engine)
    empty = committed(engine)
    assert without(empty, VERSION_TABLE, *metadata.tables) == host
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
    assert without(committed(engine), VERSION_TABLE) == host
    assert committed(engine)[VERSION_TABLE] == []  # Alembic keeps its table; it says that there is nothing of ours
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
    """Return what Alembic's comparison looks at, and what it leaves out: primary keys and ON DELETE."""
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        for table in sorted(metadata.tables):
            columns = connection.exec_driver_sql(f'SELECT * FROM pragma_table_xinfo("{table}")').fetchall()
            keys = connection.exec_driver_sql(f'SELECT * FROM pragma_foreign_key_list("{table}")').fetchall()
            sql = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ?"
            indexes = connection.exec_driver_sql(sql, (table,)).fetchall()
            found[table] = [
                sorted(tuple(row)[1:] for row in columns),  # without their order, which a later revision may change
                sorted(map(tuple, keys)),
                sorted(map(tuple, indexes)),
            ]
    return found


def test_scripts_make_what_the_models_say(engine: Engine, tmp_path: Path) -> None:
    migrate.upgrade(engine)
    assert differences(engine) == []
    with opened("plain", tmp_path / "models.db") as models:
        metadata.create_all(models)
        assert structure(engine) == structure(models)


def test_tables_of_a_host_are_no_difference(engine: Engine) -> None:
    migrate.upgrade(engine)
    run_script(engine, HOST)
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
)
def test_a_difference_is_found(engine: Engine, change: str) -> None:
    migrate.upgrade(engine)
    run_script(engine, change)
    assert differences(engine) != []


# ------------------------------------------------------------------------------------------------- somebody else's data


@pytest.mark.parametrize("action", ["current", "check", "upgrade", "downgrade"])
def test_another_applications_tables_stay_as_they_are(engine: Engine, action: str) -> None:
    run_script(engine, HOST)
    host = committed(engine)
    if action == "check":
        with pytest.raises(SchemaError):
            migrate.check(engine)
    elif action == "downgrade":
        migrate.downgrade(engine, "base")
    else:
        getattr(migrate, action)(engine)
    assert without(committed(engine), VERSION_TABLE, *metadata.tables) == host
    if action in {"current", "check"}:
        assert committed(engine) == host


# Alembic would make our version table there.
def test_a_downgrade_of_nothing_makes_nothing(engine: Engine) -> None:
    run_script(engine, HOST)
    host = committed(engine)
    migrate.downgrade(engine, "base")
    assert committed(engine) == host
