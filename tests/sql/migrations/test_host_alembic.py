"""In a host's database: a schema of its own on PostgreSQL, and beside or inside the host's own Alembic."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, text

from tests.support.migrations import HEAD, chain
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
        connection.exec_driver_sql("CREATE TABLE vibeforge_sessions (of_somebody_else INTEGER)")
    engine.dispose()


def prepare(url: sqlalchemy.URL) -> None:
    make_schema(url)
    engine = create_engine(url, schema=SCHEMA)
    migrate.upgrade(engine)
    engine.dispose()


# --- a schema of its own ---


@pytest.mark.variant
class TestInASchema(SessionRepositoryContract):
    """The contract in a schema of its own; a table of the same name in the default schema must stay unchanged."""

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


class TestInASchemaByAPlainEngine(TestInASchema):
    """With an engine that translates the schema without our help."""

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
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_up_and_down_in_a_schema(url: str) -> None:
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


def test_a_difference_in_a_schema_is_found(url: str) -> None:
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


def test_a_schema_that_is_not_there(url: str) -> None:
    engine = create_engine(url, schema="nowhere")
    found = migrate.status(engine)
    assert (found.state, found.command) == ("empty", 'CREATE SCHEMA "nowhere"')
    for call in (migrate.upgrade, migrate.check):
        with pytest.raises(SchemaError, match='no schema nowhere; run: CREATE SCHEMA "nowhere"'):
            call(engine)
    engine.dispose()


@pytest.mark.parametrize("by_environment", [False, True])
def test_open_repository_in_a_schema(url: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_environment:
        monkeypatch.setenv("VIBEFORGE_SESSIONS_SCHEMA", SCHEMA)
    with open_repository(url, migrate=True, schema=None if by_environment else SCHEMA) as repository:
        repository.create_session(full_session())
        assert [item.session_id for item in repository.find_sessions().items] == ["session-1"]
    assert VERSION_TABLE in tables_of(url, SCHEMA)


def test_the_command_lines_in_a_schema(url: str, tmp_path: Path) -> None:
    told = {"VIBEFORGE_SESSIONS_DATABASE_URL": url, "VIBEFORGE_SESSIONS_SCHEMA": SCHEMA}
    run("vibeforge_sessions", "db", "upgrade", folder=tmp_path, **told)
    run("vibeforge_sessions", "db", "check", folder=tmp_path, **told)
    ini = str(migrate.script_folder() / "alembic.ini")
    run("alembic", "-c", ini, "check", folder=tmp_path, **told)
    run("alembic", "-c", ini, "downgrade", "base", folder=tmp_path, **told)
    run("alembic", "-c", ini, "upgrade", "head", folder=tmp_path, **told)
    assert tables_of(url, SCHEMA) == {*metadata.tables, VERSION_TABLE}
    assert tables_of(url, "public") == {"vibeforge_sessions"}


def test_the_sql_of_a_schema(url: str) -> None:
    script = migrate.render("postgresql://", schema="Forge")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Forge"')
        for statement in script.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    ours = create_engine(url, schema="Forge")
    check_schema(ours, exact=True)
    ours.dispose()


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mariadb://h/d"])
def test_other_databases_have_no_schemas(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no schemas"):
        create_engine(url, schema="forge")


# --- a host with an Alembic of its own ---

ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine
import os
from vibeforge_sessions.sql.migrations import host_alembic

metadata = MetaData()
Table("sessions", metadata, Column("id", Integer, primary_key=True), Column("data", Text))
engine = create_engine(os.environ["HOST_URL"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, {option})
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""
REVISION = '''"""The host's first tables."""
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
def host_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/host.db"
    server: AvailableServer = request.getfixturevalue(f"{request.param}_server")
    return text_of(server.databases.create(migrated=False))


def make_host(folder: Path, *, option: str, locations: str | None = None) -> Path:
    host = folder / "host"
    (host / "migrations" / "versions").mkdir(parents=True)
    (host / "migrations" / "env.py").write_text(ENV.replace("{option}", option))
    (host / "migrations" / "script.py.mako").write_text("${upgrades if upgrades else 'pass'}\n")
    (host / "migrations" / "versions" / "0001.py").write_text(REVISION)
    lines = ["[alembic]", "script_location = %(here)s/migrations", "path_separator = os"]
    if locations is not None:
        lines.append(f"version_locations = {locations}")
    (host / "alembic.ini").write_text("\n".join(lines) + "\n")
    return host


@pytest.mark.parametrize("option", OPTIONS)
def test_a_hosts_autogenerate_leaves_our_tables_alone(host_url: str, option: str, tmp_path: Path) -> None:
    host = make_host(tmp_path, option=OPTIONS[option])
    run("alembic", "upgrade", "head", folder=host, HOST_URL=host_url)
    engine = create_engine(host_url)
    migrate.upgrade(engine)
    SQLAlchemySessionRepository(engine).create_session(full_session())
    assert "No new upgrade operations" in run("alembic", "check", folder=host, HOST_URL=host_url)
    check_schema(engine, exact=True)
    migrate.downgrade(engine, "base")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0001"]
        assert connection.execute(text("SELECT count(*) FROM sessions")).scalar() == 0
    engine.dispose()


def test_without_the_helper_it_would_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/host.db"
    host = make_host(tmp_path, option="")
    run("alembic", "upgrade", "head", folder=host, HOST_URL=url)
    engine = create_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    with pytest.raises(AssertionError, match="remove_table"):
        run("alembic", "check", folder=host, HOST_URL=url)


def test_our_migrations_as_a_branch_of_the_host(host_url: str, tmp_path: Path) -> None:
    locations = host_alembic.version_locations("%(here)s/migrations/versions")
    host = make_host(tmp_path, option=OPTIONS["include_name"], locations=locations)
    engine = create_engine(host_url)
    run("alembic", "upgrade", "0001", folder=host, HOST_URL=host_url)
    run("alembic", "upgrade", FIRST, folder=host, HOST_URL=host_url)
    behind = migrate.status(engine)
    assert (behind.state, behind.of_host, behind.pending) == ("behind", True, tuple(LATER))
    assert behind.command is not None
    assert behind.command.startswith("alembic upgrade vibeforge_sessions@head")
    with pytest.raises(SchemaError, match="Alembic of the application"):
        migrate.upgrade(engine)
    with pytest.raises(SchemaError, match="Alembic of the application"):
        migrate.downgrade(engine, "base")
    run("alembic", "upgrade", "vibeforge_sessions@head", folder=host, HOST_URL=host_url)
    found = check_schema(engine, exact=True)
    assert (found.state, found.revision, found.of_host) == ("current", HEAD, True)
    with open_repository(host_url, migrate=True) as repository:
        repository.create_session(full_session())
    assert "No new upgrade operations" in run("alembic", "check", folder=host, HOST_URL=host_url)
    run("alembic", "downgrade", "vibeforge_sessions@base", folder=host, HOST_URL=host_url)
    assert migrate.status(engine).state == "empty"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0001"]
    engine.dispose()
