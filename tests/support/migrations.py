"""Engines, databases of other applications, and comparisons for tests of migrations."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, Engine, event

from tests.support import ROOT
from vibeforge_sessions import Session, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate

MEMORY = "package, in memory"
FILES = ["package", "plain", "plain with foreign keys", "recipe"]
"""Engines on a file: one of `create_engine`, and three as applications create them; see `opened`."""

OTHER_APPLICATION = """
    CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
    INSERT INTO alembic_version VALUES ('1a2b3c4d');
    CREATE TABLE sessions (session_id TEXT PRIMARY KEY, data TEXT);
    INSERT INTO sessions VALUES ('s0', 'of the application'), ('s1', NULL);
    CREATE TABLE errors (id INTEGER PRIMARY KEY, session_id TEXT REFERENCES sessions (session_id));
    INSERT INTO errors (session_id) VALUES ('s0');
    CREATE INDEX ix_sessions_data ON sessions (data);
    CREATE VIEW session_logs AS SELECT session_id FROM sessions;
"""
"""A database of another application, with its own migration tool and sessions."""

OTHER_TYPE = """
    ALTER TABLE vibeforge_sessions DROP COLUMN active_task_id;
    ALTER TABLE vibeforge_sessions ADD COLUMN active_task_id VARCHAR(254)
"""
"""A change of one column's type."""


def copy_project(folder: Path) -> None:
    """Copy the package and its migrations, so that a test can change them."""
    for name in ("vibeforge_sessions", "migrations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("alembic.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)


@contextmanager
def opened(kind: str, path: Path) -> Iterator[Engine]:
    """Provide an engine of this kind, and dispose it afterwards."""
    if kind == MEMORY:
        engine = create_engine("sqlite://")
    elif kind == "package":
        engine = create_engine(f"sqlite:///{path}")
    else:
        engine = sqlalchemy.create_engine(f"sqlite:///{path}")
        if kind != "plain":
            event.listen(engine, "connect", _switch_foreign_keys_on)
        if kind == "recipe":  # SQLAlchemy's documentation: "Serializable isolation / Savepoints / Transactional DDL"
            event.listen(engine, "connect", _disable_implicit_begin)
            event.listen(engine, "begin", _begin)
    try:
        yield engine
    finally:
        engine.dispose()


def _switch_foreign_keys_on(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


def _disable_implicit_begin(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def snapshot(run: Callable[[str], Iterable[Any]]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the schema, under an empty name, and all rows of all tables."""
    found = {"": [tuple(row) for row in run("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2")]}
    for table in [name for kind, name, _, _ in found[""] if kind == "table"]:
        found[table] = sorted((tuple(row) for row in run(f'SELECT * FROM "{table}"')), key=repr)
    return found


def committed(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Return the committed content, read through a separate connection without SQLAlchemy."""
    if not engine.url.database:
        with engine.connect() as connection:
            return snapshot(connection.exec_driver_sql)
    with closing(sqlite3.connect(engine.url.database)) as other:
        return snapshot(other.execute)


def without(found: dict[str, list[tuple[Any, ...]]], *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return a snapshot without these tables and their indexes."""
    kept: dict[str, list[tuple[Any, ...]]] = {name: rows for name, rows in found.items() if name not in tables}
    return kept | {"": [row for row in found[""] if row[2] not in tables]}


def run_script(engine: Engine, script: str) -> None:
    """Run several statements and commit."""
    with engine.begin() as connection:
        for statement in script.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)


def fill(engine: Engine) -> None:
    """Store sessions with documents, errors and logs."""
    repository = SQLAlchemySessionRepository(engine)
    for number in range(3):
        session = Session(session_id=f"s{number}", concept={"title": f"idea {number}"})
        session.add_answer("budget", [1, 2.5, None])
        session.add_error("task", "it broke")
        repository.create_session(session)
        repository.append_error(session.session_id, "task", "it broke again")
        repository.append_log(session.session_id, "a line")


def foreign_keys(engine: Engine) -> bool:
    """Return whether foreign keys are enforced on a connection of the pool."""
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql("PRAGMA foreign_keys").scalar())


def scripts() -> ScriptDirectory:
    """Return the script directory of the revisions."""
    return ScriptDirectory.from_config(Config(migrate.script_folder() / "alembic.ini"))


def chain() -> list[Script]:
    """Return the revisions, oldest first."""
    return list(scripts().walk_revisions())[::-1]


HEAD = str(scripts().get_current_head())
