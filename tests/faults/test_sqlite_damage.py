"""Damaged SQLite files: each call answers correctly, or raises an error that reports the damage."""

from __future__ import annotations

import functools
import random
import re
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.support import cases
from tests.support.faults.writes import WRITES, is_done
from tests.support.repositories import SQLiteFiles
from vibeforge_sessions import (
    CorruptSessionError,
    SchemaError,
    Session,
    SessionFilter,
    SessionPhase,
    SessionRepository,
    SQLAlchemySessionRepository,
    StorageError,
    open_repository,
)
from vibeforge_sessions.sql import create_engine

PAGE = 4096
UNREAD = (
    "vibeforge_sessions_compatibility",
    "sqlite_autoindex_vibeforge_sessions_compatibility",
    "sqlite_autoindex_vibeforge_sessions_alembic",
)
"""Tables and indexes that no call reads."""
SESSIONS = 6

REPORTED = re.compile("damaged|SQLITE_CONSTRAINT")
"""Texts that report damage; SQLITE_CONSTRAINT occurs if two tables contradict each other."""

READS: list[Callable[[SessionRepository], Any]] = [
    *(
        lambda repository, order=order: repository.find_sessions(order=order)
        for order in ("created_at", "-created_at", "updated_at", "-updated_at")
    ),
    lambda repository: repository.find_sessions(SessionFilter(phases=[SessionPhase.QUESTIONNAIRE])),
    lambda repository: repository.list_sessions(),
    *(lambda repository, number=number: repository.get_session(f"s{number}") for number in range(SESSIONS)),
    *(lambda repository, number=number: repository.list_errors(f"s{number}") for number in range(SESSIONS)),
    *(lambda repository, number=number: repository.list_logs(f"s{number}") for number in range(SESSIONS)),
]


def shown(error: BaseException) -> str:
    """Return every text of an error and its causes that a log would show."""
    return f"{error} {error!r} {''.join(traceback.format_exception(error))}"


class Damage:
    """A database file whose content can be replaced repeatedly."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_repository(f"sqlite:///{path}") as repository:
            for number in range(SESSIONS):
                session = Session(session_id=f"s{number}", answers={"text": "x" * (number * 1500)}, concept={"a": 1})
                for entry in range(number * 4):
                    session.add_error(f"t{entry}", "x" * 300)
                    session.add_log("x" * 200)
                repository.create_session(session)
            self.correct = [read(repository) for read in READS]
        self.good = path.read_bytes()
        self.pages = len(self.good) // PAGE
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA page_size").fetchone() == (PAGE,)
            self.roots: dict[str, int] = dict(
                connection.execute("SELECT name, rootpage - 1 FROM sqlite_master WHERE rootpage")
            )
        self.engine: Engine = create_engine(f"sqlite:///{path}")
        self.repositories = [
            SQLAlchemySessionRepository(self.engine, fast_path=fast_path) for fast_path in (True, False)
        ]

    def put(self, data: bytes) -> None:
        """Replace the content of the file, which no connection may have open."""
        self.engine.dispose()
        for name in (self.path, *self.path.parent.glob(f"{self.path.name}-*")):
            name.unlink()
        self.path.write_bytes(data)

    def noticed(self, data: bytes, reported: re.Pattern[str] = REPORTED) -> bool:
        """Make every call with other bytes in the file; return whether one of them has reported the damage."""
        rejected_by = functools.partial(rejection, reported=reported)
        rejections = []
        for repository in self.repositories:
            self.put(data)
            for read, correct in zip(READS, self.correct, strict=True):
                rejections.append(rejected_by(functools.partial(read, repository), correct))
            self.put(data)
            for number, write in enumerate(WRITES, 1):
                rejections.append(rejected_by(functools.partial(write, repository, f"s{number}"), None))
                if rejections[-1] is None:
                    rejections.append(rejected_by(functools.partial(is_done, write, repository, f"s{number}"), True))
        self.put(data)
        rejections.append(rejected_by(lambda: open_repository(f"sqlite:///{self.path}").close(), None))
        return any(rejections)


def rejection(call: Callable[[], Any], correct: Any, reported: re.Pattern[str] = REPORTED) -> Exception | None:
    """Make a call, which must return the correct answer or raise an error that reports damage; return the error."""
    try:
        answer = call()
    except (CorruptSessionError, SchemaError) as error:
        return error
    except StorageError as error:
        if not reported.search(str(error)):
            raise
        return error
    assert answer == correct
    return None


@pytest.fixture(scope="module")
def damage(sqlite_files: SQLiteFiles) -> Iterator[Damage]:
    """Provide one file for all tests."""
    made = Damage(Path(sqlite_files.new_url().removeprefix("sqlite:///")))
    assert not made.noticed(made.good)
    yield made
    assert not made.noticed(made.good)
    made.engine.dispose()


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    "kind", cases(["zeros", "noise", "other noise", "wrong page type"], ["noise", "wrong page type"])
)
def test_damaged_page_is_reported_or_irrelevant(damage: Damage, kind: str) -> None:
    noise = random.Random(kind)
    noticed = set()
    for page in range(damage.pages):
        new = {"zeros": bytes(PAGE), "wrong page type": b"\x07"}.get(kind) or noise.randbytes(PAGE)
        if damage.noticed(replaced(damage.good, page * PAGE, new)):
            noticed.add(page)
    unnoticed = {name for name, page in damage.roots.items() if page not in noticed}
    assert {name for name in unnoticed if not name.startswith(UNREAD)} == set()


def test_damaged_header_is_reported_or_irrelevant(damage: Damage) -> None:
    noise = random.Random("header")
    assert damage.noticed(replaced(damage.good, 0, b"PNG"))
    for field in range(0, 100, 4):
        for new in (bytes(4), b"\xff" * 4, noise.randbytes(4)):
            # most fields do not concern the rows; SQLite reports an unknown file format as SQLITE_ERROR
            damage.noticed(replaced(damage.good, field, new), re.compile(f"{REPORTED.pattern}|SQLITE_ERROR"))


def test_truncated_file_is_reported(damage: Damage) -> None:
    for size in (0, 1, 50, 100, 1000, PAGE, PAGE + 1, *range(2 * PAGE, len(damage.good), 3 * PAGE + 512)):
        assert damage.noticed(damage.good[:size])


def test_zeroed_pages_are_reported_or_irrelevant(damage: Damage) -> None:
    for start in range(1, damage.pages, 3):
        damage.noticed(replaced(damage.good, start * PAGE, bytes(8 * PAGE))[: len(damage.good)])


SECRET = "5ecret"


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(
    ("column", "call"),
    [
        ("session_documents SET answers", lambda repository: repository.get_session("s2")),
        ("session_errors SET error_message", lambda repository: repository.list_errors("s2")),
        ("session_logs SET message", lambda repository: repository.list_logs("s2")),
        ("sessions SET phase", lambda repository: repository.find_sessions()),
        ("sessions SET phase", lambda repository: repository.append_error("s2", "t", "m")),
    ],
    ids=["document", "error message", "log message", "phase in a list", "phase of an append"],
)
def test_text_that_is_not_utf8_is_reported_without_its_content(
    damage: Damage, column: str, call: Callable[[SessionRepository], Any], fast_path: bool
) -> None:
    damage.put(damage.good)
    broken = f'{{"text":"{SECRET}'.encode() + b"\xff\xfe"
    with damage.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE vibeforge_{column} = CAST(x'{broken.hex()}' AS TEXT)")
    repository = SQLAlchemySessionRepository(damage.engine, fast_path=fast_path)
    error = rejection(functools.partial(call, repository), None)
    assert error is not None
    assert SECRET not in shown(error)
