"""Commands, programs and queries in the code blocks of docs/.

A code block's language determines how it is run. ``sh`` runs on SQLite, ``sh postgresql`` and ``sh mariadb`` run on
that server. ``sqlite``, ``postgresql`` and ``mariadb`` are queries for that database, and ``sql`` runs on all of them.
``python`` is a program if it begins with one of `PROGRAMS`; otherwise it is a fragment and is only compiled. ``text``
is not run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from tests.data.make import sessions
from tests.support import ROOT
from tests.support.documentation import blocks
from tests.support.preloaded import preloaded_python
from tests.support.repositories import text_of, upgrade
from tests.support.servers import AvailableServer, find_bindir
from tests.support.servers.process import connected
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.cli.commands import app
from vibeforge_sessions.cli.output import EXIT_CODES
from vibeforge_sessions.sql import create_engine, metadata
from vibeforge_sessions.sql.tables import APPLICATION_PRIVILEGES

GUIDE = (ROOT / "docs" / "dba-guide.md").read_text("utf-8")
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
TUTORIAL = "tutorial.md"
"""The page whose blocks depend on each other; `test_tutorial_prints_documented_output` runs them in one folder."""
PROGRAMS = ("from vibeforge_sessions import", "from vibeforge_sessions.sql import")
PASSWORD = "s3cret"


def filled(url: URL) -> URL:
    """Create the tables and sample sessions, and return the URL."""
    upgrade(url)
    engine = create_engine(url)
    for session in sessions():
        SQLAlchemySessionRepository(engine).create_session(session)
    engine.dispose()
    return url


def shell(script: str, folder: Path, url: URL, *programs: Path, **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
    for name, module in (("vibeforge-sessions", "vibeforge_sessions"), ("alembic", "alembic")):
        program = folder.parent / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.join(preloaded_python())} -m {module} "$@"\n')
        program.chmod(0o755)
    folders = [folder.parent / "bin", Path(sys.executable).parent, *programs]
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**inherited, "PATH": path, "VIBEFORGE_SESSIONS_DATABASE_URL": text_of(url), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param == "sqlite":
        return filled(make_url(f"sqlite:///{tmp_path}/application.db"))
    server: AvailableServer = request.getfixturevalue(f"{request.param}_server")
    return filled(server.databases.create(migrated=False))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh") and page != TUTORIAL])
def test_shell_commands_run_on_sqlite(page: str, tmp_path: Path) -> None:
    if "sqlite3 " in GUIDE and shutil.which("sqlite3") is None:
        pytest.skip("sqlite3 is not installed")
    script = "\n".join(blocks(page, "sh"))
    assert script
    shell(script, tmp_path, make_url("sqlite:///sessions.db"))


def test_shell_commands_run_on_postgresql(postgresql_server: AvailableServer, tmp_path: Path) -> None:
    url = filled(postgresql_server.databases.create(migrated=False))
    with connected(postgresql_server.databases.admin_url, isolation_level="AUTOCOMMIT") as connection:
        for role in ("migrator", "application"):
            connection.exec_driver_sql(f"DROP ROLE IF EXISTS {role}")
            connection.exec_driver_sql(f"CREATE ROLE {role}")
    address = {"PGHOST": url.host, "PGPORT": str(url.port), "PGUSER": url.username, "PGPASSWORD": url.password}
    variables = {name: value or "" for name, value in {**address, "PGDATABASE": url.database}.items()}
    for script in blocks("dba-guide.md", "sh postgresql"):
        shell(script, tmp_path, url, find_bindir(), **variables)


def test_shell_commands_run_on_mariadb(mariadb_server: AvailableServer, tmp_path: Path) -> None:
    url = filled(mariadb_server.databases.create(migrated=False))
    with connected(mariadb_server.databases.admin_url) as connection:
        for role in ("migrator", "application"):
            connection.exec_driver_sql(f"CREATE OR REPLACE USER {role} IDENTIFIED BY '{PASSWORD}'")
    address = f"[client]\nhost={url.host}\nport={url.port}\nuser={url.username}\npassword={url.password}\n"
    (tmp_path / "my.cnf").write_text(address)
    for script in blocks("dba-guide.md", "sh mariadb"):
        shell(script, tmp_path, url, MYSQL_DATABASE=url.database or "")


def test_documented_move_from_sqlite_to_postgresql(postgresql_server: AvailableServer, tmp_path: Path) -> None:
    old = filled(make_url(f"sqlite:///{tmp_path}/sessions.db"))
    new = postgresql_server.databases.create(migrated=False)
    urls = {"VIBEFORGE_SESSIONS_COPY_FROM": text_of(old), "VIBEFORGE_SESSIONS_COPY_TO": text_of(new)}
    (script,) = blocks("moving.md", "sh postgresql")
    shell(script, tmp_path, old, **urls)
    engine = create_engine(new)
    assert SQLAlchemySessionRepository(engine).list_sessions() == [session.session_id for session in sessions()]
    engine.dispose()


def test_documented_queries_run(url: URL) -> None:
    kind = {"mysql": "mariadb"}.get(url.get_backend_name(), url.get_backend_name())
    scripts = [*blocks("dba-guide.md", kind), *blocks("dba-guide.md", "sql")]
    assert len(scripts) >= 4
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        for script in scripts:
            for statement in filter(str.strip, script.split(";")):
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def test_documented_query_finds_incomplete_histories(url: URL) -> None:
    (query,) = [script for script in blocks("dba-guide.md", "sql") if "HAVING" in script]
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        assert connection.exec_driver_sql(query.strip().rstrip(";")).all() == []
        connection.exec_driver_sql("DELETE FROM vibeforge_session_errors WHERE session_id = 'old-2' AND position = 1")
        assert [row[0] for row in connection.exec_driver_sql(query.strip().rstrip(";"))] == ["old-2"]


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL])
def test_python_blocks_run_or_compile(page: str, tmp_path: Path) -> None:
    for code in blocks(page, "python"):
        if page == "testing.md" or (page != "services.md" and not code.startswith(PROGRAMS)):
            compile(code, page, "exec")  # a fragment of an application
            continue
        command = [*preloaded_python(), "-W", "error", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_tutorial_prints_documented_output(tmp_path: Path) -> None:
    text = (ROOT / "docs" / TUTORIAL).read_text("utf-8")
    steps = re.findall(r"^```(python|sh)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL)
    assert [language for language, _, _ in steps] == ["python"] * 5 + ["sh"]
    for language, code, shown in steps:
        if language == "sh":
            shell(code, tmp_path, make_url(f"sqlite:///{tmp_path}/sessions.db"))
            continue
        command = [*preloaded_python(), "-W", "error", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", shown)


@pytest.mark.parametrize("number", range(len(blocks("testing.md", "python"))))
def test_documented_tests_pass(number: int, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -W error\n")
    (tmp_path / "test_pasted.py").write_text(blocks("testing.md", "python")[number])
    command = [sys.executable, "-m", "pytest", "-q", f"--basetemp={tmp_path / 'temp'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VIBEFORGE_", "PYTEST_"))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), done.stdout


def test_tables_page_names_every_table_column_and_index() -> None:
    page = (ROOT / "docs" / "tables.md").read_text("utf-8")
    for name in APPLICATION_PRIVILEGES:
        assert f"`{name}`" in page
    for table in metadata.tables.values():
        for column in table.columns:
            assert f"`{column.name}`" in page, column
        for index in table.indexes:
            assert f"`{index.name}`" in page


def test_commands_page_names_every_command_and_exit_code() -> None:
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    for state, code in EXIT_CODES.items():
        assert re.search(rf"^\| {code} \| .*{state}", page, re.MULTILINE), state
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__
            assert re.search(rf"`({group.name} )?{name}`", page), (group.name, name)
