"""Migrations on each database: models, data, offline SQL, status and locks."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Engine, make_url, text

from tests.support import ROOT
from tests.support.migrations import HEAD, copy_project
from tests.support.preloaded import preloaded_python
from tests.support.repositories import text_of
from tests.support.servers import AvailableServer, find_bindir
from vibeforge_sessions import SchemaError, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, metadata, migrate
from vibeforge_sessions.sql.tables import VERSION_TABLE
from vibeforge_sessions.testing.base import assert_same, full_session, stored

KINDS = ["sqlite", "postgresql", "mariadb"]


@pytest.fixture
def new_empty(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that creates an empty database of a kind and returns its URL."""
    numbers = iter(range(100))

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{next(numbers)}.db"
        server: AvailableServer = request.getfixturevalue(f"{kind}_server")
        return text_of(server.databases.create(migrated=False))

    return make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def url(kind: str, new_empty: Callable[[str], str]) -> str:
    """Return an empty database's URL."""
    return new_empty(kind)


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def alembic(*arguments: str, url: str) -> str:
    """Run the alembic command line, and return its output."""
    command = [*preloaded_python(), "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "-x", f"url={url}", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def feed(url: str, script: str) -> None:
    """Run SQL with the database's own client."""
    at: URL = make_url(url)
    environment = dict(os.environ)
    if at.get_backend_name() == "sqlite":
        command = ["sqlite3", "-bail", str(at.database)]
        if shutil.which("sqlite3") is None:  # Python's module uses the same library
            command = [sys.executable, "-c", _SQLITE3, str(at.database)]
    elif at.get_backend_name() == "postgresql":
        psql = shutil.which("psql") or str(find_bindir() / "psql")
        environment |= {"PGPASSWORD": at.password or "", "PGOPTIONS": "-c client_min_messages=warning"}
        command = [
            psql,
            "-qX",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            str(at.host),
            "-p",
            str(at.port),
            "-U",
            str(at.username),
            str(at.database),
        ]
    else:
        environment |= {"MYSQL_PWD": at.password or ""}
        command = [
            "mariadb",
            "--no-defaults",
            "-h",
            str(at.host),
            "-P",
            str(at.port),
            "-u",
            str(at.username),
            str(at.database),
        ]
    done = subprocess.run(command, check=False, input=script, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


_SQLITE3 = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())"


def schema(engine: Engine) -> dict[str, Any]:
    """Return all that the database reports about its tables."""
    inspector = sqlalchemy.inspect(engine)
    found: dict[str, Any] = {}
    for table in sorted(inspector.get_table_names()):
        found[table] = {
            "columns": [{**column, "type": repr(column["type"])} for column in inspector.get_columns(table)],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": inspector.get_foreign_keys(table),
            "indexes": sorted(inspector.get_indexes(table), key=str),
        }
        with engine.connect() as connection:
            if engine.dialect.name in {"mysql", "mariadb"}:
                found[table]["definition"] = connection.execute(text(f"SHOW CREATE TABLE {table}")).one()[1]
            elif engine.dialect.name == "sqlite":
                own = "SELECT sql FROM sqlite_master WHERE tbl_name = :table AND sql IS NOT NULL ORDER BY name"
                found[table]["definition"] = connection.execute(text(own), {"table": table}).scalars()
                found[table]["definition"] = [" ".join(line.split()) for line in found[table]["definition"]]
            else:
                own = (
                    "SELECT attname, CAST(CAST(attcollation AS regcollation) AS text) FROM pg_attribute "
                    "WHERE attrelid = CAST(:table AS regclass)"
                )
                found[table]["definition"] = sorted(map(tuple, connection.execute(text(own), {"table": table})))
    return found


def belongs_to_package(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in metadata.tables


def test_scripts_create_schema_of_models(url: str) -> None:
    with opened(url) as engine:
        migrate.upgrade(engine)
        with engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True, "include_name": belongs_to_package}
            context = MigrationContext.configure(connection, opts={**options, "version_table": VERSION_TABLE})
            assert compare_metadata(context, metadata) == []
    assert "No new upgrade operations detected" in alembic("check", url=url)


def test_text_keys_have_binary_collation(kind: str, url: str) -> None:
    with opened(url) as engine:
        migrate.upgrade(engine)
        if kind == "sqlite":
            assert "COLLATE" not in str(schema(engine))  # the default is BINARY
            return
        asked = text(
            "SELECT collation_name FROM information_schema.columns WHERE column_name IN "
            "('session_id', 'phase', 'task_id', 'active_task_id', 'write_id') AND table_name LIKE 'vibeforge_session%' "
            "AND table_schema IN ('public', DATABASE())".replace(
                "DATABASE()", "DATABASE()" if kind == "mariadb" else "''"
            )
        )
        with engine.connect() as connection:
            collations = connection.execute(asked).scalars().all()
        assert len(collations) == 11  # without the column of the minimum compatible revision, which is no id
        assert set(collations) == {"C" if kind == "postgresql" else "utf8mb4_nopad_bin"}


def test_check_reports_added_column(url: str) -> None:
    with opened(url) as engine:
        migrate.upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE vibeforge_session_errors ADD COLUMN severity VARCHAR(9)"))
    with pytest.raises(AssertionError, match="severity"):
        alembic("check", url=url)


def test_downgrade_removes_only_tables_of_package(url: str) -> None:
    with opened(url) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE sessions (id INTEGER PRIMARY KEY)"))
            connection.execute(text("INSERT INTO sessions VALUES (1)"))
        for _ in range(2):
            migrate.upgrade(engine)
            migrate.upgrade(engine)
            assert migrate.current(engine) == HEAD
            migrate.check(engine)
            repository = SQLAlchemySessionRepository(engine)
            given = full_session()
            repository.create_session(given)
            assert_same(stored(repository), given)
            migrate.downgrade(engine, "base")
            assert migrate.current(engine) is None
            assert set(sqlalchemy.inspect(engine).get_table_names()) == {"sessions", VERSION_TABLE}
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM sessions")).scalar() == 1


def test_offline_sql_creates_same_schema_as_online_upgrade(kind: str, new_empty: Callable[[str], str]) -> None:
    online, offline = new_empty(kind), new_empty(kind)
    up, down = (alembic(*words, "--sql", url=offline) for words in (("upgrade", "head"), ("downgrade", "head:base")))
    with opened(online) as one, opened(offline) as other:
        migrate.upgrade(one)
        empty = schema(other)
        feed(offline, up)
        assert schema(other) == schema(one)
        migrate.check(other)
        repository = SQLAlchemySessionRepository(other)
        given = full_session()
        repository.create_session(given)
        assert_same(stored(repository), given)
        feed(offline, down)
        assert empty == {}
        assert set(schema(other)) <= {VERSION_TABLE}


def test_check_reports_state(url: str) -> None:
    with opened(url) as engine:

        def state() -> str | None:
            with pytest.raises(SchemaError) as caught:
                migrate.check(engine)
            return caught.value.state

        assert state() == "empty"
        with pytest.raises(SchemaError):  # the repository reports the missing schema, not the failed statement
            SQLAlchemySessionRepository(engine).list_sessions()
        migrate.upgrade(engine)
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
        assert state() == "ahead"
        with engine.begin() as connection:
            connection.execute(text(f"DELETE FROM {VERSION_TABLE}"))
        with pytest.raises(SchemaError) as caught:
            migrate.upgrade(engine)
        assert caught.value.state == "foreign"


def test_rollback_of_callers_transaction_undoes_upgrade(url: str, kind: str) -> None:
    with opened(url) as engine:
        with engine.connect() as connection, connection.begin() as transaction:
            migrate.upgrade(connection)
            assert migrate.current(connection) == HEAD
            transaction.rollback()
        # MariaDB commits at each CREATE TABLE, and this cannot be changed
        assert bool(sqlalchemy.inspect(engine).get_table_names()) == (kind == "mariadb")


UPGRADE = """
import sys
from vibeforge_sessions.sql import create_engine, migrate
engine = create_engine(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(engine)
migrate.check(engine)
engine.dispose()
"""


def test_concurrent_upgrades_of_empty_database_all_succeed(url: str) -> None:
    processes = [
        subprocess.Popen(
            [*preloaded_python(), "-W", "error", "-c", UPGRADE, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [(*process.communicate(), process.returncode) for process in processes]
    assert outcomes == [("", "", 0)] * 8
    with opened(url) as engine:
        migrate.check(engine)


def test_upgrade_under_lock_of_another_migration_names_lock_owner(url: str, kind: str) -> None:
    lock_owners = {"postgresql": r"process \d+ of the server, application", "mariadb": r"connection \d+ of the server"}
    with opened(url) as engine, opened(url) as other:
        with migrate.migrating(other):
            with pytest.raises(SchemaError, match=lock_owners.get(kind, "another connection is writing")) as caught:
                call_as_other_process(lambda: migrate.upgrade(engine, lock_timeout=0.2))
            assert "after 0.2 s" in str(caught.value)
            assert caught.value.state is None
        assert sqlalchemy.inspect(engine).get_table_names() == []
        migrate.upgrade(engine, lock_timeout=0.2)
        migrate.check(engine)


@pytest.mark.parametrize(
    "act", [migrate.upgrade, functools.partial(migrate.downgrade, revision="base")], ids=["upgrade", "downgrade"]
)
def test_lock_timeout_limits_second_status_check_too(url: str, act: Callable[..., None]) -> None:
    with opened(url) as engine, opened(url) as other:
        with other.begin() as connection:  # an incomplete or foreign schema is checked again under the lock
            connection.execute(text("CREATE TABLE vibeforge_session_logs (id INTEGER)"))
        with migrate.migrating(other), pytest.raises(SchemaError, match=r"after 0\.2 s"):
            call_as_other_process(lambda: act(engine, lock_timeout=0.2))


def call_as_other_process(call: Callable[[], None]) -> None:
    """Make a call without this process's lock, as another process would. Within a process, migrations take turns."""
    failure: list[BaseException] = []
    lock, migrate._process_lock = migrate._process_lock, threading.RLock()

    def run() -> None:
        try:
            call()
        except SchemaError as error:
            failure.append(error)

    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        migrate._process_lock = lock
    if failure:
        raise failure[0]


def test_lock_does_not_block_migration_of_another_database(kind: str, new_empty: Callable[[str], str]) -> None:
    one, other = new_empty(kind), new_empty(kind)
    with opened(one) as engine, opened(other) as another, migrate.migrating(engine):
        migrate.upgrade(another, lock_timeout=1)
        migrate.check(another)


def copied_project(folder: Path, revision: str) -> Path:
    """Copy the project, and add a revision."""
    copy_project(folder)
    (folder / "migrations" / "versions" / "9999_next.py").write_text(revision)
    return folder


CONCURRENTLY = '''"""Index that PostgreSQL builds without blocking writers."""
from alembic import op

revision = "vibeforge_9999"
down_revision = "HEAD"


def upgrade():
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_next", "vibeforge_session_errors", ["task_id"], postgresql_concurrently=True, if_not_exists=True
        )


def downgrade():
    op.drop_index("ix_next", "vibeforge_session_errors")
'''.replace("HEAD", HEAD)


PLAIN_ENGINE = (
    "import sqlalchemy",
    "engine = sqlalchemy.create_engine(sys.argv[1], isolation_level='REPEATABLE READ')",
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "program",
    [UPGRADE, UPGRADE.replace("engine = create_engine(sys.argv[1])", "\n".join(PLAIN_ENGINE))],
    ids=["engine of the package", "engine of SQLAlchemy"],
)
def test_concurrent_index_build_succeeds_while_replicas_wait(
    tmp_path: Path, postgresql_server: AvailableServer, program: str
) -> None:
    url = text_of(postgresql_server.databases.create(migrated=False))
    with opened(url) as engine:
        migrate.upgrade(engine)
        project = copied_project(tmp_path, CONCURRENTLY)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=project,
                env={**os.environ, "PYTHONPATH": str(project)},
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        outcomes = [process.communicate("go\n") for process in processes]
        assert [errors for _, errors in outcomes] == [""] * 4
        assert migrate.current(engine) == "vibeforge_9999"
        indexes = sqlalchemy.inspect(engine).get_indexes("vibeforge_session_errors")
        assert [index["name"] for index in indexes] == ["ix_next"]


def test_postgresql_migrations_pass_squawk(tmp_path: Path) -> None:
    script = tmp_path / "upgrade.sql"
    script.write_text(alembic("upgrade", "head", "--sql", url="postgresql://"))
    command = [
        str(Path(sys.executable).parent / "squawk"),
        "--config",
        str(ROOT / ".squawk.toml"),
        "--reporter",
        "Json",
        str(script),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert json.loads(done.stdout or "[]") == [], done.stdout
    assert done.returncode == 0


def test_each_disabled_squawk_rule_has_reason() -> None:
    config = (ROOT / ".squawk.toml").read_text("utf-8")
    off = re.findall(r'^    "([a-z-]+)",(.*)$', config, re.MULTILINE)
    assert off
    assert all(re.fullmatch(r"  # .{20,}", reason) for _, reason in off)


def test_check_during_another_migration_checks_again_after_it(
    mariadb_server: AvailableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the schema while another connection has created some of the tables.

    MariaDB shows each table as soon as it is created. Such an incomplete schema must not be reported as foreign.
    """
    url = text_of(mariadb_server.databases.create(migrated=False))
    tables = metadata.sorted_tables
    seen: list[str | None] = []
    inspected, inspect = threading.Event(), migrate.inspect_schema

    def recording_inspect(connection: sqlalchemy.Connection, *, exact: bool) -> migrate.SchemaStatus:
        found = inspect(connection, exact=exact)
        seen.append(found.state)
        inspected.set()
        return found

    with opened(url) as engine, opened(url) as other:
        checker = threading.Thread(target=lambda: migrate.check(engine))
        with migrate.migrating(other) as connection:
            tables[0].create(connection)
            connection.commit()
            monkeypatch.setattr(migrate, "inspect_schema", recording_inspect)
            checker.start()
            assert inspected.wait(60)
            for table in tables[1:]:
                table.create(connection)
            connection.execute(text(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
            connection.execute(text(f"INSERT INTO {VERSION_TABLE} VALUES ('{HEAD}')"))
            connection.commit()
        checker.join()
    assert seen == ["foreign", "current"]
