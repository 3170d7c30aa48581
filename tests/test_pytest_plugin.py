"""The fixtures, as another project has them: pytest runs in a folder that knows nothing of this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.support.databases import SQL_DATABASES, Storage
from tests.support.servers.process import connected
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine
from vibeforge_sessions.testing.temporary_databases import NAME

SHOW_DATABASES = {"postgresql": "SELECT datname FROM pg_database", "mariadb": "SHOW DATABASES"}

ISOLATED = """
import pytest
from vibeforge_sessions import open_repository

@pytest.mark.parametrize("number", range(6))
def test_each_has_its_own(session_repository, session_repository_url, number):
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
    """A project with tests of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temp = folder / "temp"
        (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -W error\n")

    def test(self, code: str, *options: str) -> str:
        """Run pytest on a module of tests, and return what it says."""
        (self.folder / "test_project.py").write_text(code)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIBEFORGE_", "PYTEST_"))}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", f"--basetemp={self.temp}", *options],
            cwd=self.folder,
            env=kept,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def last_line(self, code: str, *options: str) -> str:
        return re.sub(r" in .*", "", self.test(code, *options, "-q").splitlines()[-1])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_who_does_not_use_it_loads_nothing(project: Project) -> None:
    code = """
import sys

def test_modules():
    ours = [name for name in sys.modules if name.startswith("vibeforge_sessions")]
    assert ours == ["vibeforge_sessions", "vibeforge_sessions.pytest_plugin"]
    assert {"sqlalchemy", "alembic", "pydantic"}.isdisjoint(sys.modules)
"""
    assert project.last_line(code) == "1 passed"
    assert project.last_line(code, "-p", "no:vibeforge_sessions") == "1 failed"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_for_each_test(project: Project, workers: str) -> None:
    assert project.last_line(ISOLATED, "-n", workers) == "7 passed"
    assert {path.name for path in project.temp.rglob("*.db*")} == {"template.db"}


@pytest.mark.parametrize("name", [name for name in SQL_DATABASES if name in SHOW_DATABASES])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_on_a_server_a_database_of_its_own(
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
def test_a_database_that_cannot_be_made(request: pytest.FixtureRequest, project: Project, name: str) -> None:
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
    said = project.test(ISOLATED, f"--session-repository-url={weak}")
    assert "give its user the privilege to create databases" in said
    assert "1 passed, 6 errors" in said
    assert "s3cret" not in said


def test_a_file_that_somebody_has(project: Project) -> None:
    (project.folder / "host.db").write_bytes(b"precious")
    said = project.test(ISOLATED, "--session-repository-url=sqlite:///host.db")
    assert "on SQLite each test has its own file" in said
    assert "1 passed, 6 errors" in said
    assert (project.folder / "host.db").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "url", ["oracle://u:s3cret@h/db", "postgresql+psycopg://u:s3cret@127.0.0.1:1/db", "s3cret", "memory://"]
)
def test_a_url_that_is_of_no_use(project: Project, url: str) -> None:
    said = project.test(ISOLATED, "--session-repository-url", url, "-x", "--showlocals")
    assert "\n--session-repository-url: " in said
    assert "1 error" in said
    assert "s3cret" not in said


def test_the_setting_and_the_stronger_option(project: Project) -> None:
    with (project.folder / "pytest.ini").open("a") as ini:
        ini.write("session_repository_url = oracle://host/db\n")
    assert project.last_line(ISOLATED) == "1 passed, 6 errors"
    assert project.last_line(ISOLATED, "--session-repository-url=sqlite://") == "7 passed"


def test_a_failing_test_shows_no_password(project: Project, postgresql: Storage) -> None:
    assert postgresql.new_url is not None
    url = make_url(postgresql.new_url())
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS maker")
        connection.exec_driver_sql("CREATE ROLE maker LOGIN CREATEDB PASSWORD 's3cret'")
    told = url.set(username="maker", password="s3cret").render_as_string(hide_password=False)
    code = "def test(session_repository_url, session_repository):\n    assert session_repository.list_sessions() == 1\n"
    said = project.test(code, f"--session-repository-url={told}", "--showlocals")
    assert f"session_repository_url = 'postgresql+psycopg://maker:***@{url.host}" in said
    assert "s3cret" not in said


@pytest.mark.parametrize("name", SQL_DATABASES)
def test_on_an_event_loop(request: pytest.FixtureRequest, project: Project, name: str) -> None:
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


def test_another_class_of_session(project: Project) -> None:
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


def test_a_lost_write_fails_the_test(project: Project) -> None:
    code = """
def test_forgets(tracked_session_repository):
    session = tracked_session_repository.create_session(session_id="s")
    session.add_answer("audience", "s3cret")

def test_stores(tracked_session_repository):
    session = tracked_session_repository.create_session(session_id="s")
    session.add_answer("audience", "s3cret")
    tracked_session_repository.update_session(session)
"""
    said = project.test(code)
    assert "2 passed, 1 error" in said
    assert "session 's' was changed (answers) and never stored; it was read at" in said
    assert "test_project.py:3\n" in said
    assert "Failed: session 's'" in said
