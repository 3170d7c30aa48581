"""Bad input, as an attacker would: only our errors, nothing of it in them, nothing written, bounded in all."""

from __future__ import annotations

import copy
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.databases import DATABASES, Storage
from tests.faults.hostile import ENDLESS, HOSTILE, MARK, picks, value_of
from tests.faults.writes import dump
from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    RetryPolicy,
    SessionRepository,
    SessionRepositoryError,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.testing.aio import FromOtherThreads, event_loop
from vibeforge_sessions.testing.base import full_session

THERE = "there"
STATEMENT = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)\s+\S")


class Records(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.getMessage()} {sorted(vars(record).items(), key=lambda item: item[0])!r}")


@contextmanager
def recorded(name: str | None) -> Iterator[Records]:
    """Keep what a logger and those below it are told, at DEBUG."""
    logger, handler = logging.getLogger(name), Records()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class Target:
    """A repository with a session in it, and what it logs."""

    def __init__(self, repository: SessionRepository, contents: Callable[[], Any], records: Records) -> None:
        self.repository = repository
        self.contents = contents
        self.records = records
        self.before: Any = None
        self.reset()

    def reset(self) -> None:
        """Have one session in it, unless it has just that."""
        if self.before is None or self.contents() != self.before:
            for session_id in self.repository.list_sessions():
                self.repository.delete_session(session_id)
            self.repository.create_session(full_session(THERE))
            self.before = self.contents()
        self.records.texts.clear()

    def call(self, call: Callable[[], Any]) -> bool:
        """Make a call; tell whether it was refused, as the contract says."""
        try:
            call()
        except SessionRepositoryError as error:
            check_shown(error)
            assert self.contents() == self.before
            return True
        finally:
            for text in self.records.texts:
                assert MARK not in text
        return False


def check_shown(error: BaseException | None) -> None:
    """Look at all that a log would show of an error, its causes included."""
    assert len(str(error)) < 20_000
    while error is not None:
        shown = f"{error} {error!r} {''.join(traceback.format_exception_only(error))}"
        assert MARK not in shown
        assert not STATEMENT.search(shown)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _of_memory(repository: Any) -> Callable[[], Any]:
    return lambda: {key: copy.deepcopy(each) for key, each in repository._sessions.items()}


ASYNCHRONOUS = {"sqlite": None, "postgresql": "postgresql+asyncpg", "mariadb": "mariadb+asyncmy"}


@pytest.fixture(scope="module", params=[*DATABASES, *(f"{name}, asynchronous" for name in ASYNCHRONOUS)])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """One repository for all examples of a test."""
    name, _, asynchronous = request.param.partition(",")
    storage: Storage = request.getfixturevalue(name)
    with ExitStack() as stack:
        # everybody's records on the asynchronous side: with ours alone the engines are not watched
        records = stack.enter_context(recorded(None if asynchronous else "vibeforge_sessions"))
        if storage.new_url is None:
            repository = stack.enter_context(storage.repositories())()
            yield Target(repository, _of_memory(repository), records)
            return
        url = storage.new_url()
        looking = create_engine(url)
        stack.callback(looking.dispose)
        retry = RetryPolicy(deadline=5.0)
        if asynchronous:
            run = stack.enter_context(event_loop())
            driver = ASYNCHRONOUS[name]
            engine = create_engine(url) if driver is None else create_async_engine(looking.url.set(drivername=driver))
            shell = AsyncSQLAlchemySessionRepository(engine, retry=retry)
            stack.callback(lambda: run(shell.close()))
            repository = FromOtherThreads(shell, run)
        else:
            repository = SQLAlchemySessionRepository(looking, retry=retry)
        yield Target(repository, lambda: dump(looking), records)


# --- every call of a repository ---

VALID: dict[str, dict[str, Any]] = {
    "create_session": {"session": None, "session_id": None},
    "get_session": {"session_id": THERE, "recent": None},
    "update_session": {"session": None},
    "delete_session": {"session_id": THERE},
    "modify_session": {"session_id": THERE, "change": lambda session: session.add_log("changed"), "attempts": 3},
    "list_sessions": {"filter": None},
    "find_sessions": {"filter": None, "order": "created_at", "limit": 10, "cursor": None},
    "append_error": {"session_id": THERE, "task_id": "t", "error_message": "m", "phase": None},
    "append_log": {"session_id": THERE, "message": "m"},
    "list_errors": {"session_id": THERE, "after": 0, "limit": 10, "task_id": None, "phase": None},
    "list_logs": {"session_id": THERE, "after": 0, "limit": 10},
}
ARGUMENTS = [(call, name) for call, arguments in VALID.items() for name in arguments if name != "change"]


DIAGNOSTICS = {"task_id", "error_message", "message", "phase"}
"""Never refused: what is no text becomes its ``str()``."""


def hostile_for(name: str) -> dict[str, Any]:
    return {pick: value for pick, value in HOSTILE.items() if name not in DIAGNOSTICS or pick not in ENDLESS}


def test_every_call_of_the_contract_is_asked(target: Target) -> None:
    abstract = SessionRepository.__abstractmethods__ | {"modify_session"}
    assert abstract == VALID.keys()
    for call, arguments in VALID.items():
        if call != "update_session":
            assert not target.call(lambda: getattr(target.repository, call)(**arguments))  # noqa: B023
            target.reset()


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
def test_each_hostile_value_as_each_argument(target: Target, call: str, name: str) -> None:
    refused = set()
    for pick, value in hostile_for(name).items():
        if target.call(lambda: getattr(target.repository, call)(**VALID[call] | {name: value})):  # noqa: B023
            refused.add(pick)
        target.reset()
    assert bool(refused) == (name not in DIAGNOSTICS)


@given(picked=st.lists(st.tuples(st.sampled_from(ARGUMENTS), picks), min_size=1, max_size=4))
def test_hostile_values_together(target: Target, picked: list[tuple[tuple[str, str], str]]) -> None:
    call = picked[0][0][0]
    arguments = {
        name: value_of(pick)
        for (of, name), pick in picked
        if of == call and (name not in DIAGNOSTICS or pick not in ENDLESS)
    }
    target.call(lambda: getattr(target.repository, call)(**VALID[call] | arguments))
    target.reset()
