"""Schemas through a real PgBouncer in transaction mode, where settings of a server connection reach other clients."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL

from tests.support.servers import AvailableServer, PgBouncer
from tests.support.servers.fixtures import skipping
from vibeforge_sessions import SessionFilter, SQLAlchemySessionRepository
from vibeforge_sessions.sql import check_schema, create_engine, migrate
from vibeforge_sessions.testing.base import full_session, stored

SCHEMA = "forge"


@pytest.fixture
def direct(postgresql_server: AvailableServer) -> URL:
    """Return the URL of a database with two schemas that each contain the package's tables."""
    url = postgresql_server.databases.create(migrated=False)
    for schema in (SCHEMA, None):
        engine = create_engine(url, schema=schema)
        if schema is not None:
            with engine.begin() as connection:
                connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        migrate.upgrade(engine)
        engine.dispose()
    return url


@pytest.fixture
def bouncer(direct: URL) -> Iterator[URL]:
    with skipping(), PgBouncer(direct) as server:
        yield server.url


def test_engines_with_different_schemas_share_server_connections(bouncer: URL) -> None:
    engines = {schema: create_engine(bouncer, pgbouncer=True, schema=schema) for schema in (SCHEMA, None)}
    repositories = {schema: SQLAlchemySessionRepository(engine) for schema, engine in engines.items()}

    def work(number: int) -> None:
        schema = SCHEMA if number % 2 else None
        repository = repositories[schema]
        session_id = f"{schema}-{number}"
        session = repository.create_session(full_session(session_id))
        session.add_answer("schema", str(schema))
        repository.update_session(session)
        for _ in range(10):
            repository.append_error(session_id, "t", "it broke")
        assert len(stored(repository, session_id).error_history) == 11

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    for schema, repository in repositories.items():
        found = repository.find_sessions(SessionFilter(has_errors=True), order="-updated_at").items
        assert sorted(item.session_id for item in found) == sorted(
            f"{schema}-{number}" for number in range(16) if (number % 2 == 1) == (schema == SCHEMA)
        )
        check_schema(engines[schema], exact=True)
        engines[schema].dispose()


def test_migration_through_pgbouncer_leaves_no_settings(bouncer: URL, direct: URL) -> None:
    engine = create_engine(bouncer, pgbouncer=True, schema=SCHEMA)
    migrate.downgrade(engine, "base")
    migrate.upgrade(engine)
    for _ in range(4):
        with engine.connect() as connection:
            settings = connection.exec_driver_sql(
                "SELECT current_setting('lock_timeout'), current_setting('search_path')"
            )
            assert tuple(settings.one()) == ("0", '"$user", public')
    engine.dispose()
