"""The example service as real processes: driven over HTTP, killed, started again, and under load."""

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
from tests.support.databases import SQL_DATABASES, Storage
from vibeforge_sessions import SessionPhase, StaleSessionError, open_repository
from vibeforge_sessions.sql import create_engine

PATIENCE = 60  # seconds


@pytest.fixture(params=SQL_DATABASES)
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
    with httpx.Client(base_url=address_of(listener), timeout=PATIENCE) as http:
        yield Client(http)


class Client:
    """Asks the service, whichever process of it answers."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, method: str, path: str, expected: int = 200, **body: Any) -> dict[str, Any]:
        answer = self._http.request(method, path, json=body or None)
        assert answer.status_code == expected, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def answered(self) -> str:
        """Start a session and answer all its questions; return its path."""
        session = self.ask("POST", "/sessions", 201)
        path = f"/sessions/{session['session_id']}"
        for question in QUESTIONS:
            now = self.ask("GET", f"{path}/question")
            assert now["question"]["id"] == question["id"]
            given = {"question_id": question["id"], "answer": question["options"][0]}
            session = self.ask("POST", f"{path}/answers", version=now["version"], **given)
            refused = self.ask("POST", f"{path}/answers", 409, version=now["version"], **given)  # a double click
            assert (refused["version"], refused["stored_version"]) == (now["version"], session["version"])
        assert session["phase"] == "PLAN_REVIEW"
        return path

    def approved(self) -> str:
        """Start a session whose plan is approved; return its path."""
        path = self.answered()
        now = self.ask("GET", f"{path}/question")
        again = self.ask("POST", f"{path}/plan", version=now["version"], approved=False)
        assert again["phase"] == "PLAN_REVIEW"
        done = self.ask("POST", f"{path}/plan", version=again["version"], approved=True)
        assert done["phase"] == "EXECUTION"
        return path

    def wait(self, path: str, *phases: str, least: int = 0) -> dict[str, Any]:
        """Wait until a session is in one of the phases, with so many tasks completed."""
        deadline = time.monotonic() + PATIENCE
        while True:
            now = self.ask("GET", f"{path}/progress")
            if now["phase"] in phases and len(now["completed"]) >= least:
                return now
            assert time.monotonic() < deadline, now
            time.sleep(0.02)

    def wait_for_work(self, path: str) -> None:
        """Wait until a worker has begun."""
        deadline = time.monotonic() + PATIENCE
        while not any("begins" in line for line in self.ask("GET", f"{path}/progress")["logs"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_whole_session_with_kills_in_the_middle(url: str, listener: socket.socket, client: Client) -> None:
    with serving(url, listener, task_seconds=0.2) as process:
        half = client.ask("POST", "/sessions", 201)["session_id"]
        client.ask("POST", f"/sessions/{half}/answers", version=1, question_id=QUESTIONS[0]["id"], answer="everybody")
        path = client.approved()
        client.wait(path, "EXECUTION", least=1)
        kill(process)
    with serving(url, listener, task_seconds=0.01) as process:
        now = client.ask("GET", f"/sessions/{half}/question")  # what was half done goes on where it was
        assert (now["version"], now["question"]["id"]) == (2, QUESTIONS[1]["id"])
        client.wait(path, "CLARIFICATION")
        asked = client.ask("GET", f"{path}/clarification")
        assert asked["clarification"]["task_id"] == "screens"
        client.ask("GET", f"{path}/result", 409)
        kill(process)
    with serving(url, listener, task_seconds=0.01):
        client.ask("POST", f"{path}/clarification", version=asked["version"], answer="blue")
        client.ask("POST", f"{path}/clarification", 409, version=asked["version"], answer="blue")
        done = client.wait(path, "COMPLETE")
        assert done["completed"] == [task["id"] for task in TASKS]
        assert [error["task_id"] for error in done["errors"]] == ["storage"]
        result = client.ask("GET", f"{path}/result")
        assert result["build_spec"] == {"platform": "web", "storage": "nothing"}
        items = client.ask("GET", "/sessions?phase=COMPLETE")["items"]
        assert [item["session_id"] for item in items] == [result["session_id"]]
        client.ask("GET", "/sessions/nobody/progress", 404)
        client.ask("POST", f"/sessions/{half}/answers", 422, version=2, question_id="platform", answer="the moon")


def test_an_abort_stays_an_abort_while_a_late_worker_finishes(
    url: str, listener: socket.socket, client: Client
) -> None:
    with serving(url, listener, task_seconds=0.3):
        path = client.approved()
        session_id = path.rpartition("/")[2]
        client.wait(path, "EXECUTION", least=1)
        with open_repository(url, session_type=ForgeSession) as repository:
            late = repository.get_session(session_id)
            assert late is not None
            assert client.ask("POST", f"{path}/abort")["is_aborted"] is True
            before = client.ask("GET", f"{path}/progress")
            late.completed_task_ids.append("late")  # a worker that has not heard of it
            with pytest.raises(StaleSessionError):
                repository.update_session(late)
            time.sleep(0.7)  # the service's own worker finishes its task meanwhile
            repository.append_error(session_id, "late", "what a late worker still has to say is kept")
        after = client.ask("GET", f"{path}/progress")
        assert (after["phase"], after["is_aborted"], after["version"]) == ("FAILED", True, before["version"])
        assert after["completed"] == before["completed"]
        assert client.ask("POST", f"{path}/abort")["version"] == before["version"]  # twice is as good as once


def test_of_two_processes_one_takes_a_session(url: str, listener: socket.socket, client: Client) -> None:
    """Each task is done by one worker: done twice it would be logged twice."""
    with serving(url, listener, task_seconds=60) as process:
        paths = [client.approved() for _ in range(5)]
        for path in paths:
            client.wait_for_work(path)
        kill(process)
    with serving(url, listener, task_seconds=0.02), serving(url, listener, task_seconds=0.02):
        paths += [client.approved() for _ in range(5)]
        for path in paths:
            now = client.wait(path, "CLARIFICATION")
            client.ask("POST", f"{path}/clarification", version=now["version"], answer="blue")
        for path in paths:
            assert client.wait(path, "COMPLETE")["error_count"] == 1
    with open_repository(url) as repository:
        for number, path in enumerate(paths):
            said = [line.partition("] ")[2] for line in repository.list_logs(path.rpartition("/")[2])]
            assert [line for line in said if line.startswith("done")] == [f"done: {task['title']}" for task in TASKS]
            begun = [line for line in said if line.startswith("begins")]
            # one failed and began again, and the first of those who were killed
            assert len(begun) == len(TASKS) + (2 if number < 5 else 1)


def test_a_session_that_cannot_be_read_stops_no_other(sqlite: Storage, listener: socket.socket, client: Client) -> None:
    assert sqlite.new_url is not None
    url = sqlite.new_url()
    with open_repository(url, session_type=ForgeSession) as repository:
        repository.create_session(ForgeSession(session_id="torn", phase=SessionPhase.EXECUTION))
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE vibeforge_session_documents SET answers = '{'")
    engine.dispose()
    with serving(url, listener, task_seconds=0.01):
        client.wait(client.approved(), "CLARIFICATION")
        assert client.ask("GET", "/sessions/torn/progress", 500)["error"] == "CorruptSessionError"
        client.wait(client.approved(), "CLARIFICATION")  # the worker is still there


def test_under_load_no_answer_is_lost(postgresql: Storage, listener: socket.socket) -> None:
    """Small here; ``python -m examples.service.load`` makes a thousand sessions."""
    assert postgresql.new_url is not None
    url = postgresql.new_url()
    with serving(url, listener, processes=2):
        seen = asyncio.run(drive(address_of(listener), sessions=60, clients=16))
    assert set(seen.statuses) == {200, 201, 409}
    assert seen.statuses[201] == 60
    assert seen.statuses[409] >= 60  # of two tabs that open at once, one at least has lost once
    assert len(seen.aborted) == 12
    assert asyncio.run(check(url, seen)) == 60
