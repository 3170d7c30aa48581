"""Tables in an application's database: in a PostgreSQL schema, and beside or in the application's Alembic."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, text

from tests.support.migrations import HEAD, chain
from tests.support.preloaded import preloaded_python
from tests.support.repositories import ReusedDatabases, text_of
from tests.support.servers import AvailableServer, DatabaseFactory
from vibeforge_sessions import (
    ConfigurationError,
    SchemaError,
    SQLAlchemySessionRepository,
    open_repository,
)
from vibeforge_sessions.sql import check_schema, create_engine, metadata, migrate
from vibeforge_sessions.sql.migrations import host_alembic
from vibeforge_sessions.sql.tables import VERSION_TABLE
from vibeforge_sessions.testing import NewRepository, SessionRepositoryContract
from vibeforge_sessions.testing.base import assert_same, full_session, stored

SCHEMA = 'Forge "x"'
FIRST, *LATER = (str(script.revision) for script in chain())


def make_schema(url: sqlalchemy.URL) -> None:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Forge ""x"""')
        connection.exec_driver_sql("CREATE TABLE vibeforge_sessions (of_another_application INTEGER)")
    engine.dispose()


def prepare(url: sqlalchemy.URL) -> None:
    make_schema(url)
    engine = create_engine(url, schema=SCHEMA)
    migrate.upgrade(engine)
    engine.dispose()


# --- separate schema ---


@pytest.mark.variant
class TestContractInSchema(SessionRepositoryContract):
    """Contract suite in a separate schema. The default schema has a table of the same name, which stays unchanged."""

    @pytest.fixture(scope="class")
    @classmethod
    def databases(cls, in_schema: DatabaseFactory) -> Iterator[ReusedDatabases]:
        with closing(ReusedDatabases(lambda: cls.make_engine(in_schema.create()), in_schema.drop)) as databases:
            yield databases

    @pytest.fixture
    def new_repository(self, databases: ReusedDatabases) -> Iterator[NewRepository]:
        with databases.repositories() as new_repository:
            yield new_repository

    @classmethod
    def make_engine(cls, url: URL) -> Engine:
        return create_engine(url, schema=SCHEMA)


class TestContractInSchemaWithPlainEngine(TestContractInSchema):
    """Contract suite on an engine that `sqlalchemy.create_engine` made, with a schema translation of its own."""

    @classmethod
    def make_engine(cls, url: URL) -> Engine:
        return sqlalchemy.create_engine(url).execution_options(schema_translate_map={None: SCHEMA})


@pytest.fixture(scope="session")
def in_schema(postgresql_server: AvailableServer) -> DatabaseFactory:
    return postgresql_server.databases.prepared_by(prepare)


@pytest.fixture
def url(postgresql_server: AvailableServer) -> str:
    made = postgresql_server.databases.create(migrated=False)
    make_schema(made)
    return text_of(made)


def tables_of(url: str, schema: str) -> set[str]:
    engine = sqlalchemy.create_engine(url)
    found = set(sqlalchemy.inspect(engine).get_table_names(schema=schema))
    engine.dispose()
    return found


def run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [*preloaded_python(), "-m", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_migrations_in_schema_leave_default_schema_unchanged(url: str) -> None:
    engine = create_engine(url, schema=SCHEMA)
    assert migrate.status(engine).state == "empty"
    migrate.upgrade(engine, FIRST)
    assert migrate.status(engine).pending == tuple(LATER)
    migrate.upgrade(engine)
    check_schema(engine, exact=True)
    assert tables_of(url, SCHEMA) == {*metadata.tables, VERSION_TABLE}
    assert tables_of(url, "public") == {"vibeforge_sessions"}
    repository = SQLAlchemySessionRepository(engine)
    session = repository.create_session(full_session())
    migrate.downgrade(engine, FIRST)
    assert migrate.status(engine).pending == tuple(LATER)
    migrate.upgrade(engine)
    assert_same(stored(repository), session)
    migrate.downgrade(engine, "base")
    assert tables_of(url, SCHEMA) == {VERSION_TABLE}
    assert tables_of(url, "public") == {"vibeforge_sessions"}
    other = create_engine(url)
    assert migrate.status(other).state == "foreign"
    for each in (engine, other):
        each.dispose()


def test_status_in_schema_reports_differences(url: str) -> None:
    engine = create_engine(url, schema=SCHEMA)
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql('DROP INDEX "Forge ""x""".ix_vibeforge_sessions_updated_at_session_id')
    found = migrate.status(engine)
    assert (found.state, found.usable, len(found.differences)) == ("drifted", True, 1)
    with engine.begin() as connection:
        connection.exec_driver_sql('ALTER TABLE "Forge ""x""".vibeforge_session_logs DROP COLUMN message')
    with pytest.raises(SchemaError, match=r"vibeforge_session_logs\.message is missing"):
        check_schema(engine)
    engine.dispose()


def test_error_for_missing_schema_names_create_statement(url: str) -> None:
    engine = create_engine(url, schema="missing")
    found = migrate.status(engine)
    assert (found.state, found.command) == ("empty", 'CREATE SCHEMA "missing"')
    for call in (migrate.upgrade, migrate.check):
        with pytest.raises(SchemaError, match='no schema missing; run: CREATE SCHEMA "missing"'):
            call(engine)
    engine.dispose()


@pytest.mark.parametrize("by_environment", [False, True], ids=["argument", "environment"])
def test_open_repository_uses_configured_schema(
    url: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_environment:
        monkeypatch.setenv("VIBEFORGE_SESSIONS_SCHEMA", SCHEMA)
    with open_repository(url, migrate=True, schema=None if by_environment else SCHEMA) as repository:
        repository.create_session(full_session())
        assert [item.session_id for item in repository.find_sessions().items] == ["session-1"]
    assert VERSION_TABLE in tables_of(url, SCHEMA)


def test_command_lines_use_configured_schema(url: str, tmp_path: Path) -> None:
    environment = {"VIBEFORGE_SESSIONS_DATABASE_URL": url, "VIBEFORGE_SESSIONS_SCHEMA": SCHEMA}
    run("vibeforge_sessions", "db", "upgrade", folder=tmp_path, **environment)
    run("vibeforge_sessions", "db", "check", folder=tmp_path, **environment)
    ini = str(migrate.script_folder() / "alembic.ini")
    run("alembic", "-c", ini, "check", folder=tmp_path, **environment)
    run("alembic", "-c", ini, "downgrade", "base", folder=tmp_path, **environment)
    run("alembic", "-c", ini, "upgrade", "head", folder=tmp_path, **environment)
    assert tables_of(url, SCHEMA) == {*metadata.tables, VERSION_TABLE}
    assert tables_of(url, "public") == {"vibeforge_sessions"}


def test_rendered_sql_creates_tables_in_schema(url: str) -> None:
    script = migrate.render("postgresql://", schema="Forge")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Forge"')
        for statement in script.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    engine_in_schema = create_engine(url, schema="Forge")
    check_schema(engine_in_schema, exact=True)
    engine_in_schema.dispose()


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mariadb://h/d"])
def test_schema_on_other_databases_is_rejected(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no schemas"):
        create_engine(url, schema="forge")


# --- application with its own Alembic ---

ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine
import os
from vibeforge_sessions.sql.migrations import host_alembic

metadata = MetaData()
Table("sessions", metadata, Column("id", Integer, primary_key=True), Column("data", Text))
engine = create_engine(os.environ["APPLICATION_URL"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, {option})
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""
REVISION = '''"""First tables of the application."""
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.create_table("sessions", sa.Column("id", sa.Integer, primary_key=True), sa.Column("data", sa.Text))


def downgrade():
    op.drop_table("sessions")
'''
OPTIONS = {
    "include_name": "include_name=host_alembic.include_name",
    "include_object": "include_object=host_alembic.include_object",
}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def application_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/application.db"
    server: AvailableServer = request.getfixturevalue(f"{request.param}_server")
    return text_of(server.databases.create(migrated=False))


def make_application(folder: Path, *, option: str, locations: str | None = None) -> Path:
    application = folder / "application"
    (application / "migrations" / "versions").mkdir(parents=True)
    (application / "migrations" / "env.py").write_text(ENV.replace("{option}", option))
    (application / "migrations" / "script.py.mako").write_text("${upgrades if upgrades else 'pass'}\n")
    (application / "migrations" / "versions" / "0001.py").write_text(REVISION)
    lines = ["[alembic]", "script_location = %(here)s/migrations", "path_separator = os"]
    if locations is not None:
        lines.append(f"version_locations = {locations}")
    (application / "alembic.ini").write_text("\n".join(lines) + "\n")
    return application


@pytest.mark.parametrize("option", OPTIONS)
def test_autogenerate_of_application_ignores_tables_of_package(
    application_url: str, option: str, tmp_path: Path
) -> None:
    application = make_application(tmp_path, option=OPTIONS[option])
    run("alembic", "upgrade", "head", folder=application, APPLICATION_URL=application_url)
    engine = create_engine(application_url)
    migrate.upgrade(engine)
    SQLAlchemySessionRepository(engine).create_session(full_session())
    assert "No new upgrade operations" in run("alembic", "check", folder=application, APPLICATION_URL=application_url)
    check_schema(engine, exact=True)
    migrate.downgrade(engine, "base")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0001"]
        assert connection.execute(text("SELECT count(*) FROM sessions")).scalar() == 0
    engine.dispose()


def test_autogenerate_without_filter_removes_tables_of_package(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/application.db"
    application = make_application(tmp_path, option="")
    run("alembic", "upgrade", "head", folder=application, APPLICATION_URL=url)
    engine = create_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    with pytest.raises(AssertionError, match="remove_table"):
        run("alembic", "check", folder=application, APPLICATION_URL=url)


def test_migrations_run_as_branch_of_application(application_url: str, tmp_path: Path) -> None:
    locations = host_alembic.version_locations("%(here)s/migrations/versions")
    application = make_application(tmp_path, option=OPTIONS["include_name"], locations=locations)
    engine = create_engine(application_url)
    run("alembic", "upgrade", "0001", folder=application, APPLICATION_URL=application_url)
    run("alembic", "upgrade", FIRST, folder=application, APPLICATION_URL=application_url)
    behind = migrate.status(engine)
    assert (behind.state, behind.of_host, behind.pending) == ("behind", True, tuple(LATER))
    assert behind.command is not None
    assert behind.command.startswith("alembic upgrade vibeforge_sessions@head")
    with pytest.raises(SchemaError, match="Alembic of the application"):
        migrate.upgrade(engine)
    with pytest.raises(SchemaError, match="Alembic of the application"):
        migrate.downgrade(engine, "base")
    run("alembic", "upgrade", "vibeforge_sessions@head", folder=application, APPLICATION_URL=application_url)
    found = check_schema(engine, exact=True)
    assert (found.state, found.revision, found.of_host) == ("current", HEAD, True)
    with open_repository(application_url, migrate=True) as repository:
        repository.create_session(full_session())
    assert "No new upgrade operations" in run("alembic", "check", folder=application, APPLICATION_URL=application_url)
    run("alembic", "downgrade", "vibeforge_sessions@base", folder=application, APPLICATION_URL=application_url)
    assert migrate.status(engine).state == "empty"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0001"]
    engine.dispose()
