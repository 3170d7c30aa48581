"""Contract suite under the application's role with minimal privileges: all calls succeed, and DDL is rejected."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing

import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, text

from tests.support.repositories import ReusedDatabases, text_of, upgrade
from tests.support.servers import AvailableServer, DatabaseFactory
from vibeforge_sessions import ConfigurationError, SQLAlchemySessionRepository, StorageError, open_repository
from vibeforge_sessions.sql import create_engine, metadata, migrate
from vibeforge_sessions.sql.admin import maintenance
from vibeforge_sessions.sql.dialects.base import failure_code
from vibeforge_sessions.sql.tables import VERSION_TABLE
from vibeforge_sessions.testing import NewRepository, SessionRepositoryContract

NUMBER = secrets.token_hex(4)  # of this run: roles stay on a server that the tests did not start
APPLICATION, MIGRATOR = f"vfs_app'\"`{NUMBER}", f"vfs_migrator_{NUMBER}"
PASSWORD = "s3cret"


@dataclasses.dataclass(frozen=True)
class Roles:
    """Server with two users. The migrator creates the tables of each new database, and grants minimal privileges."""

    admin: URL
    databases: DatabaseFactory

    def run(self, url: URL, script: str) -> None:
        engine = sqlalchemy.create_engine(url.set(username=self.admin.username, password=self.admin.password))
        with engine.begin() as connection:
            for line in script.splitlines():
                if line and not line.startswith("--"):
                    connection.exec_driver_sql(line, execution_options={"no_parameters": True})
        engine.dispose()

    def prepare(self, url: URL) -> None:
        self.run(url, maintenance.grants(url, migrator=MIGRATOR))
        upgrade(url.set(username=MIGRATOR, password=PASSWORD))
        self.run(url, maintenance.grants(url, APPLICATION))

    def new_url(self, role: str = APPLICATION) -> URL:
        url = self.databases.create()
        # MariaDB's privileges belong to the database's name, so the copy has none
        if url.get_backend_name() == "mysql":
            self.run(url, maintenance.grants(url, APPLICATION, migrator=MIGRATOR))
        return url.set(username=role, password=PASSWORD)

    def reused(self) -> AbstractContextManager[ReusedDatabases]:
        return closing(ReusedDatabases(lambda: create_engine(self.new_url()), self.databases.drop))


def with_roles(server: AvailableServer, make: Callable[[str], str]) -> Roles:
    roles = Roles(server.databases.admin_url, server.databases)
    for role in (APPLICATION, MIGRATOR):
        roles.run(roles.admin, make(role))
    return dataclasses.replace(roles, databases=server.databases.prepared_by(roles.prepare))


@pytest.fixture(scope="session")
def postgresql_roles(postgresql_server: AvailableServer) -> Roles:
    def make(role: str) -> str:
        name = role.replace('"', '""')
        return f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{PASSWORD}'"

    return with_roles(postgresql_server, make)


@pytest.fixture(scope="session")
def mariadb_roles(mariadb_server: AvailableServer) -> Roles:
    def make(role: str) -> str:
        name = role.replace("`", "``")
        return f"CREATE OR REPLACE USER `{name}`@`%` IDENTIFIED BY '{PASSWORD}'"

    return with_roles(mariadb_server, make)


@pytest.fixture(params=["postgresql", "mariadb"])
def roles(request: pytest.FixtureRequest) -> Roles:
    found: Roles = request.getfixturevalue(f"{request.param}_roles")
    return found


@pytest.mark.variant
class TestPostgreSQLAsTheApplication(SessionRepositoryContract):
    @pytest.fixture(scope="class")
    @classmethod
    def databases(cls, postgresql_roles: Roles) -> Iterator[ReusedDatabases]:
        with closing(
            ReusedDatabases(lambda: create_engine(postgresql_roles.new_url()), postgresql_roles.databases.drop)
        ) as databases:
            yield databases

    @pytest.fixture
    def new_repository(self, databases: ReusedDatabases) -> Iterator[NewRepository]:
        with databases.repositories() as new_repository:
            yield new_repository


@pytest.mark.variant
class TestMariaDBAsTheApplication(SessionRepositoryContract):
    @pytest.fixture(scope="class")
    @classmethod
    def databases(cls, mariadb_roles: Roles) -> Iterator[ReusedDatabases]:
        with closing(
            ReusedDatabases(lambda: create_engine(mariadb_roles.new_url()), mariadb_roles.databases.drop)
        ) as databases:
            yield databases

    @pytest.fixture
    def new_repository(self, databases: ReusedDatabases) -> Iterator[NewRepository]:
        with databases.repositories() as new_repository:
            yield new_repository


@pytest.fixture
def engine(roles: Roles) -> Iterator[Engine]:
    engine = create_engine(roles.new_url())
    yield engine
    engine.dispose()
    roles.databases.drop(engine.url)


DDL = [
    "CREATE TABLE of_the_application (id INTEGER)",
    "ALTER TABLE vibeforge_sessions ADD COLUMN colour VARCHAR(9)",
    "CREATE INDEX of_the_application ON vibeforge_session_errors (task_id)",
    *(f"DROP TABLE {table}" for table in (*metadata.tables, VERSION_TABLE)),
    "TRUNCATE TABLE vibeforge_session_logs",
    f"UPDATE {VERSION_TABLE} SET version_num = 'x'",
    "DELETE FROM vibeforge_sessions_compatibility",
    "UPDATE vibeforge_session_errors SET error_message = 'rewritten'",
]


@pytest.mark.parametrize("statement", DDL)
def test_application_role_cannot_change_schema_or_history(engine: Engine, statement: str) -> None:
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
        connection.execute(text(statement))
    assert failure_code(caught.value) in {"42501", 1142, 1044}
    migrate.check_schema(engine, exact=True)


def test_application_role_reads_status_but_cannot_migrate(engine: Engine) -> None:
    url = text_of(engine.url)
    with open_repository(url) as repository:
        repository.create_session()
    with open_repository(url, migrate=True) as repository:  # succeeds, because no migration is pending
        assert len(repository.list_sessions()) == 1
    assert migrate.status(engine).state == "current"
    assert list(maintenance.verify_data(engine)) == []
    with pytest.raises(StorageError):
        migrate.downgrade(engine, "base")
    assert len(SQLAlchemySessionRepository(engine).list_sessions()) == 1


def test_migrator_role_upgrades_and_downgrades(roles: Roles) -> None:
    url = roles.new_url(MIGRATOR)
    engine = create_engine(url)
    for revision in ("vibeforge_0001", "base"):
        migrate.downgrade(engine, revision)
    migrate.upgrade(engine)
    migrate.check_schema(engine, exact=True)
    engine.dispose()


def test_application_role_can_read_tables_of_later_migration(postgresql_roles: Roles) -> None:
    url = postgresql_roles.new_url(MIGRATOR)
    postgresql_roles.run(url, maintenance.grants(url, APPLICATION, migrator=MIGRATOR))
    engine, application = create_engine(url), create_engine(url.set(username=APPLICATION))
    migrate.downgrade(engine, "vibeforge_0001")
    migrate.upgrade(engine)
    assert migrate.status(application).floor == "vibeforge_0001"
    for each in (engine, application):
        each.dispose()


def test_grants_quote_names() -> None:
    for url, quoted in (
        ("postgresql://h/d", 'TO "a""b";'),
        ("mariadb://h/d", 'ON `d`.vibeforge_sessions TO `a"b`@`%`;'),
    ):
        assert quoted in maintenance.grants(url, 'a"b')
    assert "TO `app`@`10.0.0.%`;" in maintenance.grants("mariadb://h/d", "app@10.0.0.%")
    assert 'GRANT USAGE ON SCHEMA "f""g" TO "app";' in maintenance.grants("postgresql://h/d", "app", schema='f"g')
    with pytest.raises(ConfigurationError, match="name the database in the URL"):
        maintenance.grants("mariadb://h", "app")
    assert "no roles" in maintenance.grants("sqlite:///x.db", "app")
