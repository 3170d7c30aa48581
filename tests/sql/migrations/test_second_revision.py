"""Migrations between this checkout and a copy of it that has one more revision.

Other processes run the copy's code. For the copy, a database of this checkout is behind. For this checkout, a database
of the copy is ahead.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from tests.support import ROOT, cases
from tests.support.migrations import (
    FILES,
    HEAD,
    OTHER_APPLICATION,
    committed,
    copy_project,
    fill,
    opened,
    run_script,
    without,
)
from vibeforge_sessions import SchemaError, SQLAlchemySessionRepository
from vibeforge_sessions.sql import metadata, migrate
from vibeforge_sessions.sql.tables import VERSION_TABLE

NEXT = "9999"
WITH_FOREIGN_KEYS = [kind for kind in FILES if kind != "plain"]

CHILD = """
import json, sys
from pathlib import Path
from tests.support.migrations import foreign_keys, opened
from vibeforge_sessions.sql import migrate

def act(answer, bind, action, *arguments):
    try:
        answer["value"] = getattr(migrate, action)(bind, *arguments)
    except Exception as error:
        answer.update(error=type(error).__name__, state=getattr(error, "state", None), text=str(error))

for line in sys.stdin:
    kind, database, how, *call = json.loads(line)
    answer = {"scripts": str(migrate.script_folder()), "error": None, "state": None, "text": "", "value": None}
    with opened(kind, Path(database)) as engine:
        if how == "engine":
            act(answer, engine, *call)
        else:
            with engine.connect() as connection:
                if how == "transaction":
                    connection.begin()
                act(answer, connection, *call)
                answer["in_transaction"] = connection.in_transaction()
                if how == "transaction":
                    connection.commit()
        answer["foreign_keys"] = foreign_keys(engine)
    print(json.dumps(answer), flush=True)
"""
"""Program that makes the requested calls of `migrate`, and prints their results."""

GOOD = (
    """
    with op.batch_alter_table("vibeforge_sessions", recreate="always") as batch:
        batch.add_column(sa.Column("colour", sa.Text(), nullable=False, server_default="red"))
    """,
    """
    with op.batch_alter_table("vibeforge_sessions", recreate="always") as batch:
        batch.drop_column("colour")
    """,
)
"""Upgrade and downgrade that recreate the parent table. With foreign keys on, this would empty the other tables."""

PARTIAL = """
    op.create_table("vibeforge_session_halves", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("UPDATE vibeforge_sessions SET phase = 'PARTIAL'")
    with op.batch_alter_table("vibeforge_sessions", recreate="always") as batch:
        batch.add_column(sa.Column("colour", sa.Text(), nullable=True))
"""


@dataclass(frozen=True)
class Copy:
    """Copy of the checkout with one more revision, and a database that this checkout has migrated and filled."""

    folder: Path
    database: Path
    kind: str
    process: subprocess.Popen[str]

    def send(self, how: str, action: str, *arguments: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([self.kind, str(self.database), how, action, *arguments]) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def ask(self, how: str, action: str, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.send(how, action, *arguments))
        assert answer["scripts"] == str(self.folder)
        assert answer["foreign_keys"] is (self.kind in WITH_FOREIGN_KEYS)
        return answer

    def committed(self) -> dict[str, list[tuple[Any, ...]]]:
        with opened("plain", self.database) as engine:
            return committed(engine)


MakeCopy = Callable[..., Copy]


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[MakeCopy]:
    processes: list[subprocess.Popen[str]] = []

    def make(kind: str, upgrade: str, downgrade: str = "pass", *, models: str = "", filled: bool = True) -> Copy:
        folder = tmp_path / "copy"
        copy_project(folder)
        lines = [
            "import sqlalchemy as sa",
            "from alembic import op",
            f"revision = {NEXT!r}",
            f"down_revision = {HEAD!r}",
        ]
        for name, body in (("upgrade", upgrade), ("downgrade", downgrade)):
            lines += [f"def {name}():", indent(dedent(body), "    ")]
        (folder / "migrations" / "versions" / "next.py").write_text("\n".join(lines))
        with (folder / "vibeforge_sessions" / "sql" / "tables.py").open("a") as tables:
            tables.write(models)
        database = tmp_path / "application.db"
        with opened(kind, database) as engine:
            run_script(engine, OTHER_APPLICATION)
            if filled:
                migrate.upgrade(engine)
                fill(engine)
        path = os.pathsep.join([str(folder), str(ROOT)])  # the package of the copy, and the tests of this checkout
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return Copy(folder, database, kind, process)

    yield make
    for process in processes:
        with process:  # closes the pipes, so that the process ends, and waits for it
            pass


def schema_error_of(kind: str, database: Path, action: str, *arguments: str) -> SchemaError:
    """Make a call with this checkout's code that must raise SchemaError, and return the error."""
    with opened(kind, database) as engine, pytest.raises(SchemaError) as caught:
        getattr(migrate, action)(engine, *arguments)
    return caught.value


# -------------------------------------------------------------------------------------------------- behind and ahead


@pytest.mark.parametrize("kind", cases(FILES, ("plain", "package")))
def test_recreating_parent_table_keeps_rows_of_other_tables(copy: MakeCopy, kind: str) -> None:
    made = copy(kind, *GOOD)
    before = made.committed()

    behind = made.ask("engine", "check")
    assert (behind["error"], behind["state"]) == ("SchemaError", "behind")
    assert f'alembic -c "{made.folder / "alembic.ini"}" upgrade head' in behind["text"]
    assert HEAD in behind["text"]
    assert NEXT in behind["text"]
    assert made.ask("engine", "current")["value"] == HEAD
    assert made.committed() == before

    assert made.ask("engine", "upgrade")["error"] is None
    after = made.committed()
    assert without(after, "vibeforge_sessions", VERSION_TABLE) == without(before, "vibeforge_sessions", VERSION_TABLE)
    assert after["vibeforge_sessions"] == [(*row, "red") for row in before["vibeforge_sessions"]]
    assert made.ask("engine", "check")["error"] is None
    assert made.ask("engine", "upgrade")["error"] is None
    assert made.committed() == after

    assert schema_error_of(kind, made.database, "check").state == "ahead"
    assert schema_error_of(kind, made.database, "upgrade").state == "ahead"
    assert NEXT in str(schema_error_of(kind, made.database, "downgrade", "base"))
    assert made.committed() == after

    assert made.ask("connection", "downgrade", HEAD)["error"] is None
    back = made.committed()
    assert {name: back[name] for name in metadata.tables} == {name: before[name] for name in metadata.tables}
    with opened(kind, made.database) as engine:
        migrate.check(engine)
        session = SQLAlchemySessionRepository(engine).get_session("s1")
    assert session is not None
    assert len(session.error_history) == 2


# The new table is missing before the upgrade. The database must be reported as behind, not as foreign.
def test_database_without_table_of_new_revision_is_behind(copy: MakeCopy) -> None:
    made = copy(
        "package",
        "op.create_table('vibeforge_session_notes', sa.Column('id', sa.Integer(), primary_key=True))",
        "op.drop_table('vibeforge_session_notes')",
        models="""
import sqlalchemy
notes = sqlalchemy.Table(
    "vibeforge_session_notes", metadata, sqlalchemy.Column("id", sqlalchemy.Integer(), primary_key=True)
)
""",
    )
    behind = made.ask("engine", "check")
    assert (behind["state"], behind["text"]) == ("behind", behind["text"])
    assert made.ask("engine", "upgrade")["error"] is None
    assert made.ask("engine", "check")["error"] is None


@pytest.mark.parametrize("kind", cases(FILES, ("plain", "package")))
def test_upgrade_in_callers_transaction_is_rejected_only_with_foreign_keys(copy: MakeCopy, kind: str) -> None:
    made = copy(kind, *GOOD)
    before = made.committed()
    answer = made.ask("transaction", "upgrade")
    if kind in WITH_FOREIGN_KEYS:
        assert answer["error"] == "SchemaError"
        assert "pass the Engine, or a Connection that is not in a transaction" in answer["text"]
        assert answer["in_transaction"]
        assert made.committed() == before
        answer = made.ask("connection", "upgrade")
        assert not answer["in_transaction"]
    assert answer["error"] is None
    after = made.committed()
    assert after[VERSION_TABLE] == [(NEXT,)]
    assert after["vibeforge_session_errors"] == before["vibeforge_session_errors"]


def test_upgrade_of_empty_database_in_callers_transaction_runs_all_revisions(copy: MakeCopy) -> None:
    made = copy("package", *GOOD, filled=False)
    assert made.ask("transaction", "upgrade")["error"] is None
    assert made.committed()[VERSION_TABLE] == [(NEXT,)]
    assert made.ask("engine", "check")["error"] is None


# ------------------------------------------------------------------------------------------------ failed migrations


@pytest.mark.parametrize("how", ["engine", "connection"])
@pytest.mark.parametrize("kind", cases(FILES, ("plain", "package")))
def test_failed_revision_changes_nothing(copy: MakeCopy, kind: str, how: str) -> None:
    made = copy(kind, PARTIAL + "\n    raise RuntimeError('halfway')")
    before = made.committed()
    answer = made.ask(how, "upgrade")
    assert (answer["error"], answer["text"]) == ("RuntimeError", "halfway")
    assert not answer.get("in_transaction")
    assert made.committed() == before
    with opened(kind, made.database) as engine:
        migrate.check(engine)


@pytest.mark.parametrize("kind", cases(FILES, ("plain", "package")))
def test_failed_statement_raises_storage_error_and_changes_nothing(copy: MakeCopy, kind: str) -> None:
    made = copy(kind, PARTIAL + "\n    op.execute(\"INSERT INTO no_such_table VALUES ('s3cret')\")")
    before = made.committed()
    answer = made.ask("engine", "upgrade")
    assert answer["error"] == "StorageError"
    assert "s3cret" not in answer["text"]
    assert made.committed() == before


@pytest.mark.parametrize("kind", cases(FILES, ("plain", "package")))
def test_failed_second_revision_undoes_first_revision(copy: MakeCopy, kind: str) -> None:
    made = copy(kind, PARTIAL + "\n    raise RuntimeError('halfway')", filled=False)
    before = made.committed()
    assert made.ask("engine", "upgrade")["error"] == "RuntimeError"
    assert made.committed() == before


@pytest.mark.parametrize("kind", cases(FILES, ("plain", "package")))
def test_killed_process_changes_nothing(copy: MakeCopy, kind: str) -> None:
    made = copy(kind, PARTIAL + "\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)")
    before = made.committed()
    assert made.send("engine", "upgrade") == ""
    assert made.process.wait() == -signal.SIGKILL
    assert made.committed() == before
    with opened(kind, made.database) as engine:
        migrate.check(engine)


@pytest.mark.parametrize("how", ["engine", "connection"])
@pytest.mark.parametrize("kind", cases(FILES, ("plain", "package")))
def test_revision_that_breaks_foreign_keys_is_rejected(copy: MakeCopy, kind: str, how: str) -> None:
    made = copy(kind, "op.execute(\"DELETE FROM vibeforge_sessions WHERE session_id = 's1'\")")
    before = made.committed()
    answer = made.ask(how, "upgrade")
    assert answer["error"] == "SchemaError"
    assert "refer to missing sessions" in answer["text"]
    assert not answer.get("in_transaction")
    assert made.committed() == before
    with opened(kind, made.database) as engine:
        migrate.check(engine)


def test_orphaned_rows_prevent_migration_but_not_start(copy: MakeCopy) -> None:
    made = copy("plain", *GOOD)
    with opened("plain", made.database) as engine:
        run_script(engine, "DELETE FROM vibeforge_sessions WHERE session_id = 's1'")
        before = committed(engine)
        migrate.upgrade(engine)
    answer = made.ask("engine", "upgrade")
    assert answer["error"] == "SchemaError"
    assert "refer to missing sessions" in answer["text"]
    assert made.committed() == before


def test_failed_downgrade_changes_nothing(copy: MakeCopy) -> None:
    made = copy("package", GOOD[0], GOOD[1] + "\n    raise RuntimeError('halfway')")
    assert made.ask("engine", "upgrade")["error"] is None
    before = made.committed()
    for revision in (HEAD, "base"):
        assert made.ask("engine", "downgrade", revision)["error"] == "RuntimeError"
        assert made.committed() == before
