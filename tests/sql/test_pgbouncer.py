"""A schema of its own through a real PgBouncer in transaction mode, where what a session sets would be anybody's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.servers import AvailableServer
from tests.servers.machine import free_port, wait_for
from vibeforge_sessions import SessionFilter, SQLAlchemySessionRepository
from vibeforge_sessions.sql import check_schema, create_engine, migrate
from vibeforge_sessions.testing.base import full_session, stored

SCHEMA = "forge"


@pytest.fixture
def direct(postgresql_server: AvailableServer) -> URL:
    """A database with two schemas, which hold our tables each."""
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
    program = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if program is None:
        pytest.skip("pgbouncer is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="vfs-bouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        config = folder / "pgbouncer.ini"
        server = f"host={direct.host} port={direct.port} user={direct.username} password={direct.password}"
        config.write_text(
            f"[databases]\n{direct.database} = {server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            "unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
        )
        user = "nobody" if os.geteuid() == 0 else None  # it refuses to be root
        with subprocess.Popen([program, "-q", str(config)], user=user, stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(lambda: listens(port), 20, "PgBouncer to listen")
                yield direct.set(port=port)
            finally:
                process.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_schemas_through_the_same_two_connections(bouncer: URL) -> None:
    engines = {schema: create_engine(bouncer, pgbouncer=True, schema=schema) for schema in (SCHEMA, None)}
    repositories = {schema: SQLAlchemySessionRepository(engine) for schema, engine in engines.items()}

    def work(number: int) -> None:
        schema = SCHEMA if number % 2 else None
        repository = repositories[schema]
        session_id = f"{schema}-{number}"
        session = repository.create_session(full_session(session_id))
        session.add_answer("of", str(schema))
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


def test_a_migration_through_it_leaves_no_setting_behind(bouncer: URL, direct: URL) -> None:
    engine = create_engine(bouncer, pgbouncer=True, schema=SCHEMA)
    migrate.downgrade(engine, "base")
    migrate.upgrade(engine)
    for _ in range(4):
        with engine.connect() as connection:
            told = connection.exec_driver_sql("SELECT current_setting('lock_timeout'), current_setting('search_path')")
            assert tuple(told.one()) == ("0", '"$user", public')
    engine.dispose()
