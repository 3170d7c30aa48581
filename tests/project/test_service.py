"""The example service in real processes: use over HTTP, restarts after SIGKILL, and load."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from examples.service.forge import QUESTIONS, TASKS, ForgeSession
from examples.service.load import address_of, check, drive, listening, serving
from tests.support import cases
from tests.support.databases import SQL_DATABASES, Storage
from vibeforge_sessions import SessionPhase, StaleSessionError, open_repository
from vibeforge_sessions.sql import create_engine

TIMEOUT_SECONDS = 60


@pytest.fixture(params=cases(SQL_DATABASES, ("postgresql",)))
def url(request: pytest.FixtureRequest) -> str:
    storage: Storage = request.getfixturevalue(request.param)
    assert storage.new_url is not None
    return storage.new_url()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listening() as listener:
        yield listener


@pytest.fixture
def client(listener: socket.socket) -> Iterator[Client]:
    with httpx.Client(base_url=address_of(listener), timeout=TIMEOUT_SECONDS) as http:
        yield Client(http)


class Client:
    """HTTP client of the service."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, method: str, path: str, expected: int = 200, **body: Any) -> dict[str, Any]:
        answer = self._http.request(method, path, json=body or None)
        assert answer.status_code == expected, answer.text
        data: dict[str, Any] = answer.json()
        return data

    def start_and_answer(self) -> str:
        """Start a session, answer all its questions, and return its path."""
        session = self.ask("POST", "/sessions", 201)
        path = f"/sessions/{session['session_id']}"
        for question in QUESTIONS:
            now = self.ask("GET", f"{path}/question")
            assert now["question"]["id"] == question["id"]
            given = {"question_id": question["id"], "answer": question["options"][0]}
            session = self.ask("POST", f"{path}/answers", version=now["version"], **given)
            # a second request with the same version, for example after a double click
            repeated = self.ask("POST", f"{path}/answers", 409, version=now["version"], **given)
            assert (repeated["version"], repeated["stored_version"]) == (now["version"], session["version"])
        assert session["phase"] == "PLAN_REVIEW"
        return path

    def start_and_approve(self) -> str:
        """Start a session, approve its plan, and return its path."""
        path = self.start_and_answer()
        now = self.ask("GET", f"{path}/question")
        rejected = self.ask("POST", f"{path}/plan", version=now["version"], approved=False)
        assert rejected["phase"] == "PLAN_REVIEW"
        done = self.ask("POST", f"{path}/plan", version=rejected["version"], approved=True)
        assert done["phase"] == "EXECUTION"
        return path

    def wait(self, path: str, *phases: str, min_completed: int = 0) -> dict[str, Any]:
        """Wait until a session is in one of the phases and has completed that many tasks."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            now = self.ask("GET", f"{path}/progress")
            if now["phase"] in phases and len(now["completed"]) >= min_completed:
                return now
            assert time.monotonic() < deadline, now
            time.sleep(0.02)

    def wait_for_work(self, path: str) -> None:
        """Wait until a worker has started a task of the session."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not any("begins" in line for line in self.ask("GET", f"{path}/progress")["logs"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_session_completes_although_processes_are_killed(url: str, listener: socket.socket, client: Client) -> None:
    with serving(url, listener, task_seconds=0.2) as process:
        unfinished = client.ask("POST", "/sessions", 201)["session_id"]
        client.ask(
            "POST", f"/sessions/{unfinished}/answers", version=1, question_id=QUESTIONS[0]["id"], answer="everybody"
        )
        path = client.start_and_approve()
        client.wait(path, "EXECUTION", min_completed=1)
        kill(process)
    with serving(url, listener, task_seconds=0.01) as process:
        now = client.ask("GET", f"/sessions/{unfinished}/question")  # the session continues after its first answer
        assert (now["version"], now["question"]["id"]) == (2, QUESTIONS[1]["id"])
        client.wait(path, "CLARIFICATION")
        question = client.ask("GET", f"{path}/clarification")
        assert question["clarification"]["task_id"] == "screens"
        client.ask("GET", f"{path}/result", 409)
        kill(process)
    with serving(url, listener, task_seconds=0.01):
        client.ask("POST", f"{path}/clarification", version=question["version"], answer="blue")
        client.ask("POST", f"{path}/clarification", 409, version=question["version"], answer="blue")
        done = client.wait(path, "COMPLETE")
        assert done["completed"] == [task["id"] for task in TASKS]
        assert [error["task_id"] for error in done["errors"]] == ["storage"]
        result = client.ask("GET", f"{path}/result")
        assert result["build_spec"] == {"platform": "web", "storage": "nothing"}
        items = client.ask("GET", "/sessions?phase=COMPLETE")["items"]
        assert [item["session_id"] for item in items] == [result["session_id"]]
        client.ask("GET", "/sessions/missing/progress", 404)
        client.ask("POST", f"/sessions/{unfinished}/answers", 422, version=2, question_id="platform", answer="the moon")


def test_abort_is_kept_when_late_worker_finishes(url: str, listener: socket.socket, client: Client) -> None:
    with serving(url, listener, task_seconds=0.3):
        path = client.start_and_approve()
        session_id = path.rpartition("/")[2]
        client.wait(path, "EXECUTION", min_completed=1)
        with open_repository(url, session_type=ForgeSession) as repository:
            late = repository.get_session(session_id)
            assert late is not None
            assert client.ask("POST", f"{path}/abort")["is_aborted"] is True
            before = client.ask("GET", f"{path}/progress")
            late.completed_task_ids.append("late")  # a worker that does not know of the abort
            with pytest.raises(StaleSessionError):
                repository.update_session(late)
            time.sleep(0.7)  # the service's worker finishes its task
            repository.append_error(session_id, "late", "errors of a late worker are still stored")
        after = client.ask("GET", f"{path}/progress")
        assert (after["phase"], after["is_aborted"], after["version"]) == ("FAILED", True, before["version"])
        assert after["completed"] == before["completed"]
        assert client.ask("POST", f"{path}/abort")["version"] == before["version"]  # a second abort changes nothing


def test_each_task_is_done_by_one_of_two_processes(url: str, listener: socket.socket, client: Client) -> None:
    """Check the logs: a task that two workers did would be logged twice."""
    with serving(url, listener, task_seconds=60) as process:
        paths = [client.start_and_approve() for _ in range(5)]
        for path in paths:
            client.wait_for_work(path)
        kill(process)
    with serving(url, listener, task_seconds=0.02), serving(url, listener, task_seconds=0.02):
        paths += [client.start_and_approve() for _ in range(5)]
        for path in paths:
            now = client.wait(path, "CLARIFICATION")
            client.ask("POST", f"{path}/clarification", version=now["version"], answer="blue")
        for path in paths:
            assert client.wait(path, "COMPLETE")["error_count"] == 1
    with open_repository(url) as repository:
        for number, path in enumerate(paths):
            logged = [line.partition("] ")[2] for line in repository.list_logs(path.rpartition("/")[2])]
            assert [line for line in logged if line.startswith("done")] == [f"done: {task['title']}" for task in TASKS]
            started = [line for line in logged if line.startswith("begins")]
            # one task failed once, and the killed process had started one task of each of the first five sessions
            assert len(started) == len(TASKS) + (2 if number < 5 else 1)


def test_unreadable_session_does_not_stop_the_worker(sqlite: Storage, listener: socket.socket, client: Client) -> None:
    assert sqlite.new_url is not None
    url = sqlite.new_url()
    with open_repository(url, session_type=ForgeSession) as repository:
        repository.create_session(ForgeSession(session_id="damaged", phase=SessionPhase.EXECUTION))
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE vibeforge_session_documents SET answers = '{'")
    engine.dispose()
    with serving(url, listener, task_seconds=0.01):
        client.wait(client.start_and_approve(), "CLARIFICATION")
        assert client.ask("GET", "/sessions/damaged/progress", 500)["error"] == "CorruptSessionError"
        client.wait(client.start_and_approve(), "CLARIFICATION")  # the worker is still running


def test_no_answer_is_lost_under_load(postgresql: Storage, listener: socket.socket) -> None:
    """Run a small load; ``python -m examples.service.load`` creates a thousand sessions."""
    assert postgresql.new_url is not None
    url = postgresql.new_url()
    with serving(url, listener, processes=2):
        results = asyncio.run(drive(address_of(listener), sessions=60, clients=16))
    assert set(results.statuses) == {200, 201, 409}
    assert results.statuses[201] == 60
    assert results.statuses[409] >= 60  # of two concurrent tabs per session, at least one had a conflict
    assert len(results.aborted) == 12
    assert asyncio.run(check(url, results)) == 60
