"""Older code on a newer schema, as in a deployment that upgrades one replica after another."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tests.support import cases
from tests.support.databases import SQL_DATABASES
from tests.support.migrations import HEAD, chain
from tests.support.older_code import OlderClient, older_code
from tests.support.repositories import text_of
from tests.support.servers import AvailableServer
from vibeforge_sessions import SQLAlchemySessionRepository, StorageError
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.testing.base import full_session, stored

FIRST = str(chain()[0].revision)
INDEX = "ix_vibeforge_sessions_updated_at_session_id"

OLDER_CODE = """
import json, sys
from vibeforge_sessions import SchemaError, open_repository
from vibeforge_sessions.sql import create_engine, migrate

url, migrates = sys.argv[1], sys.argv[2] == "migrate"
engine = create_engine(url)
found = migrate.status(engine)
answer = {"state": found.state, "usable": found.usable, "head": found.head, "used": None, "rejected": None}
try:
    with open_repository(url, migrate=migrates) as repository:
        session = repository.create_session(session_id="older")
        session.add_answer("q", 1)
        repository.update_session(session)
        repository.append_error("older", "task", "it broke")
        repository.append_log("older", "a line")
        page = repository.find_sessions(order="-updated_at")
        answer["used"] = [[item.session_id, item.version, item.error_count] for item in page.items]
        answer["read"] = len(repository.get_session("newer").error_history)
        repository.delete_session("older")
except SchemaError as error:
    answer["rejected"] = error.state
engine.dispose()
print(json.dumps(answer))
"""


@pytest.fixture(params=SQL_DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/application.db"
    server: AvailableServer = request.getfixturevalue(f"{request.param}_server")
    return text_of(server.databases.create(migrated=False))


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Return a copy of the code at revision vibeforge_0002 without that revision, as code of the first revision."""
    folder = older_code(tmp_path / "older")
    (folder / "migrations" / "versions" / Path(chain()[1].path).name).unlink()
    return folder


CHANGES = [
    "UPDATE vibeforge_sessions_compatibility SET floor = 'vibeforge_0002'",
    "UPDATE vibeforge_sessions_compatibility SET revision = 'vibeforge_0001'",  # not updated by a migration
    "DELETE FROM vibeforge_sessions_compatibility",
    "DROP TABLE vibeforge_sessions_compatibility",
]
ON_SERVERS = [("postgresql", CHANGES[0]), ("mariadb", CHANGES[0])]


def run_older_code(older: Path, url: str, how: str) -> dict[str, Any]:
    """Run the older code in another process, and return its report."""
    done = subprocess.run(
        [sys.executable, "-c", OLDER_CODE, url, how],
        cwd=older,
        env={**os.environ, "PYTHONPATH": str(older)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("how", ["check", "migrate"])
def test_older_code_uses_newer_schema_if_compatible(engine: Engine, url: str, older: Path, how: str) -> None:
    migrate.upgrade(engine)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(full_session("newer"))
    answer = run_older_code(older, url, how)
    assert (answer["state"], answer["usable"], answer["head"]) == ("ahead", True, FIRST)
    assert answer["used"] == [["older", 2, 1], ["newer", 1, 1]]
    assert answer["read"] == 1
    assert migrate.current(engine) == HEAD
    assert repository.list_sessions() == ["newer"]


@pytest.mark.parametrize(
    ("url", "change"),
    cases(itertools.product(SQL_DATABASES, CHANGES), [("sqlite", change) for change in CHANGES] + ON_SERVERS),
    indirect=["url"],
)
@pytest.mark.parametrize("how", cases(["check", "migrate"], ["check"]))
def test_older_code_rejects_incompatible_schema(engine: Engine, url: str, older: Path, how: str, change: str) -> None:
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text(change))
    answer = run_older_code(older, url, how)
    assert (answer["state"], answer["usable"], answer["rejected"], answer["used"]) == ("ahead", False, "ahead", None)


def test_each_revision_stores_minimum_compatible_revision(engine: Engine) -> None:
    for script in chain()[1:]:
        migrate.upgrade(engine, str(script.revision))
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT revision, floor FROM vibeforge_sessions_compatibility")).all()
        assert [row.revision for row in rows] == [script.revision]
        assert rows[0].floor in [each.revision for each in chain()]


def test_data_are_unchanged_after_downgrade_and_upgrade(engine: Engine) -> None:
    migrate.upgrade(engine)
    repository = SQLAlchemySessionRepository(engine)
    session = repository.create_session(full_session())
    repository.append_error(session.session_id, "t", "it broke")
    before = stored(repository)
    for _ in range(2):
        migrate.downgrade(engine, FIRST)
        at_the_first = OlderClient(engine).everything()
        migrate.upgrade(engine)
        assert stored(repository) == before
        migrate.downgrade(engine, FIRST)
        assert OlderClient(engine).everything() == at_the_first
        migrate.upgrade(engine)


# An interrupted CREATE INDEX CONCURRENTLY leaves an invalid index: each write updates it, and no query uses it.
def test_upgrade_rebuilds_invalid_index(postgresql_server: AvailableServer) -> None:
    url = text_of(postgresql_server.databases.create(migrated=False))
    engine, other = create_engine(url), create_engine(url)
    migrate.upgrade(engine, FIRST)
    OlderClient(engine).create()
    with other.begin() as writer:
        writer.execute(text("UPDATE vibeforge_sessions SET version = version"))
        with pytest.raises(StorageError, match="57014"):
            migrate.upgrade(engine, statement_timeout=0.3)
        assert validity(other) == [False]
        assert HEAD in migrate.status(engine).pending
    migrate.upgrade(engine)
    assert validity(other) == [True]
    migrate.check_schema(engine, exact=True)
    for each in (engine, other):
        each.dispose()


def validity(engine: Engine) -> list[bool]:
    with engine.connect() as connection:
        asked = "SELECT indisvalid FROM pg_index WHERE indexrelid = CAST(:name AS regclass)"
        return list(connection.execute(text(asked), {"name": INDEX}).scalars())
