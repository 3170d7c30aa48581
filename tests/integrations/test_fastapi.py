"""The FastAPI integration: lifespan, dependency, and HTTP statuses of repository errors, on real databases."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket
from sqlalchemy import make_url

from tests.support.databases import Storage
from tests.support.servers import AvailableServer
from vibeforge_sessions import (
    AsyncInMemorySessionRepository,
    AsyncSessionRepository,
    ConfigurationError,
    CorruptSessionError,
    InvalidArgumentError,
    OutcomeUnknownError,
    RetryPolicy,
    SchemaError,
    Session,
    SessionNotFoundError,
    SQLAlchemySessionRepository,
    StorageError,
)
from vibeforge_sessions.integrations.fastapi import (
    RESPONSES,
    Repository,
    get_repository,
    install_error_handlers,
    lifespan,
)
from vibeforge_sessions.sql import create_engine

SECRET = "s3cret"
SHORT_RETRY = RetryPolicy(deadline=2.0)


class AbortableSession(Session):
    is_aborted: bool = False


def application(app_lifespan: Any) -> FastAPI:
    """Return an application with endpoints that use the repository."""
    app = FastAPI(lifespan=app_lifespan, responses=RESPONSES)
    install_error_handlers(app)

    @app.post("/sessions/{session_id}", status_code=201)
    async def start(session_id: str, repository: Repository) -> dict[str, Any]:
        return (await repository.create_session(session_id=session_id)).to_dict()

    @app.get("/sessions/{session_id}")
    async def show(session_id: str, repository: Repository) -> dict[str, Any]:
        session = await repository.get_session(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session.to_dict()

    @app.put("/sessions/{session_id}")
    async def store(session_id: str, repository: Repository, session: dict[str, Any]) -> int:
        given = Session.from_dict(session)
        await repository.update_session(given)
        return given.version

    @app.post("/sessions/{session_id}/abort")
    async def abort(
        session_id: str, repository: Annotated[AsyncSessionRepository[AbortableSession], Depends(get_repository)]
    ) -> bool:
        session = await repository.modify_session(session_id, lambda session: setattr(session, "is_aborted", True))
        return session.is_aborted

    return app


def run_with_client(app: FastAPI, ask: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Start the application, run `ask` with an HTTP client, and shut the application down."""

    async def work() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
        ):
            await ask(client)

    asyncio.run(work())


def test_each_repository_error_has_its_status(url: str) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        created = await client.post("/sessions/s-1")
        assert (created.status_code, created.json()["version"]) == (201, 1)
        answer = await client.post("/sessions/s-1")
        assert (answer.status_code, answer.json()) == (
            409,
            {
                "error": "SessionExistsError",
                "detail": "session 's-1' already exists: choose another id, or read that session",
                "session_id": "s-1",
            },
        )
        answer = await client.get("/sessions/missing")
        assert (answer.status_code, answer.json()["session_id"]) == (404, "missing")
        first, second = created.json(), created.json()
        first["answers"] = {"q": 1}
        second["answers"] = {"q": 2}
        assert (await client.put("/sessions/s-1", json=first)).json() == 2
        answer = await client.put("/sessions/s-1", json=second)
        assert answer.status_code == 409
        body = answer.json()
        assert (body["error"], body["version"], body["stored_version"]) == ("StaleSessionError", 1, 2)
        assert "Retry-After" not in answer.headers
        answer = await client.put("/sessions/s-1", json={**first, "phase": SECRET})
        assert (answer.status_code, answer.json()["path"]) == (422, "phase")
        assert SECRET not in answer.text
        answer = await client.get("/sessions/no%20id")
        assert answer.status_code == 422
        assert (answer.json()["error"], answer.json()["argument"]) == ("InvalidArgumentError", "session_id")

    run_with_client(application(lifespan(url)), ask)


def test_lifespan_accepts_session_subclass(url: str) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        await client.post("/sessions/s-1")
        assert (await client.post("/sessions/s-1/abort")).json() is True
        assert (await client.get("/sessions/s-1")).json()["is_aborted"] is True

    run_with_client(application(lifespan(url, session_type=AbortableSession)), ask)


def test_unreadable_session_is_status_500_without_its_value(url: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine(url)
    SQLAlchemySessionRepository(engine).create_session(session_id="s-1")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE vibeforge_sessions SET phase = '{SECRET}'")
    engine.dispose()

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.get("/sessions/s-1")
        assert (answer.status_code, answer.json()["session_id"]) == (500, "s-1")
        assert SECRET not in answer.text

    run_with_client(application(lifespan(url)), ask)
    assert [record.levelname for record in caplog.records if record.name == "vibeforge_sessions"] == ["ERROR"]


def test_locked_database_is_status_503(sqlite: Storage) -> None:
    assert sqlite.new_url is not None
    url = f"{sqlite.new_url()}?timeout=0.05"

    async def ask(client: httpx.AsyncClient) -> None:
        lock = sqlite3.connect(str(make_url(url).database), isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        answer = await client.post("/sessions/s-1")
        lock.close()
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json() == {
            "error": "StorageError",
            "detail": "the session store is currently unavailable; nothing was stored",
        }
        assert (await client.post("/sessions/s-1")).status_code == 201

    run_with_client(application(lifespan(url, retry=SHORT_RETRY)), ask)


@pytest.mark.parametrize(("attempts", "retries"), [(1, 0), (3, 2)])
def test_lifespan_sets_number_of_attempts(
    sqlite: Storage, attempts: int, retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert sqlite.new_url is not None
    url = f"{sqlite.new_url()}?timeout=0.05"
    caplog.set_level(logging.INFO, "vibeforge_sessions")

    async def ask(client: httpx.AsyncClient) -> None:
        with closing(sqlite3.connect(str(make_url(url).database), isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            assert (await client.post("/sessions/s-1")).status_code == 503

    run_with_client(application(lifespan(url, retry=RetryPolicy(attempts=attempts, first_delay=0.01))), ask)
    levels = [record.levelname for record in caplog.records if record.name == "vibeforge_sessions"]
    assert levels.count("INFO") == retries


def test_unreachable_server_is_status_503(postgresql_server: AvailableServer) -> None:
    with postgresql_server.databases.database(migrated=False) as url:
        text = url.render_as_string(hide_password=False)

        async def ask(client: httpx.AsyncClient) -> None:
            assert (await client.post("/sessions/s-1")).status_code == 201
            engine = create_engine(url.set(database="postgres"))
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
                admin.exec_driver_sql(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false')
                admin.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    f"WHERE datname = '{url.database}' AND pid <> pg_backend_pid()"
                )
                for _ in range(2):
                    answer = await client.get("/sessions/s-1")
                    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
                    assert str(url.database) not in answer.text
                admin.exec_driver_sql(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true')
            engine.dispose()
            assert (await client.get("/sessions/s-1")).status_code == 200

        run_with_client(application(lifespan(text, migrate=True, retry=SHORT_RETRY)), ask)


def test_unknown_outcome_and_configuration_errors_have_statuses() -> None:
    """Raise the errors in endpoints, because an unknown outcome needs a connection that breaks during COMMIT."""
    app = application(lifespan("memory://"))

    @app.get("/unknown")
    async def unknown() -> None:
        raise OutcomeUnknownError(SECRET)

    @app.get("/schema")
    async def schema() -> None:
        raise SchemaError(SECRET)

    @app.get("/configuration")
    async def configuration() -> None:
        raise ConfigurationError(SECRET)

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.get("/unknown")
        assert (answer.status_code, answer.json()["error"]) == (503, "OutcomeUnknownError")
        assert "read the session before" in answer.json()["detail"]
        assert "Retry-After" not in answer.headers
        answer = await client.get("/schema")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert SECRET not in answer.text
        answer = await client.get("/configuration")
        assert (answer.status_code, answer.json()["error"]) == (500, "ConfigurationError")
        assert "Retry-After" not in answer.headers
        assert SECRET not in answer.text

    run_with_client(app, ask)


def test_missing_schema_or_server_prevents_startup(tmp_path: Path) -> None:
    async def ask(_client: httpx.AsyncClient) -> None:
        pytest.fail("the application must not start")

    with pytest.raises(SchemaError, match="db upgrade"):
        run_with_client(application(lifespan(f"sqlite:///{tmp_path / 'empty.db'}")), ask)
    with pytest.raises(StorageError):
        run_with_client(application(lifespan("mysql+asyncmy://u:s3cret@127.0.0.1:1/d")), ask)


def test_lifespan_inside_lifespan_of_application(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIBEFORGE_SESSIONS_DATABASE_URL", f"sqlite:///{tmp_path / 'x.db'}")
    monkeypatch.setenv("VIBEFORGE_SESSIONS_MIGRATE", "1")
    events: list[str] = []
    opened: list[Any] = []

    @asynccontextmanager
    async def application_lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan()(app):
            opened.append(app.state.session_repository)
            events.append("began")
            yield
            assert opened[0]._threads
            events.append("ended")

    async def ask(client: httpx.AsyncClient) -> None:
        assert (await client.post("/sessions/s-1")).status_code == 201

    app = application(application_lifespan)
    run_with_client(app, ask)
    assert not hasattr(app.state, "session_repository")
    assert not opened[0]._threads  # its threads have ended and closed their connections
    assert opened[0]._owned.pool.checkedin() == 0
    assert events == ["began", "ended"]

    async def ask_without_lifespan(client: httpx.AsyncClient) -> None:
        with pytest.raises(RuntimeError, match="lifespan"):
            await client.get("/sessions/s-1")

    run_with_client(application(None), ask_without_lifespan)


def test_dependency_override_replaces_repository(caplog: pytest.LogCaptureFixture) -> None:
    app = application(None)
    repository = AsyncInMemorySessionRepository()
    app.dependency_overrides[get_repository] = lambda: repository

    async def ask(client: httpx.AsyncClient) -> None:
        await client.post("/sessions/s-1")
        assert await repository.list_sessions() == ["s-1"]

    caplog.set_level(logging.DEBUG, logger="vibeforge_sessions")
    run_with_client(app, ask)
    assert "create_session" in caplog.text


def test_repository_needs_no_thread_of_anyio() -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        threads = anyio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        async with threads, asyncio.timeout(60):  # as if synchronous endpoints occupied all threads
            assert (await client.post("/sessions/s-1")).status_code == 201

    run_with_client(application(lifespan("memory://")), ask)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SessionNotFoundError("s-1"), 1008),
        (InvalidArgumentError("must be 1 to 50", "limit"), 1008),
        (CorruptSessionError("s-1", SECRET), 1011),
        (ConfigurationError(SECRET), 1011),
        (StorageError(SECRET), 1013),
        (OutcomeUnknownError(SECRET), 1011),
    ],
    ids=["not_found", "invalid_argument", "corrupt_session", "configuration", "storage", "outcome_unknown"],
)
def test_error_in_websocket_closes_it_with_code(error: Exception, code: int) -> None:
    app = application(None)
    app.dependency_overrides[get_repository] = AsyncInMemorySessionRepository

    @app.websocket("/watch")
    async def watch(websocket: WebSocket, _repository: Repository) -> None:
        await websocket.accept()
        raise error

    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/watch", "query_string": b"", "headers": [], "subprotocols": []}
    asyncio.run(app(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert (sent[1]["code"], sent[1]["reason"]) == (code, type(error).__name__)


def test_openapi_documents_error_responses() -> None:
    operation = application(None).openapi()["paths"]["/sessions/{session_id}"]["get"]
    assert [each["name"] for each in operation["parameters"]] == ["session_id"]
    assert set(operation["responses"]) == {"200", "404", "409", "422", "500", "503"}
    shape = operation["responses"]["409"]["content"]["application/json"]["schema"]
    assert shape == {"$ref": "#/components/schemas/RepositoryErrorBody"}


def test_import_without_fastapi_names_missing_extra(tmp_path: Path) -> None:
    code = 'import sys; sys.modules["fastapi"] = None; import vibeforge_sessions.integrations.fastapi'
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.stderr.endswith("pip install 'vibeforge-sessions[fastapi]'\n")
