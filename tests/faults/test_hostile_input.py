"""Hostile values in every argument of every repository call.

A call either stores the value or raises an error of the package that does not show it. A rejected call writes nothing,
and every call ends.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support import cases
from tests.support.databases import DATABASES, Storage
from tests.support.faults.hostile import ENDLESS, HOSTILE, MARK, TEXTS, picks, value_of
from tests.support.faults.shown import Records, check_shown, records_of
from tests.support.faults.writes import dump
from vibeforge_sessions import (
    AsyncSessionRepository,
    AsyncSQLAlchemySessionRepository,
    ErrorEntry,
    RetryPolicy,
    Session,
    SessionRepository,
    SessionRepositoryError,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.model.record import Content
from vibeforge_sessions.repository.serialization import DOCUMENTS, Record
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.testing.aio import BlockingRepositoryAdapter, event_loop
from vibeforge_sessions.testing.base import exact, full_session, stored

EXISTING = "there"
LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)


class Target:
    """A repository with one session, and the records that it logs."""

    def __init__(self, name: str, repository: SessionRepository, contents: Callable[[], Any], records: Records) -> None:
        self.repository = repository
        self.contents = contents
        self.records = records
        self.is_adapter = isinstance(repository, BlockingRepositoryAdapter)
        self.every = 8 if self.is_adapter else 1 if name in {"memory", "sqlite"} else 4
        self.before: Any = None
        self.reset()

    def reset(self) -> None:
        """Delete all sessions and create one."""
        for session_id in self.repository.list_sessions():
            self.repository.delete_session(session_id)
        self.repository.create_session(full_session(EXISTING))
        self.before = self.contents()
        self.records.texts.clear()

    def call(self, call: Callable[[], Any]) -> bool:
        """Make a call and return whether it was rejected; check the guarantees for rejected calls."""
        rejected = False
        try:
            call()
        except SessionRepositoryError as error:
            rejected = True
            check_shown(error, MARK)
        for text in self.records.texts:
            assert MARK not in text
        self.records.texts.clear()
        if self.contents() != self.before:
            assert not rejected
            self.reset()
        return rejected


def _of_memory(repository: Any) -> Callable[[], Any]:
    return lambda: {key: copy.deepcopy(each) for key, each in repository._sessions.items()}


async def closed(repository: AsyncSessionRepository, engine: Engine | AsyncEngine) -> None:
    await repository.close()
    if isinstance(engine, Engine):
        engine.dispose()
    else:
        await engine.dispose()


ASYNCHRONOUS = {"sqlite": None, "postgresql": "postgresql+asyncpg", "mariadb": "mariadb+asyncmy"}


@pytest.fixture(
    scope="module",
    params=cases(
        [*DATABASES, *(f"{name}, asynchronous" for name in ASYNCHRONOUS)],
        ("memory",),
    ),
)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Provide one repository for all examples of a test."""
    name, _, asynchronous = request.param.partition(",")
    storage: Storage = request.getfixturevalue(name)
    with ExitStack() as stack:
        # asynchronous calls: capture the records of all loggers, which makes the engines instrumented
        records = stack.enter_context(records_of(None if asynchronous else "vibeforge_sessions"))
        if storage.new_url is None:
            repository = stack.enter_context(storage.repositories())()
            yield Target(name, repository, _of_memory(repository), records)
            return
        url = storage.new_url()
        direct = create_engine(url)
        stack.callback(direct.dispose)
        retry = RetryPolicy(deadline=5.0)
        if asynchronous:
            run = stack.enter_context(event_loop())
            driver = ASYNCHRONOUS[name]
            engine = create_engine(url) if driver is None else create_async_engine(direct.url.set(drivername=driver))
            adapter = AsyncSQLAlchemySessionRepository(engine, retry=retry)
            stack.callback(lambda: run(closed(adapter, engine)))
            repository = BlockingRepositoryAdapter(adapter, run)
        else:
            repository = SQLAlchemySessionRepository(direct, retry=retry)
        yield Target(name, repository, lambda: dump(direct), records)


# --- arguments of repository calls ---

ID_LISTS = {"completed_task_ids", "failed_task_ids"}
ENTRY = ErrorEntry(LONG_AGO, "t", "m", "IDEA", 1)
RECORD = Record(
    session_id="restored",
    created_at=LONG_AGO,
    updated_at=LONG_AGO,
    version=7,
    write_id="0" * 32,
    error_count=1,
    log_count=1,
    content=Content("IDEA", 0, "t", {name: "[]" if name in ID_LISTS else "{}" for name in DOCUMENTS}),
)

VALID: dict[str, dict[str, Any]] = {
    "create_session": {"session": None, "session_id": None},
    "get_session": {"session_id": EXISTING, "recent": None},
    "update_session": {"session": None},
    "delete_session": {"session_id": EXISTING, "unchanged_since": None},
    "modify_session": {"session_id": EXISTING, "change": lambda session: session.add_log("changed"), "attempts": 3},
    "list_sessions": {"filter": None},
    "find_sessions": {"filter": None, "order": "created_at", "limit": 10, "cursor": None},
    "append_error": {"session_id": EXISTING, "task_id": "t", "error_message": "m", "phase": None},
    "append_log": {"session_id": EXISTING, "message": "m"},
    "list_errors": {"session_id": EXISTING, "after": 0, "limit": 10, "task_id": None, "phase": None},
    "list_logs": {"session_id": EXISTING, "after": 0, "limit": 10},
    "hold_session": {"session_id": EXISTING},
    "release_session": {"session_id": EXISTING},
    "get_record": {"session_id": EXISTING},
    "restore_record": {"record": RECORD, "errors": [ENTRY], "logs": ["line"], "replacing": None},
}
ARGUMENTS = [(call, name) for call, arguments in VALID.items() for name in arguments if name != "change"]


DIAGNOSTICS = {"task_id", "error_message", "message", "phase", "logs", "error_history"}
"""Arguments that never reject a value: other types are converted with ``str()``."""


_UNREADABLE_FROM_ASYNCPG = {"the first time", "the last time"}
"""asyncpg stores these times as infinities, which other drivers cannot read."""


def hostile_for(target: Target, name: str) -> dict[str, Any]:
    """Return all hostile values for a fast repository, and a part of them for a server or an adapter."""
    left_out = (ENDLESS if name in DIAGNOSTICS else set()) | (_UNREADABLE_FROM_ASYNCPG if target.is_adapter else set())
    found = [pick for pick in HOSTILE if pick not in left_out]
    return {pick: HOSTILE[pick] for pick in found[len(name) % target.every :: target.every]}


def test_every_call_of_the_contract_has_valid_arguments(target: Target) -> None:
    abstract = SessionRepository.__abstractmethods__ | {"modify_session"}
    assert abstract == VALID.keys()
    for call, arguments in VALID.items():
        if call != "update_session":
            assert not target.call(lambda: getattr(target.repository, call)(**arguments))  # noqa: B023


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
def test_hostile_value_in_an_argument_is_rejected_or_stored(target: Target, call: str, name: str) -> None:
    rejected = set()
    for pick, value in hostile_for(target, name).items():
        if target.call(lambda: getattr(target.repository, call)(**VALID[call] | {name: value})):  # noqa: B023
            rejected.add(pick)
    assert bool(rejected) == (name not in DIAGNOSTICS or call == "restore_record")


@given(picked=st.lists(st.tuples(st.sampled_from(ARGUMENTS), picks), min_size=1, max_size=4))
def test_hostile_values_in_several_arguments_are_rejected_or_stored(
    target: Target, picked: list[tuple[tuple[str, str], str]]
) -> None:
    call = picked[0][0][0]
    arguments = {
        name: value_of(pick)
        for (of, name), pick in picked
        if of == call and (name not in DIAGNOSTICS or pick not in ENDLESS)
    }
    target.call(lambda: getattr(target.repository, call)(**VALID[call] | arguments))


# --- records ---

RECORD_FIELDS = [field.name for field in dataclasses.fields(Record)]
CONTENT_FIELDS = [field.name for field in dataclasses.fields(Content)]
ENTRY_FIELDS = [field.name for field in dataclasses.fields(ErrorEntry)]


def restoring(field: str, value: Any) -> dict[str, Any]:
    """Return the arguments of `restore_record` with one value replaced."""
    place, _, name = field.partition(" ")
    content = RECORD.content
    if place == "record":
        return {"record": dataclasses.replace(RECORD, **{name: value})}
    if place == "content":
        return {"record": dataclasses.replace(RECORD, content=dataclasses.replace(content, **{name: value}))}
    if place == "document":
        content = dataclasses.replace(content, documents={**content.documents, name: value})
        return {"record": dataclasses.replace(RECORD, content=content)}
    if place == "entry":
        return {"errors": [dataclasses.replace(ENTRY, **{name: value})]}
    if place == "replacing":
        return {"replacing": dataclasses.replace(RECORD, **{name: value})}
    return {place: [value]}


RESTORED = [
    *(f"record {name}" for name in RECORD_FIELDS if name not in {"write_id", "held_at"}),
    *(f"content {name}" for name in CONTENT_FIELDS),
    *(f"document {name}" for name in DOCUMENTS),
    *(f"entry {name}" for name in ENTRY_FIELDS),
    *(f"replacing {name}" for name in ("version", "write_id", "error_count", "log_count")),
    "record held_at",
    "errors",
    "logs",
]


@pytest.mark.parametrize("field", RESTORED)
def test_hostile_value_in_a_record_is_rejected_or_stored(target: Target, field: str) -> None:
    rejected = set()
    for pick, value in hostile_for(target, field).items():
        arguments = VALID["restore_record"] | restoring(field, value)
        if target.call(lambda: target.repository.restore_record(**arguments)):  # noqa: B023
            rejected.add(pick)
        if "replacing" in arguments and arguments["replacing"] is not None:
            seen = arguments["replacing"]
            target.call(lambda: target.repository.delete_session(EXISTING, unchanged_since=seen))  # noqa: B023
    assert rejected


# --- sessions ---

FIELDS = sorted(Session.model_fields)
INSIDE: dict[str, Callable[[Any], Any]] = {
    "answers": lambda value: {"a": [1, {"b": value}]},
    "concept": lambda value: {"a": {"b": [value]}},
    "clarification_answer": lambda value: [value, {"a": value}],
    "completed_task_ids": lambda value: ["t", value],
    "error_history": lambda value: [{"task_id": value, "error_message": value, "phase": value}],
    "logs": lambda value: ["line", value],
}
"""Nested places for a value inside a field."""

EXACT = {"answers", "concept", "clarification_answer"}
STORABLE = TEXTS.keys() - {"a pair of surrogates"}
"""Unusual texts that are valid JSON."""


def store(target: Target, session: Session) -> bool:
    """Store a session and return whether it was rejected; a stored session must read back exactly equal."""

    def call() -> None:
        target.repository.update_session(session)
        if target.contents() != target.before:
            assert exact(stored(target.repository, session.session_id).to_dict()) == exact(session.to_dict())

    return target.call(call)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("new", cases([True, False], [False]), ids=["new session", "existing session"])
def test_hostile_value_in_a_session_field_is_rejected_or_stored(target: Target, field: str, new: bool) -> None:
    for pick, value in hostile_for(target, field).items():
        for place in (None, INSIDE.get(field)):
            session = full_session("new") if new else stored(target.repository, EXISTING)
            setattr(session, field, value if place is None else place(value))
            rejected = store(target, session)
            assert not (rejected and place is not None and field in EXACT and pick in STORABLE)


@given(
    picked=st.lists(st.tuples(st.sampled_from(FIELDS), st.booleans(), picks), min_size=1, max_size=4),
    new=st.booleans(),
)
def test_hostile_values_in_several_fields_are_rejected_or_stored(
    target: Target, picked: list[tuple[str, bool, str]], new: bool
) -> None:
    session = full_session("new") if new else stored(target.repository, EXISTING)
    for field, inside, pick in picked:
        value = value_of(pick) if pick in hostile_for(target, field) or pick not in HOSTILE else None
        setattr(session, field, INSIDE[field](value) if inside and field in INSIDE else value)
    store(target, session)
