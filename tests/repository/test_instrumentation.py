"""Log records and spans of repository calls: statements, retries, and absence of stored values."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.databases import SQL_DATABASES, Storage, reject_inserts
from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    InMemorySessionRepository,
    SessionNotFoundError,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.integrations import opentelemetry
from vibeforge_sessions.repository import instrumentation
from vibeforge_sessions.sql import create_async_engine, create_engine
from vibeforge_sessions.testing.base import SESSION_ID, UNKNOWN_ID, full_session

SECRET = "s3cret"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    opentelemetry.instrument(provider)
    SQLAlchemyInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)
    yield exporter
    SQLAlchemyInstrumentor().uninstrument()
    opentelemetry.uninstrument()


def tree(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    """Return the calls' spans by name, each followed by its statements, and assert that no other span exists."""
    spans = exporter.get_finished_spans()
    exporter.clear()
    calls = {span.context.span_id: span for span in spans if span.name.startswith("SessionRepository.")}
    found: dict[str, list[ReadableSpan]] = {span.name.partition(".")[2]: [span] for span in calls.values()}
    assert len(found) == len(calls)
    for span in spans:
        if span.context.span_id not in calls and span.name != "connect":
            assert span.parent is not None
            found[calls[span.parent.span_id].name.partition(".")[2]].append(span)
    return found


@pytest.mark.parametrize("name", SQL_DATABASES)
def test_each_call_has_one_span_with_its_statements(
    name: str, request: pytest.FixtureRequest, spans: InMemorySpanExporter
) -> None:
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    url = storage.new_url()
    spans.clear()
    engine = create_engine(url)
    repository = SQLAlchemySessionRepository(engine)
    session = repository.create_session(full_session())
    session.add_answer(SECRET, SECRET)
    repository.update_session(session)
    repository.append_error(SESSION_ID, SECRET, SECRET)
    repository.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
    with pytest.raises(SessionNotFoundError):
        repository.append_log(UNKNOWN_ID, SECRET)
    found = tree(spans)
    assert set(found) == {"create_session", "update_session", "append_error", "modify_session", "append_log"}
    for call, (span, *statements) in found.items():
        assert span.attributes is not None
        assert span.parent is None
        assert statements, f"{call} has no statement"
        assert span.attributes["vibeforge_sessions.attempts"] == 1
        ok = call != "append_log"
        assert span.attributes["vibeforge_sessions.session_id"] == (SESSION_ID if ok else UNKNOWN_ID)
        assert span.attributes["vibeforge_sessions.outcome"] == ("ok" if ok else "SessionNotFoundError")
        assert span.status.is_ok is ok or (ok and span.status.is_unset)
        for each in (span, *statements):
            assert SECRET not in each.to_json()
            assert "it broke" not in each.to_json()  # an error message of full_session()
    versions = {call: (span.attributes or {}).get("vibeforge_sessions.version") for call, (span, *_) in found.items()}
    assert versions == {
        "create_session": 1,
        "update_session": 2,
        "append_error": None,
        "modify_session": 3,
        "append_log": None,
    }
    engine.dispose()


@pytest.mark.parametrize(
    ("name", "driver"),
    [("sqlite", None), ("postgresql", "postgresql+psycopg"), ("mariadb", "mariadb+asyncmy")],
)
def test_async_calls_have_spans_with_their_statements(
    name: str, driver: str | None, request: pytest.FixtureRequest, spans: InMemorySpanExporter
) -> None:
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    url = storage.url_with(driver) if driver else storage.new_url()

    async def work() -> None:
        engine = create_async_engine(url) if driver else create_engine(url)
        async with AsyncSQLAlchemySessionRepository(engine) as repository:
            await repository.create_session(full_session())
            spans.clear()
            await repository.append_log(SESSION_ID, SECRET)
            await repository.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
        found = tree(spans)
        assert set(found) == {"append_log", "modify_session"}
        assert all(len(statements) >= 1 for _, *statements in found.values())
        disposing = engine.dispose()
        if disposing is not None:
            await disposing

    asyncio.run(work())


def test_each_retry_is_logged_and_counted_in_span(
    postgresql: Storage, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    assert postgresql.new_url is not None
    engine = create_engine(postgresql.new_url())
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)
    reject_inserts(engine, "vibeforge_session_logs", 2)
    spans.clear()
    caplog.set_level(logging.DEBUG, logger="vibeforge_sessions")
    repository.append_log(SESSION_ID, SECRET)
    (span, *_) = tree(spans)["append_log"]
    assert span.attributes is not None
    assert span.attributes["vibeforge_sessions.attempts"] == 3
    records = [vars(record) for record in caplog.records if record.name == "vibeforge_sessions"]
    assert [(each["levelname"], each["attempts"], each.get("reason")) for each in records] == [
        ("INFO", 2, "OperationalError 40P01"),
        ("INFO", 3, "OperationalError 40P01"),
        ("DEBUG", 3, None),
    ]
    assert SECRET not in str(records)
    engine.dispose()


def test_task_started_in_a_call_logs_its_own_calls(caplog: pytest.LogCaptureFixture) -> None:
    """Start a task in a call of `modify_session`: the task inherits the call's context and outlasts the call."""
    repository = InMemorySessionRepository()
    caplog.set_level(logging.DEBUG, logger="vibeforge_sessions")

    async def work() -> None:
        started: list[asyncio.Task[None]] = []

        async def list_after_call() -> None:
            await asyncio.sleep(0)
            repository.list_sessions()

        repository.create_session(session_id=SESSION_ID)
        repository.modify_session(SESSION_ID, lambda _: started.append(asyncio.ensure_future(list_after_call())))
        await started[0]

    asyncio.run(work())
    assert [vars(record)["call"] for record in caplog.records] == ["create_session", "modify_session", "list_sessions"]


def test_call_is_not_instrumented_without_listeners(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="vibeforge_sessions")
    InMemorySessionRepository().create_session()
    assert caplog.records == []
    assert instrumentation._current.get() is None


def test_import_without_opentelemetry_names_missing_extra(tmp_path: Path) -> None:
    code = 'import sys; sys.modules["opentelemetry"] = None; import vibeforge_sessions.integrations.opentelemetry'
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.stderr.endswith("pip install 'vibeforge-sessions[otel]'\n")
