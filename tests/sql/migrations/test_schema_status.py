"""Schema status (empty, behind, current, ahead, foreign, drifted) and the operations that each status rejects.

test_second_revision.py tests databases that are ahead of older code.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from tests.support.migrations import (
    FILES,
    HEAD,
    OTHER_APPLICATION,
    committed,
    fill,
    foreign_keys,
    opened,
    run_script,
)
from vibeforge_sessions import InvalidArgumentError, SchemaError, StorageError, open_repository
from vibeforge_sessions.sql import metadata, migrate
from vibeforge_sessions.sql.tables import VERSION_TABLE

AHEAD = f"UPDATE {VERSION_TABLE} SET version_num = 'f00d'"
FOREIGN = "CREATE TABLE vibeforge_sessions (id INTEGER, x TEXT); INSERT INTO vibeforge_sessions VALUES (1, 'x')"
STAMP = f"INSERT INTO {VERSION_TABLE} VALUES ('{HEAD}')"
REJECTED = {
    "ahead": ("upgrade", AHEAD),
    "foreign, without a version": ("nothing", FOREIGN),
    "foreign, with an empty version table": ("upgrade and back", FOREIGN),
    "drifted, with a table missing": ("upgrade", "DROP TABLE vibeforge_session_logs"),
    "drifted, with a column missing": ("upgrade", "ALTER TABLE vibeforge_sessions DROP COLUMN active_task_id"),
    "drifted, with all tables missing": ("upgrade and back", STAMP),
}
"""For each rejected state: the preceding migration, and the SQL that produces the state."""


@pytest.fixture(params=REJECTED)
def rejected_state(request: pytest.FixtureRequest, engine: Engine) -> str:
    """Bring the database into a state that `upgrade` must reject, and return the name of the state."""
    before, script = REJECTED[request.param]
    if before != "nothing":
        migrate.upgrade(engine)
        fill(engine)
    if before == "upgrade and back":
        migrate.downgrade(engine, "base")
    run_script(engine, OTHER_APPLICATION)
    run_script(engine, script)
    return str(request.param).split(",", maxsplit=1)[0]


def schema_error_of(call: Callable[..., object], *arguments: object) -> SchemaError:
    """Make a call that must raise SchemaError, and return the error."""
    with pytest.raises(SchemaError) as caught:
        call(*arguments)
    return caught.value


def test_status_after_upgrade_is_current(engine: Engine) -> None:
    migrate.upgrade(engine)
    migrate.check(engine)
    with engine.connect() as connection:
        found = migrate.inspect_schema(connection)
    assert found.state == "current"
    assert found.usable
    assert (found.revision, found.head, found.pending, found.differences) == (HEAD, HEAD, (), ())
    assert HEAD in found.reason


def test_check_of_database_without_tables_names_upgrade_command(engine: Engine) -> None:
    run_script(engine, OTHER_APPLICATION)
    before = committed(engine)
    error = schema_error_of(migrate.check, engine)
    assert error.state == "empty"
    assert f'alembic -c "{migrate.script_folder() / "alembic.ini"}" upgrade head' in str(error)
    assert "VIBEFORGE_SESSIONS_MIGRATE=1" in str(error)
    assert migrate.current(engine) is None
    assert committed(engine) == before


def test_status_after_downgrade_to_base_is_empty(engine: Engine) -> None:
    migrate.upgrade(engine)
    fill(engine)
    migrate.downgrade(engine, "base")
    assert schema_error_of(migrate.check, engine).state == "empty"
    migrate.upgrade(engine)
    migrate.check(engine)


def test_error_for_database_ahead_names_revision_and_advice(engine: Engine) -> None:
    migrate.upgrade(engine)
    run_script(engine, AHEAD)
    error = schema_error_of(migrate.check, engine)
    assert error.state == "ahead"
    assert "f00d" in str(error)
    assert "upgrade the package" in str(error)
    assert migrate.current(engine) == "f00d"


def test_error_for_foreign_or_drifted_database_names_tables(engine: Engine) -> None:
    run_script(engine, FOREIGN)
    assert VERSION_TABLE in str(schema_error_of(migrate.check, engine))
    assert "the tables vibeforge_sessions, and no revision in" in str(schema_error_of(migrate.check, engine))
    run_script(engine, "DROP TABLE vibeforge_sessions")
    migrate.upgrade(engine)
    run_script(engine, "DROP TABLE vibeforge_session_logs; DROP TABLE vibeforge_session_errors")
    error = schema_error_of(migrate.check, engine)
    assert HEAD in str(error)
    assert "table vibeforge_session_errors is missing; table vibeforge_session_logs is missing; restore" in str(error)


def test_rejected_database_stays_unchanged(engine: Engine, rejected_state: str) -> None:
    before = committed(engine)
    were_on = foreign_keys(engine)
    for call in (migrate.check, migrate.upgrade):
        error = schema_error_of(call, engine)
        assert error.state == rejected_state
        assert pickle.loads(pickle.dumps(error)).state == rejected_state  # noqa: S301 (pickled above)
        with engine.connect() as connection:
            assert schema_error_of(call, connection).state == rejected_state
        assert committed(engine) == before
    assert foreign_keys(engine) is were_on


# With foreign keys on, the error must name the state: an error about foreign keys would give the wrong advice.
def test_rejected_database_stays_unchanged_in_callers_transaction(engine: Engine, rejected_state: str) -> None:
    before = committed(engine)
    with engine.begin() as connection:
        assert schema_error_of(migrate.check, connection).state == rejected_state
        assert schema_error_of(migrate.upgrade, connection).state == rejected_state
        assert connection.in_transaction()
    assert committed(engine) == before


@pytest.mark.parametrize("migrates", [False, True], ids=["without migrate", "with migrate"])
def test_open_repository_raises_for_empty_and_ahead_database(tmp_path: Path, migrates: bool) -> None:
    url = f"sqlite:///{tmp_path / 'application.db'}"
    with opened("package", tmp_path / "application.db") as engine:
        if not migrates:
            assert schema_error_of(open_repository, url).state == "empty"
        open_repository(url, migrate=True).close()
        open_repository(url, migrate=migrates).close()
        run_script(engine, AHEAD)
        before = committed(engine)
        with pytest.raises(SchemaError) as caught:
            open_repository(url, migrate=migrates)
        assert caught.value.state == "ahead"
        assert committed(engine) == before


# Alembic raises CommandError here, which `open_repository` must not pass on.
@pytest.mark.parametrize("call", [migrate.current, migrate.check, migrate.upgrade])
def test_two_rows_in_version_table_raise_schema_error(engine: Engine, call: Callable[[Engine], object]) -> None:
    migrate.upgrade(engine)
    run_script(engine, f"INSERT INTO {VERSION_TABLE} VALUES ('f00d')")
    before = committed(engine)
    schema_error_of(call, engine)
    assert committed(engine) == before


# ------------------------------------------------------------------------------------------------------- other failures


@pytest.mark.parametrize("revision", ["no such revision", f"{HEAD}:{HEAD}"])
@pytest.mark.parametrize("action", ["upgrade", "downgrade"])
def test_malformed_revision_raises_invalid_argument(engine: Engine, action: str, revision: str) -> None:
    migrate.upgrade(engine)
    fill(engine)
    before = committed(engine)
    with pytest.raises(InvalidArgumentError) as caught:
        getattr(migrate, action)(engine, revision)
    assert caught.value.argument == "revision"
    assert committed(engine) == before


@pytest.mark.parametrize("revision", ["f00d", "-7", "+7"])
@pytest.mark.parametrize("action", ["upgrade", "downgrade"])
def test_unknown_revision_raises_schema_error(engine: Engine, action: str, revision: str) -> None:
    migrate.upgrade(engine)
    fill(engine)
    before = committed(engine)
    error = schema_error_of(getattr(migrate, action), engine, revision)
    assert error.state is None
    assert committed(engine) == before


def test_downgrade_of_database_ahead_is_rejected(engine: Engine) -> None:
    migrate.upgrade(engine)
    fill(engine)
    run_script(engine, AHEAD)
    before = committed(engine)
    assert "f00d" in str(schema_error_of(migrate.downgrade, engine, "base"))
    assert committed(engine) == before


def test_failed_downgrade_changes_nothing(engine: Engine) -> None:
    migrate.upgrade(engine)
    fill(engine)
    run_script(engine, "DROP TABLE vibeforge_session_errors")
    before = committed(engine)
    with pytest.raises(StorageError):
        migrate.downgrade(engine, "base")
    assert committed(engine) == before


CALLS = [
    migrate.upgrade,
    migrate.check,
    migrate.current,
    pytest.param(lambda bind: migrate.downgrade(bind, "base"), id="downgrade"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", FILES)
def test_database_in_missing_folder_raises_storage_error(
    kind: str, call: Callable[[Engine], object], tmp_path: Path
) -> None:
    with opened(kind, tmp_path / "no s3cret folder" / "application.db") as engine:
        with pytest.raises(StorageError, match="SQLITE_CANTOPEN") as caught:
            call(engine)
        assert "s3cret" not in str(caught.value)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value.__cause__))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", FILES)
def test_file_that_is_no_database_raises_storage_error(
    kind: str, call: Callable[[Engine], object], tmp_path: Path
) -> None:
    path = tmp_path / "application.db"
    path.write_bytes(b"not a database " * 500)
    with opened(kind, path) as engine, pytest.raises(StorageError, match="SQLITE_NOTADB"):
        call(engine)
    assert path.read_bytes() == b"not a database " * 500


# The plain engine reads the file only at its first statement, so connecting succeeds.
def test_connection_to_file_that_is_no_database_raises_storage_error(tmp_path: Path) -> None:
    (tmp_path / "application.db").write_bytes(b"not a database " * 500)
    with opened("plain", tmp_path / "application.db") as engine, engine.connect() as connection:
        with pytest.raises(StorageError, match="SQLITE_NOTADB"):
            migrate.upgrade(connection)
        assert not connection.in_transaction()


@pytest.mark.parametrize(
    "statement",
    ["CREATE VIEW vibeforge_sessions AS SELECT 1", "CREATE TABLE VibeForge_Sessions (x)"],
    ids=["view", "other case"],
)
def test_upgrade_with_conflicting_names_changes_nothing(engine: Engine, statement: str) -> None:
    run_script(engine, OTHER_APPLICATION)
    run_script(engine, statement)
    before = committed(engine)
    with pytest.raises((SchemaError, StorageError)):
        migrate.upgrade(engine)
    assert committed(engine) == before
    assert set(metadata.tables).isdisjoint(set(before) - {"vibeforge_sessions"})


def test_closed_connection_raises_storage_error(tmp_path: Path) -> None:
    with opened("package", tmp_path / "application.db") as engine:
        connection: Connection = engine.connect()
        connection.close()
        with pytest.raises(StorageError):
            migrate.current(connection)
