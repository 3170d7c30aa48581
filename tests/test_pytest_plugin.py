"""The pytest plugin in another project: pytest runs in a folder outside the repository."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.support import cases
from tests.support.databases import SQL_DATABASES, Storage
from tests.support.preloaded import preloaded_pytest
from tests.support.servers.process import connected
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.testing.temporary_databases import NAME

SHOW_DATABASES = {"postgresql": "SELECT datname FROM pg_database", "mariadb": "SHOW DATABASES"}

ISOLATED = """
import pytest
from vibeforge_sessions import open_repository

@pytest.mark.parametrize("number", range(6))
def test_own_database(session_repository, session_repository_url, number):
    assert session_repository.list_sessions() == []
    session_repository.create_session(session_id="same")
    session_repository.append_error("same", "t", "m")
    with open_repository(session_repository_url) as another:
        assert another.list_sessions() == ["same"]
        another.create_session(session_id="another")
    assert session_repository.list_sessions() == ["same", "another"]

def test_in_memory(memory_session_repository):
    assert memory_session_repository.create_session().version == 1
"""


class Project:
    """Folder of another project with its own tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temp = folder / "temp"
        (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -W error\n")

    def test(self, code: str, *options: str, command: Sequence[str] | None = None) -> str:
        """Run pytest on a test module with the code, and return its output."""
        (self.folder / "test_project.py").write_text(code)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("VIBEFORGE_", "PYTEST_"))
        }
        done = subprocess.run(
            [*(command or preloaded_pytest()), f"--basetemp={self.temp}", *options],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def last_line(self, code: str, *options: str, command: Sequence[str] | None = None) -> str:
        return re.sub(r" in .*", "", self.test(code, *options, "-q", command=command).splitlines()[-1])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_unused_plugin_imports_no_other_module(project: Project) -> None:
    code = """
import sys

def test_modules():
    loaded = [name for name in sys.modules if name.startswith("vibeforge_sessions")]
    assert sorted(loaded) == ["vibeforge_sessions", "vibeforge_sessions.errors", "vibeforge_sessions.pytest_plugin"]
    assert {"sqlalchemy", "alembic", "pydantic"}.isdisjoint(sys.modules)
"""
    command = [sys.executable, "-m", "pytest"]
    assert project.last_line(code, command=command) == "1 passed"
    assert project.last_line(code, "-p", "no:vibeforge_sessions", command=command) == "1 failed"


@pytest.mark.parametrize("workers", cases(["0", "2"], ["2"]))
def test_each_test_has_its_own_sqlite_file(project: Project, workers: str) -> None:
    assert project.last_line(ISOLATED, "-n", workers) == "7 passed"
    assert {path.name for path in project.temp.rglob("*.db*")} == {"template.db"}


@pytest.mark.parametrize(
    ("name", "workers"),
    cases(list(itertools.product(SHOW_DATABASES, ["0", "2"])), [("postgresql", "2"), ("mariadb", "0")]),
)
def test_each_test_has_its_own_database_on_a_server(
    request: pytest.FixtureRequest, project: Project, name: str, workers: str
) -> None:
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    url = storage.new_url()
    engine = create_engine(url)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id="kept")
    with engine.connect() as connection:
        before = set(connection.exec_driver_sql(SHOW_DATABASES[name]).scalars())
    assert project.last_line(ISOLATED, "-n", workers, f"--session-repository-url={url}") == "7 passed"
    assert repository.list_sessions() == ["kept"]
    with engine.connect() as connection:
        after = set(connection.exec_driver_sql(SHOW_DATABASES[name]).scalars())
    engine.dispose()
    assert not {database for database in after - before if database.startswith(NAME)}


@pytest.mark.parametrize("name", list(SHOW_DATABASES))
def test_missing_privilege_to_create_database_is_an_error(
    request: pytest.FixtureRequest, project: Project, name: str
) -> None:
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    url = make_url(storage.new_url())
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        if name == "postgresql":
            connection.exec_driver_sql("DROP ROLE IF EXISTS weak")
            connection.exec_driver_sql("CREATE ROLE weak LOGIN PASSWORD 's3cret'")
        else:
            connection.exec_driver_sql("CREATE OR REPLACE USER weak IDENTIFIED BY 's3cret'")
            connection.exec_driver_sql(f"GRANT SELECT ON {url.database}.* TO weak")
    weak = url.set(username="weak", password="s3cret").render_as_string(hide_password=False)
    output = project.test(ISOLATED, f"--session-repository-url={weak}")
    assert "give its user the privilege to create databases" in output
    assert "1 passed, 6 errors" in output
    assert "s3cret" not in output


def test_url_of_existing_file_is_rejected(project: Project) -> None:
    (project.folder / "application.db").write_bytes(b"precious")
    output = project.test(ISOLATED, "--session-repository-url=sqlite:///application.db")
    assert "on SQLite each test has its own file" in output
    assert "1 passed, 6 errors" in output
    assert (project.folder / "application.db").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "url",
    ["oracle://u:s3cret@h/db", "postgresql+psycopg://u:s3cret@127.0.0.1:1/db", "s3cret", "memory://"],
    ids=["unsupported_database", "unreachable_server", "no_url", "memory"],
)
def test_invalid_url_is_rejected_without_its_password(project: Project, url: str) -> None:
    output = project.test(ISOLATED, "--session-repository-url", url, "-x", "--showlocals")
    assert "\n--session-repository-url: " in output
    assert "1 error" in output
    assert "s3cret" not in output


def test_option_overrides_setting(project: Project) -> None:
    with (project.folder / "pytest.ini").open("a") as ini:
        ini.write("session_repository_url = oracle://host/db\n")
    assert project.last_line(ISOLATED) == "1 passed, 6 errors"
    assert project.last_line(ISOLATED, "--session-repository-url=sqlite://") == "7 passed"


def test_failing_test_shows_no_password(project: Project, postgresql: Storage) -> None:
    assert postgresql.new_url is not None
    url = make_url(postgresql.new_url())
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS creator")
        connection.exec_driver_sql("CREATE ROLE creator LOGIN CREATEDB PASSWORD 's3cret'")
    role_url = url.set(username="creator", password="s3cret").render_as_string(hide_password=False)
    code = "def test(session_repository_url, session_repository):\n    assert session_repository.list_sessions() == 1\n"
    output = project.test(code, f"--session-repository-url={role_url}", "--showlocals")
    assert f"session_repository_url = 'postgresql+psycopg://creator:***@{url.host}" in output
    assert "s3cret" not in output


@pytest.mark.parametrize("name", SQL_DATABASES)
def test_async_fixture_shares_database_with_sync_fixture(
    request: pytest.FixtureRequest, project: Project, name: str
) -> None:
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    code = """
import asyncio

def test_both(async_session_repository, session_repository):
    session = asyncio.run(async_session_repository.create_session())
    assert session_repository.list_sessions() == [session.session_id]
    assert asyncio.run(async_session_repository.list_sessions()) == [session.session_id]
"""
    url = "sqlite://" if name == "sqlite" else storage.new_url()
    assert project.last_line(code, f"--session-repository-url={url}") == "1 passed"


def test_session_type_fixture_is_used(project: Project) -> None:
    code = """
import pytest
from vibeforge_sessions import Session

class MySession(Session):
    is_aborted: bool = False

@pytest.fixture
def stored_session_type():
    return MySession

def test_it(session_repository, memory_session_repository):
    for repository in (session_repository, memory_session_repository):
        assert repository.create_session().is_aborted is False
"""
    assert project.last_line(code) == "1 passed"


def test_unsaved_change_fails_the_test(project: Project) -> None:
    code = """
def test_unsaved(tracked_session_repository):
    session = tracked_session_repository.create_session(session_id="s")
    session.add_answer("audience", "s3cret")

def test_saved(tracked_session_repository):
    session = tracked_session_repository.create_session(session_id="s")
    session.add_answer("audience", "s3cret")
    tracked_session_repository.update_session(session)
"""
    output = project.test(code)
    assert "2 passed, 1 error" in output
    assert "session 's' was changed (answers) and never stored; it was read at" in output
    assert "test_project.py:3\n" in output
    assert "Failed: session 's'" in output
