"""Where a database stands: empty, behind, current, ahead, foreign or drifted, and what is refused there.

A database that is ahead of older code: see test_migrate_copies.py.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from tests.support.migrations import (
    FILES,
    HEAD,
    HOST,
    MEMORY,
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
SOMEBODY_ELSES = "CREATE TABLE vibeforge_sessions (id INTEGER, x TEXT); INSERT INTO vibeforge_sessions VALUES (1, 'x')"
STAMP = f"INSERT INTO {VERSION_TABLE} VALUES ('{HEAD}')"
REFUSED = {
    "ahead": ("upgrade", AHEAD),
    "foreign, without a version": ("nothing", SOMEBODY_ELSES),
    "foreign, with an empty version table": ("upgrade and back", SOMEBODY_ELSES),
    "drifted, with a table missing": ("upgrade", "DROP TABLE vibeforge_session_logs"),
    "drifted, with a column missing": ("upgrade", "ALTER TABLE vibeforge_sessions DROP COLUMN active_task_id"),
    "drifted, with all tables missing": ("upgrade and back", STAMP),
}
"""What is done before, and the statements that make a database one that `upgrade` must refuse."""


@pytest.fixture(params=[*FILES, MEMORY])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with opened(request.param, tmp_path / "host.db") as engine:
        yield engine


@pytest.fixture(params=REFUSED)
def refused(request: pytest.FixtureRequest, engine: Engine) -> str:
    """Make the engine's database one that `upgrade` must refuse; return its state."""
    before, script = REFUSED[request.param]
    if before != "nothing":
        migrate.upgrade(engine)
        fill(engine)
    if before == "upgrade and back":
        migrate.downgrade(engine, "base")
    run_script(engine, HOST)
    run_script(engine, script)
    return str(request.param).split(",", maxsplit=1)[0]


def refusal(call: Callable[..., object], *arguments: object) -> SchemaError:
    with pytest.raises(SchemaError) as caught:
        call(*arguments)
    return caught.value


def test_current(engine: Engine) -> None:
    migrate.upgrade(engine)
    migrate.check(engine)
    with engine.connect() as connection:
        found = migrate.inspect_schema(connection)
    assert found.state == "current"
    assert found.usable
    assert (found.revision, found.head, found.pending, found.differences) == (HEAD, HEAD, (), ())
    assert HEAD in found.reason


def test_missing(engine: Engine) -> None:
    run_script(engine, HOST)
    before = committed(engine)
    error = refusal(migrate.check, engine)
    assert error.state == "empty"
    assert f'alembic -c "{migrate.script_folder() / "alembic.ini"}" upgrade head' in str(error)
    assert "VIBEFORGE_SESSIONS_MIGRATE=1" in str(error)
    assert migrate.current(engine) is None
    assert committed(engine) == before


def test_missing_again_after_the_way_down(engine: Engine) -> None:
    migrate.upgrade(engine)
    fill(engine)
    migrate.downgrade(engine, "base")
    assert refusal(migrate.check, engine).state == "empty"
    migrate.upgrade(engine)
    migrate.check(engine)


def test_ahead_names_the_revision_and_the_package(engine: Engine) -> None:
    migrate.upgrade(engine)
    run_script(engine, AHEAD)
    error = refusal(migrate.check, engine)
    assert error.state == "ahead"
    assert "f00d" in str(error)
    assert "upgrade the package" in str(error)
    assert migrate.current(engine) == "f00d"


def test_not_ours_names_the_tables(engine: Engine) -> None:
    run_script(engine, SOMEBODY_ELSES)
    assert VERSION_TABLE in str(refusal(migrate.check, engine))
    assert ": vibeforge_sessions; use another" in str(refusal(migrate.check, engine))
    run_script(engine, "DROP TABLE vibeforge_sessions")
    migrate.upgrade(engine)
    run_script(engine, "DROP TABLE vibeforge_session_logs; DROP TABLE vibeforge_session_errors")
    error = refusal(migrate.check, engine)
    assert HEAD in str(error)
    assert "table vibeforge_session_errors is missing; table vibeforge_session_logs is missing; restore" in str(error)


def test_a_refused_database_stays_as_it_is(engine: Engine, refused: str) -> None:
    before = committed(engine)
    were_on = foreign_keys(engine)
    for call in (migrate.check, migrate.upgrade):
        error = refusal(call, engine)
        assert error.state == refused
        assert pickle.loads(pickle.dumps(error)).state == refused  # noqa: S301 (our own)
        with engine.connect() as connection:
            assert refusal(call, connection).state == refused
        assert committed(engine) == before
    assert foreign_keys(engine) is were_on


# With foreign keys on too: an error about those, and its advice, would not help.
def test_a_refused_database_stays_as_it_is_in_the_hosts_transaction(engine: Engine, refused: str) -> None:
    before = committed(engine)
    with engine.begin() as connection:
        assert refusal(migrate.check, connection).state == refused
        assert refusal(migrate.upgrade, connection).state == refused
        assert connection.in_transaction()
    assert committed(engine) == before


@pytest.mark.parametrize("asked", [False, True])
def test_an_application_finds_out_at_its_start(tmp_path: Path, asked: bool) -> None:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with opened("ours", tmp_path / "host.db") as engine:
        if not asked:
            assert refusal(open_repository, url).state == "empty"
        open_repository(url, migrate=True).close()
        open_repository(url, migrate=asked).close()
        run_script(engine, AHEAD)
        before = committed(engine)
        with pytest.raises(SchemaError) as caught:
            open_repository(url, migrate=asked)
        assert caught.value.state == "ahead"
        assert committed(engine) == before


# Alembic has a CommandError for it, which must not come out of `open_repository`.
@pytest.mark.parametrize("call", [migrate.current, migrate.check, migrate.upgrade])
def test_two_versions_at_once_are_a_schema_error(engine: Engine, call: Callable[[Engine], object]) -> None:
    migrate.upgrade(engine)
    run_script(engine, f"INSERT INTO {VERSION_TABLE} VALUES ('f00d')")
    before = committed(engine)
    refusal(call, engine)
    assert committed(engine) == before


# ------------------------------------------------------------------------------------------------------ what else fails


@pytest.mark.parametrize("revision", ["no such revision", f"{HEAD}:{HEAD}"])
@pytest.mark.parametrize("action", ["upgrade", "downgrade"])
def test_malformed_revision_is_an_invalid_argument(engine: Engine, action: str, revision: str) -> None:
    migrate.upgrade(engine)
    fill(engine)
    before = committed(engine)
    with pytest.raises(InvalidArgumentError) as caught:
        getattr(migrate, action)(engine, revision)
    assert caught.value.argument == "revision"
    assert committed(engine) == before


@pytest.mark.parametrize("revision", ["f00d", "-7", "+7"])
@pytest.mark.parametrize("action", ["upgrade", "downgrade"])
def test_an_unknown_revision_is_a_schema_error(engine: Engine, action: str, revision: str) -> None:
    migrate.upgrade(engine)
    fill(engine)
    before = committed(engine)
    error = refusal(getattr(migrate, action), engine, revision)
    assert error.state is None
    assert committed(engine) == before


def test_a_downgrade_from_ahead_is_refused(engine: Engine) -> None:
    migrate.upgrade(engine)
    fill(engine)
    run_script(engine, AHEAD)
    before = committed(engine)
    assert "f00d" in str(refusal(migrate.downgrade, engine, "base"))
    assert committed(engine) == before


def test_a_downgrade_that_fails_leaves_everything(engine: Engine) -> None:
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
def test_a_database_out_of_reach_is_a_storage_error(
    kind: str, call: Callable[[Engine], object], tmp_path: Path
) -> None:
    with opened(kind, tmp_path / "no s3cret folder" / "host.db") as engine:
        with pytest.raises(StorageError, match="SQLITE_CANTOPEN") as caught:
            call(engine)
        assert "s3cret" not in str(caught.value)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value.__cause__))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_database_is_a_storage_error(
    kind: str, call: Callable[[Engine], object], tmp_path: Path
) -> None:
    path = tmp_path / "host.db"
    path.write_bytes(b"not a database " * 500)
    with opened(kind, path) as engine, pytest.raises(StorageError, match="SQLITE_NOTADB"):
        call(engine)
    assert path.read_bytes() == b"not a database " * 500


# This engine reads the file at its first statement only.
def test_a_file_that_is_no_database_is_a_storage_error_with_a_connection(tmp_path: Path) -> None:
    (tmp_path / "host.db").write_bytes(b"not a database " * 500)
    with opened("plain", tmp_path / "host.db") as engine, engine.connect() as connection:
        with pytest.raises(StorageError, match="SQLITE_NOTADB"):
            migrate.upgrade(connection)
        assert not connection.in_transaction()


@pytest.mark.parametrize("thing", ["CREATE VIEW vibeforge_sessions AS SELECT 1", "CREATE TABLE VibeForge_Sessions (x)"])
def test_names_that_are_taken_otherwise_leave_nothing_behind(engine: Engine, thing: str) -> None:
    run_script(engine, HOST)
    run_script(engine, thing)
    before = committed(engine)
    with pytest.raises((SchemaError, StorageError)):
        migrate.upgrade(engine)
    assert committed(engine) == before
    assert set(metadata.tables).isdisjoint(set(before) - {"vibeforge_sessions"})


def test_a_closed_connection_is_our_error(tmp_path: Path) -> None:
    with opened("ours", tmp_path / "host.db") as engine:
        connection: Connection = engine.connect()
        connection.close()
        with pytest.raises(StorageError):
            migrate.current(connection)
