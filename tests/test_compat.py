"""Compatibility with the application's `core/session.py`: interface, store and module-level instance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.repositories import SQLiteFiles
from vibeforge_sessions import InMemorySessionRepository, SessionRepository, SQLAlchemySessionRepository, compat
from vibeforge_sessions.compat import Session, SessionPhase, SessionStore, SessionStoreInterface, session_store
from vibeforge_sessions.sql import create_engine

CALLS = ("create_session", "get_session", "update_session", "delete_session", "list_sessions")
URL = "VIBEFORGE_SESSIONS_DATABASE_URL"


class DictStore(SessionStoreInterface):
    """Store of the application that implements only the five methods of the interface."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}

    def create_session(self) -> Session:
        session = Session()
        self.sessions[session.session_id] = session
        return session

    def get_session(self, session_id: str) -> Session | None:
        return self.sessions.get(session_id)

    def update_session(self, session: Session) -> None:
        self.sessions[session.session_id] = session

    def delete_session(self, session_id: str) -> None:
        self.sessions.pop(session_id, None)

    def list_sessions(self) -> list[str]:
        return list(self.sessions)


def use_like_the_application(store: Any) -> None:
    """Make the application's calls on a store, and check their results."""
    session = store.create_session()
    assert session.phase == SessionPhase.QUESTIONNAIRE
    session.add_answer("q1", "web")
    session.add_log("answered")
    session.update_phase(SessionPhase.EXECUTION)
    session.add_error("t1", "exit 1")
    store.update_session(session)
    found = store.get_session(session.session_id)
    assert found is not None
    assert (found.answers, found.phase.value) == ({"q1": "web"}, "EXECUTION")
    assert found.error_history[0]["task_id"] == "t1"
    assert store.list_sessions() == [session.session_id]
    assert store.get_session("missing") is None
    store.delete_session("missing")
    store.delete_session(session.session_id)
    assert store.list_sessions() == []
    store.update_session(fresh := Session())  # not stored before, so it is inserted
    assert store.list_sessions() == [fresh.session_id]


# --- the interface ---


def test_compat_exports_names_of_the_application() -> None:
    assert set(compat.__all__) == {"Session", "SessionPhase", "SessionStore", "SessionStoreInterface", "session_store"}
    assert compat.Session is sys.modules["vibeforge_sessions"].Session


def test_interface_is_abstract() -> None:
    with pytest.raises(TypeError, match="instantiate"):
        SessionStoreInterface()  # type: ignore[misc]
    assert set(SessionStoreInterface.__abstractmethods__) == set(CALLS)
    for name in CALLS:
        assert callable(getattr(SessionStoreInterface, name))


@pytest.mark.parametrize("missing", CALLS)
def test_incomplete_store_cannot_be_instantiated(missing: str) -> None:
    body = {name: getattr(DictStore, name) for name in CALLS if name != missing}
    incomplete = type("Incomplete", (SessionStoreInterface,), body)
    with pytest.raises(TypeError, match=missing):
        incomplete()
    assert type("Complete", (incomplete,), {missing: getattr(DictStore, missing)})()


def test_stores_and_repositories_are_instances_of_interface(sqlite_files: SQLiteFiles) -> None:
    engine = create_engine(sqlite_files.new_url())
    stores = (SessionStore(), session_store, InMemorySessionRepository(), SQLAlchemySessionRepository(engine))
    for store in (*stores, DictStore()):
        assert isinstance(store, SessionStoreInterface)
        assert issubclass(type(store), SessionStoreInterface)
    assert issubclass(SessionRepository, SessionStoreInterface)
    assert isinstance(session_store, SessionStore)
    assert isinstance(session_store, SessionRepository)
    for other in (object(), {}, Session()):
        assert not isinstance(other, SessionStoreInterface)
    engine.dispose()


def test_every_store_supports_calls_of_the_application(sqlite_files: SQLiteFiles) -> None:
    use_like_the_application(DictStore())
    use_like_the_application(SessionStore())
    use_like_the_application(InMemorySessionRepository())
    engine = create_engine(sqlite_files.new_url())
    use_like_the_application(SQLAlchemySessionRepository(engine))
    engine.dispose()


def test_stores_are_independent() -> None:
    one, two = SessionStore(), SessionStore()
    session = one.create_session()
    assert one.list_sessions() == [session.session_id]
    assert two.list_sessions() == []
    assert two.get_session(session.session_id) is None
    assert type(one.repository) is InMemorySessionRepository


# --- opening at first use ---


class Opener:
    """Callable that opens in-memory repositories and counts them, optionally with a delay."""

    def __init__(self, *, delay_seconds: float = 0) -> None:
        self.opened: list[InMemorySessionRepository] = []
        self.delay_seconds = delay_seconds

    def __call__(self) -> SessionRepository:
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        self.opened.append(InMemorySessionRepository())
        return self.opened[-1]


def test_repository_is_opened_once_at_first_use() -> None:
    opening = Opener()
    store = SessionStore(opening)
    assert opening.opened == []
    session = store.create_session()
    store.list_sessions()
    assert len(opening.opened) == 1
    assert opening.opened[0].list_sessions() == [session.session_id]
    store.close()
    store.close()
    assert len(opening.opened) == 1
    assert store.list_sessions() == []  # a new in-memory repository was opened
    assert len(opening.opened) == 2


def test_concurrent_first_calls_open_repository_once() -> None:
    opening = Opener(delay_seconds=0.2)  # every thread calls the store before it is open
    store = SessionStore(opening)
    barrier = threading.Barrier(20)

    def work(_: int) -> str:
        barrier.wait()
        return store.create_session().session_id

    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(work, range(20)))
    assert len(opening.opened) == 1
    assert set(store.list_sessions()) == ids
    assert len(ids) == 20


def test_failed_opening_raises_and_is_repeated_at_next_call() -> None:
    failures = [OSError("first"), OSError("second")]

    def opening() -> SessionRepository:
        if failures:
            raise failures.pop(0)
        return InMemorySessionRepository()

    store = SessionStore(opening)
    for text in ("first", "second"):
        with pytest.raises(OSError, match=text):
            store.list_sessions()
    assert store.list_sessions() == []


def test_environment_is_read_at_first_use(monkeypatch: pytest.MonkeyPatch, sqlite_files: SQLiteFiles) -> None:
    session_store.close()  # another test may have used it
    url = sqlite_files.new_url()
    monkeypatch.setenv(URL, url)  # after the import of compat
    try:
        session = session_store.create_session()
        assert isinstance(session_store.repository, SQLAlchemySessionRepository)
    finally:
        session_store.close()
    engine = create_engine(url)
    assert SQLAlchemySessionRepository(engine).list_sessions() == [session.session_id]
    engine.dispose()


# --- an unchanged application ---

SESSION_MODULE = '''"""The session model and the session store."""

from vibeforge_sessions.compat import *  # noqa: F403
from vibeforge_sessions.compat import Session, SessionPhase, SessionStore, SessionStoreInterface, session_store
'''
SERVICE = '''"""Imports and calls as the application's routers and workers write them."""

import json
import sys

from app.core.session import Session, SessionPhase, SessionStoreInterface, session_store


class Coordinator:
    def __init__(self, store: SessionStoreInterface = session_store) -> None:
        assert isinstance(store, SessionStoreInterface)
        self.store = store

    def start(self) -> str:
        session: Session = self.store.create_session()
        session.add_answer("audience", "general")
        session.current_question_index += 1
        session.add_log("questionnaire started")
        self.store.update_session(session)
        session.update_phase(SessionPhase.EXECUTION)
        session.task_graph = {"tasks": [{"id": "t1"}]}
        session.active_task_id = "t1"
        session.add_error("t1", "SyntaxError: invalid syntax", phase=SessionPhase.EXECUTION)
        session.failed_task_ids.append("t1")
        self.store.update_session(session)
        return session.session_id

    def report(self, session_id: str) -> dict[str, object]:
        session = self.store.get_session(session_id)
        if session is None:
            return {"error": "not found"}
        return {
            "phase": session.phase.value,
            "answers": session.answers,
            "index": session.current_question_index,
            "first_error": session.error_history[0]["task_id"],
            "errors": [dict(entry) for entry in session.error_history if "timestamp" in entry],
            "logs": len(session.logs),
            "failed": session.failed_task_ids,
            "all": self.store.list_sessions(),
        }


def main() -> None:
    coordinator = Coordinator()
    session_id = sys.argv[1] if len(sys.argv) > 1 else coordinator.start()
    print(json.dumps({"id": session_id, **coordinator.report(session_id)}))


if __name__ == "__main__":
    main()
'''


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """Return the folder of an application whose session module imports from compat."""
    core = tmp_path / "app" / "core"
    core.mkdir(parents=True)
    for package in (core.parent, core):
        (package / "__init__.py").touch()
    (core / "session.py").write_text(SESSION_MODULE)
    (core.parent / "service.py").write_text(SERVICE)
    return tmp_path


def run(application: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIBEFORGE_SESSIONS_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "app.service", *arguments],
        cwd=application,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def check_report(report: dict[str, Any]) -> None:
    (error,) = report.pop("errors")
    assert (error["task_id"], error["phase"]) == ("t1", "EXECUTION")
    assert error["error_message"] == "SyntaxError: invalid syntax"
    assert report == {
        "id": report["id"],
        "phase": "EXECUTION",
        "answers": {"audience": "general"},
        "index": 1,
        "first_error": "t1",
        "logs": 1,
        "failed": ["t1"],
        "all": [report["id"]],
    }


def test_unchanged_application_runs_in_memory(application: Path) -> None:
    report = run(application)
    check_report(dict(report))
    assert run(application, report["id"])["error"] == "not found"  # lost when the process ended
    assert not list(application.glob("*.db*"))


def test_unchanged_application_runs_with_database(application: Path, sqlite_files: SQLiteFiles) -> None:
    url = sqlite_files.new_url()
    report = run(application, **{URL: url})
    check_report(dict(report))
    again = run(application, report["id"], **{URL: url})  # another process
    assert again == report
    check_report(again)
