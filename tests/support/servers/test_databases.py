"""Creating, copying and dropping databases, and the choice of the server."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from tests.support.servers import (
    MARIADB_URL,
    POSTGRESQL_URL,
    AvailableServer,
    DatabaseFactory,
    PostgresDatabases,
    PostgresServer,
    ServerUnavailable,
    connected,
    find_bindir,
    mariadb,
    postgresql,
)
from tests.support.servers.fixtures import REQUIRE_SERVERS, skipping


@pytest.fixture(params=("postgresql", "mariadb"))
def available(request: pytest.FixtureRequest) -> AvailableServer:
    server: AvailableServer = request.getfixturevalue(f"{request.param}_server")
    return server


def prepare(url: sa.URL) -> None:
    """Create tables whose names do not follow their dependencies, unusual texts, and a version table with its row."""
    metadata = sa.MetaData()
    sa.Table("z_parent", metadata, sa.Column("id", sa.String(20), primary_key=True))
    sa.Table(
        "a_child",
        metadata,
        sa.Column("id", sa.ForeignKey("z_parent.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("text", sa.String(50), server_default="5 %s :x {name} `", index=True),
        sa.Column("doubled", sa.Integer, sa.Computed("1 + 1", persisted=True)),
    )
    version = sa.Table("version", metadata, sa.Column("number", sa.String(20)))
    with connected(url) as connection:
        metadata.create_all(connection)
        connection.execute(version.insert().values(number="0001"))
        connection.execute(metadata.tables["z_parent"].insert().values(id="first"))
        connection.execute(metadata.tables["a_child"].insert().values(id="first"))
        connection.commit()


def structure(url: sa.URL) -> object:
    with connected(url) as connection:
        inspector = sa.inspect(connection)
        return [
            (table, str(inspector.get_columns(table)), inspector.get_indexes(table), inspector.get_foreign_keys(table))
            for table in sorted(inspector.get_table_names())
        ]


def names(databases: DatabaseFactory) -> set[str]:
    with connected(databases.admin_url) as connection:
        on_postgresql = connection.dialect.name == "postgresql"
        listing = "SELECT datname FROM pg_database" if on_postgresql else "SHOW DATABASES"
        return set(connection.scalars(sa.text(listing)))


def test_each_copy_has_the_content_of_the_template_and_is_independent(available: AvailableServer) -> None:
    prepared: list[sa.URL] = []

    def prepare_once(url: sa.URL) -> None:
        prepared.append(url)
        prepare(url)

    databases = available.databases.prepared_by(prepare_once)
    first, second = databases.create(), databases.create()
    with connected(first) as connection:
        connection.execute(sa.text("DELETE FROM version"))
        connection.execute(sa.text("DELETE FROM z_parent"))
        connection.commit()
        assert connection.execute(sa.text("SELECT * FROM a_child")).all() == [], "the foreign key cascades"
    third = databases.create()
    for url in (second, third):
        with connected(url) as connection:
            assert connection.execute(sa.text("SELECT * FROM version")).all() == [("0001",)]
            assert connection.execute(sa.text("SELECT * FROM a_child")).all() == [("first", "5 %s :x {name} `", 2)]
    assert structure(first) == structure(third)
    assert len(prepared) == 1
    databases.drop(first)
    databases.close()
    assert not {url.database for url in (first, second, third, *prepared)} & names(databases)


def test_drop_does_not_wait_for_a_transaction_left_open(available: AvailableServer) -> None:
    databases = available.databases.prepared_by(prepare)
    with databases.database() as url:
        left = connected(url)
        left.execute(sa.text("UPDATE version SET number = '2'"))
        start = time.monotonic()
    assert time.monotonic() - start < 10
    left.invalidate()
    left.close()
    databases.close()


def test_failed_preparation_leaves_no_database(available: AvailableServer) -> None:
    def fail(url: sa.URL) -> None:
        raise LookupError(url.database)

    databases = available.databases.prepared_by(fail)
    with pytest.raises(LookupError) as caught:
        databases.create()
    assert str(caught.value) not in names(databases)


def test_drop_of_a_foreign_database_is_rejected(available: AvailableServer) -> None:
    with pytest.raises(AssertionError, match="was not created by this factory"):
        available.databases.drop(available.url.set(database="vfs_of_another_factory"))


def test_mariadb_copy_of_a_template_with_a_view_is_rejected(mariadb_server: AvailableServer) -> None:
    def with_view(url: sa.URL) -> None:
        with connected(url) as connection:
            connection.execute(sa.text("CREATE VIEW a_view AS SELECT 1"))

    databases = mariadb_server.databases.prepared_by(with_view)
    with pytest.raises(NotImplementedError, match="a_view"):
        databases.create()


def test_mariadb_database_has_the_requested_charset(mariadb_server: AvailableServer) -> None:
    options = "CHARACTER SET latin1 COLLATE latin1_german2_ci"
    databases = mariadb_server.databases.prepared_by(prepare, options=options)
    for url in (databases.create(migrated=False, options=options), databases.create()):
        with connected(url) as connection:
            assert connection.scalar(sa.text("SELECT @@collation_database")) == "latin1_german2_ci"
    databases.close()


def test_postgresql_database_has_the_requested_icu_locale() -> None:
    with skipping(), PostgresServer(bindir=find_bindir(icu=True)) as server:
        databases = PostgresDatabases(server.url)
        options = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
        with databases.database(migrated=False, options=options) as url, connected(url) as connection:
            assert connection.scalar(sa.text("SELECT 'a' < 'B'"))


# -- choice of the server


@pytest.mark.parametrize(("kind", "variable"), [("postgresql", POSTGRESQL_URL), ("mariadb", MARIADB_URL)])
def test_server_of_the_environment_is_used_and_left_unchanged(
    kind: str, variable: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    other: AvailableServer = request.getfixturevalue(f"{kind}_server")
    without_driver = other.url.set(drivername=kind)
    monkeypatch.setenv(variable, without_driver.render_as_string(hide_password=False))
    with (postgresql if kind == "postgresql" else mariadb)() as server:
        assert server.url == other.url
        copy = server.databases.prepared_by(prepare).create()
        empty = server.databases.create(migrated=False)
        assert {copy.database, empty.database} < names(other.databases)
    prefixes = tuple(str(url.database).rpartition("_")[0] for url in (copy, empty))
    assert not [name for name in names(other.databases) if name.startswith(prefixes)]


def test_unavailable_server_skips_or_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        with skipping():
            raise ServerUnavailable("no such program")

    monkeypatch.delenv(REQUIRE_SERVERS, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such program"):
        unavailable()
    monkeypatch.setenv(REQUIRE_SERVERS, "1")
    with pytest.raises(pytest.fail.Exception, match="no such program"):
        unavailable()
