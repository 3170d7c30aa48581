"""Passwords of URLs, which no error, log record, repr or command output shows."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import URL, make_url

from tests.support.faults.shown import records_of
from tests.support.preloaded import preloaded_python
from tests.support.repositories import text_of
from tests.support.servers import AvailableServer
from vibeforge_sessions import (
    RetryPolicy,
    SessionRepositoryError,
    SQLAlchemySessionRepository,
    open_async_repository,
    open_repository,
)
from vibeforge_sessions.integrations import opentelemetry
from vibeforge_sessions.settings import Settings
from vibeforge_sessions.sql import create_async_engine, create_engine, migrate
from vibeforge_sessions.sql.dialects import base
from vibeforge_sessions.sql.dialects import mariadb as mariadb_module

CORE = "s3cr3t"
"""Part of every password, identical in every encoding."""
PASSWORDS = {
    "plain": f"{CORE}-pa55",
    "special": f"{CORE}@:/?#[]%25&=+ '\"\\{{}}%s",
    "not ASCII": f"{CORE}-pässwörd-✓",
}
URL_VARIABLE = "VIBEFORGE_SESSIONS_DATABASE_URL"
ASYNC_DRIVERS = {"postgresql": "postgresql+asyncpg", "mariadb": "mariadb+asyncmy"}
NOWHERE = "no.such.host.invalid"
RETRY = RetryPolicy(deadline=5.0, attempts=1)


def in_authority(url: URL, password: str) -> URL:
    return url.set(password=password)


def in_query(url: URL, password: str) -> URL:
    return url._replace(password=None).update_query_dict({"password": password})


def for_many_hosts(url: URL, password: str) -> URL:
    hosts = (f"{url.host}:{url.port}", f"{url.host}:{url.port}")
    return url._replace(password=password, host=None, port=None).update_query_dict({"host": hosts})


FORMS: dict[str, Callable[[URL, str], URL]] = {
    "in the authority": in_authority,
    "in the query": in_query,
    "for many hosts": for_many_hosts,
}


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that knows the password, and URLs that it rejects."""

    url: URL
    other_port: int
    """Port of a server with another protocol."""

    def failures(self) -> dict[str, URL]:
        return {
            "wrong password": self.url,
            "unknown database": self.url.set(database="no_such_database"),
            "closed port": self.url.set(port=1),
            "wrong port": self.url.set(port=self.other_port),
            "unreachable": self.url.set(host=NOWHERE),
            "unknown user": self.url.set(username="no_such_user"),
        }


FAILURES = ["wrong password", "unknown database", "closed port", "wrong port", "unreachable", "unknown user"]


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def server(
    request: pytest.FixtureRequest, postgresql_server: AvailableServer, mariadb_server: AvailableServer
) -> Server:
    servers = {"postgresql": postgresql_server, "mariadb": mariadb_server}
    mine = servers.pop(request.param)
    (other,) = servers.values()
    url = mine.databases.create(migrated=False)
    if request.param == "mariadb":
        url = url.set(drivername="mariadb+pymysql")
    assert other.url.port is not None
    return Server(url, other.url.port)


def shown(error: BaseException) -> str:
    """Return every text of an error and its causes that can be shown or pickled."""
    parts = [str(error), repr(error), repr(error.args), repr(vars(error))]
    parts += traceback.format_exception(error)
    parts.append(repr(pickle.dumps(error)))
    cause: BaseException | None = error
    while cause is not None:
        parts += [str(cause), repr(cause), repr(cause.args)]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(parts)


def check_hidden(text: str) -> None:
    assert CORE not in text


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    """Return the records of all loggers at DEBUG."""
    with records_of(None) as records:
        yield lambda: "\n".join(records.texts)


# --- errors of servers ---


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for servers whose protocol lets the client speak first."""
    monkeypatch.setattr(base, "CONNECT_TIMEOUT", 1)
    monkeypatch.setattr(mariadb_module, "_GREETING_TIMEOUT", 0.3)


def open_sync(url: str, *, migrate: bool) -> Exception | None:
    try:
        open_repository(url, migrate=migrate, retry=RETRY).close()
    except SessionRepositoryError as error:
        return error
    return None


def call_repository(url: str) -> Exception | None:
    """Make a call on an engine of `create_engine`, and one on an engine of the application."""
    for engine in (create_engine(url), sqlalchemy.create_engine(make_url(url))):
        try:
            repository = SQLAlchemySessionRepository(engine, retry=RETRY)
            check_hidden(f"{repository!r} {repository} {vars(repository)!r}")
            repository.append_log("s", "m")
        except SessionRepositoryError as error:
            return error
        finally:
            engine.dispose()
    return None


def open_async(url: str) -> Exception | None:
    async def run() -> None:
        await (await open_async_repository(url, retry=RETRY)).close()

    try:
        asyncio.run(run())
    except SessionRepositoryError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("failure", "form", "password"),
    [*itertools.product(FAILURES[:1], FORMS, PASSWORDS), *itertools.product(FAILURES[1:], FORMS, ["special"])],
)
@pytest.mark.usefixtures("_impatient")
def test_failed_connection_shows_no_password(
    server: Server, form: str, password: str, failure: str, logged: Callable[[], str]
) -> None:
    url = FORMS[form](server.failures()[failure], PASSWORDS[password])
    text = text_of(url)
    asynchronous = ASYNC_DRIVERS[url.get_backend_name()]
    attempts: list[Callable[[], Exception | None]] = [
        lambda: open_sync(text, migrate=False),
        lambda: open_sync(text, migrate=True),
        lambda: call_repository(text),
        lambda: open_async(text),
        lambda: open_async(text_of(url.set(drivername=asynchronous))),
    ]
    for attempt in attempts:
        error = attempt()
        assert error is not None
        check_hidden(shown(error))
    check_hidden(logged())


@pytest.mark.parametrize("form", FORMS)
def test_successful_calls_show_no_password(server: Server, form: str, logged: Callable[[], str]) -> None:
    password = server.url.password
    assert password is not None
    assert len(password) > 7
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    opentelemetry.instrument(provider)
    engine = create_engine(FORMS[form](server.url, password))
    try:
        migrate.upgrade(engine)
        repository = SQLAlchemySessionRepository(engine)
        with pytest.raises(SessionRepositoryError) as caught:
            repository.append_log("nobody", "m")
        repository.create_session()
        assert password not in f"{engine!r} {engine} {engine.url} {engine.url!r} {engine.pool!r} {repository!r}"
        assert password not in shown(caught.value)
    finally:
        engine.dispose()
        opentelemetry.uninstrument()
    spans = exporter.get_finished_spans()
    assert len(spans) == 2
    assert password not in "".join(span.to_json() for span in spans)
    assert password not in logged()


# --- errors without a server ---

MALFORMED = [
    "postgresql+psycopg://user:{}@host:port/db",
    "postgresql+psycopg://user:{}@[::1/db",
    "postgresql+psycopg://user:{}@host/db?connect_timeout=soon",
    "postgresql+psycopg://user:{}@host/db?no_such_option=1",
    "postgresql+psycopg://user@host/db?password={}&host=a:b:c",
    "mariadb+pymysql://user:{}@host:99999999/db",
    "mariadb+pymysql://user:{}@host/db?connect_timeout=soon",
    "mariadb+pymysql://user:{}@host/db?no_such_option=1",
    "mariadb+pymysql://user:{}@/db?host=a:b&host=c",
    "sqlite://user:{}@host/db",
    "sqlite+aiosqlite://user:{}@host/db",
    "mysql+mysqldb://user:{}@host/db",
    "oracle://user:{}@host/db",
    "user:{}@host/db",
    "//user:{}@host/db",
    "memory://{}",
    "{}",
]


@pytest.mark.parametrize("url", MALFORMED)
@pytest.mark.parametrize("password", ["plain", "not ASCII"])
def test_malformed_url_shows_no_password(url: str, password: str, logged: Callable[[], str]) -> None:
    text = url.replace("{}", PASSWORDS[password])
    for error in (
        open_sync(text, migrate=True),
        open_async(text),
        *(_error_of(make, text) for make in (create_engine, create_async_engine)),
    ):
        if error is not None:
            check_hidden(shown(error))
    check_hidden(logged())


def _error_of(make: Callable[[str], Any], url: str) -> Exception | None:
    try:
        make(url)
    except SessionRepositoryError as error:
        return error
    return None


def test_settings_show_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for password in PASSWORDS.values():
        monkeypatch.setenv(URL_VARIABLE, text_of(URL.create("postgresql", "user", password, "host", 5432, "db")))
        settings = Settings.read()
        assert CORE in str(settings.url())
        check_hidden(f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}")
    monkeypatch.setenv("VIBEFORGE_SESSIONS_MIGRATE", CORE)
    with pytest.raises(SessionRepositoryError) as caught:
        Settings.read()
    check_hidden(shown(caught.value))


# --- child processes: command line and missing packages ---

WITHOUT = "import sys; sys.modules[{!r}] = None; "
CLI = "from vibeforge_sessions.cli import main; main()"
OPEN = f"import os; from vibeforge_sessions import open_repository; open_repository(os.environ[{URL_VARIABLE!r}])"
OPEN_ASYNC = f"""
import asyncio, os
from vibeforge_sessions import open_async_repository
asyncio.run(open_async_repository(os.environ[{URL_VARIABLE!r}]))
"""
DRIVERS = {
    "psycopg": "postgresql+psycopg",
    "asyncpg": "postgresql+asyncpg",
    "pymysql": "mariadb+pymysql",
    "asyncmy": "mariadb+asyncmy",
}


def run(folder: Path, url: str, *command: str) -> str:
    """Return the exit code and the output of a process that fails with the URL in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
    result = subprocess.run(
        [*(preloaded_python() if command[0] == "-m" else (sys.executable,)), *command],
        cwd=folder,
        env={**kept, URL_VARIABLE: url, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return f"exit {result.returncode}\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("module", DRIVERS)
def test_missing_driver_is_reported_without_the_password(tmp_path: Path, module: str) -> None:
    url = f"{DRIVERS[module]}://user:{CORE}@host/db?password={CORE}"
    code = OPEN_ASYNC if module in {"asyncpg", "asyncmy"} else OPEN
    output = run(tmp_path, url, "-c", WITHOUT.format(module) + code)
    assert "pip install" in output
    check_hidden(output)


@pytest.mark.parametrize("module", ["greenlet", "typer", "rich", "sqlalchemy.ext.asyncio"])
def test_missing_extra_is_reported_without_the_password(tmp_path: Path, module: str) -> None:
    code = f"sys.argv += ['db', 'status']; {CLI}" if module in {"typer", "rich"} else OPEN_ASYNC
    output = run(tmp_path, f"postgresql+psycopg://user:{CORE}@host/db", "-c", WITHOUT.format(module) + code)
    assert "exit 1" in output
    check_hidden(output)


HELP = [["--help"], ["db", "--help"], ["db", "status", "--help"], ["db", "upgrade", "--no-such"]]


@pytest.mark.parametrize("arguments", HELP)
def test_help_shows_no_url(tmp_path: Path, arguments: list[str]) -> None:
    url = f"postgresql+psycopg://user:{CORE}@host/db"
    check_hidden(run(tmp_path, url, "-m", "vibeforge_sessions", *arguments))
    check_hidden(run(tmp_path, url, "-m", "alembic", "--help"))


@pytest.mark.parametrize("failure", ["wrong password", "unknown database", "unreachable"])
@pytest.mark.parametrize("form", FORMS)
def test_command_line_shows_no_password(tmp_path: Path, server: Server, failure: str, form: str) -> None:
    url = text_of(FORMS[form](server.failures()[failure], PASSWORDS["special"]))
    options = ["--url", url] if failure == "wrong password" else []
    output = run(tmp_path, url, "-m", "vibeforge_sessions", "db", "status", *options)
    assert output.startswith("exit 1\n")
    assert "error: " in output
    check_hidden(output)
