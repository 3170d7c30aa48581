"""A new revision from the template `migrations/script.py.mako`, in a copy of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.migrations import HEAD, copy_project
from tests.support.repositories import text_of
from tests.support.servers import AvailableServer
from tests.support.servers.process import connected

REVISION = "vibeforge_9999"
UP_AND_DOWN = """
import sys
from vibeforge_sessions.sql import create_engine, migrate

engine = create_engine(sys.argv[1], schema="app")
migrate.upgrade(engine)
print(migrate.current(engine))
migrate.downgrade(engine, sys.argv[2])
print(migrate.current(engine))
engine.dispose()
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the checkout with a new revision."""
    folder = tmp_path / "copy"
    copy_project(folder)
    run(folder, "-m", "alembic", "revision", "--rev-id", REVISION, "-m", "priority")
    return folder


def run(copy: Path, *arguments: str) -> str:
    """Run Python with the code of the copy, and return its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_new_revision_is_formatted_and_runs_in_a_schema(copy: Path, postgresql_server: AvailableServer) -> None:
    (script,) = (copy / "migrations" / "versions").glob(f"*_{REVISION}_priority.py")
    for command in (["check"], ["format", "--check"]):
        run(copy, "-m", "ruff", *command, "--no-cache", str(script))
    for given in ("sqlite:///new.db", "postgresql+psycopg://host/db", "mariadb+pymysql://host/db"):
        assert f"'{REVISION}'" in run(copy, "-m", "alembic", "-x", f"url={given}", "upgrade", "head", "--sql")
    url = postgresql_server.databases.create(migrated=False)
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE SCHEMA app")
    assert run(copy, "-c", UP_AND_DOWN, text_of(url), HEAD).split() == [REVISION, HEAD]
