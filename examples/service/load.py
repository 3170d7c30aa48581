"""Load test of the service: clients run complete sessions, and the database is checked for lost changes.

``python -m examples.service.load`` starts two processes of the service on ``VIBEFORGE_SESSIONS_DATABASE_URL`` (a SQLite
file by default), runs 1,000 sessions with 16 clients on 127.0.0.1, and prints the results. A client answers each
question concurrently from two browser tabs, with different answers; every fifth session is aborted, early or late.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from examples.service.app import DATABASE
from examples.service.forge import QUESTIONS, TASKS, ForgeSession
from vibeforge_sessions import open_async_repository

ROOT = Path(__file__).parents[2]
ATTEMPTS = 3_000
"""Maximum number of reads while a client waits for progress of a session, with short pauses."""
OK, CONFLICT = 200, 409


@dataclass
class Results:
    """Responses that the clients have received."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)

    def percentile(self, percent: int) -> float:
        """Return a percentile of the durations of the requests, in milliseconds."""
        return statistics.quantiles(self.seconds, n=100)[percent - 1] * 1000


class Client:
    """Client that runs sessions; after a conflict it reads the session and repeats the change if it is still needed."""

    def __init__(self, http: httpx.AsyncClient, results: Results) -> None:
        self._http = http
        self._results = results

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Send a request; return status and body."""
        began = time.perf_counter()
        answer = await self._http.request(method, path, json=body)
        self._results.seconds.append(time.perf_counter() - began)
        self._results.statuses[answer.status_code] += 1
        assert not answer.is_server_error, answer.text
        return answer.status_code, answer.json()

    async def drive(self, number: int) -> None:
        """Run one session from its start to its end."""
        _, session = await self.ask("POST", "/sessions")
        path = f"/sessions/{session['session_id']}"
        answers = self._results.answers[session["session_id"]] = {}
        await asyncio.gather(*(self.answer(path, number + tab, answers) for tab in range(2)))
        await self.change(path, "PLAN_REVIEW", "plan", {"approved": True})
        if number % 5 == 0:
            await asyncio.sleep(number % 20 / 50)  # some sessions are aborted early, others late
            _, body = await self.ask("POST", f"{path}/abort")
            if body["is_aborted"]:
                self._results.aborted.add(session["session_id"])
            return
        await self.wait(path, "CLARIFICATION")
        await self.change(path, "CLARIFICATION", "clarification", {"answer": "blue"})
        await self.wait(path, "COMPLETE")
        await self.ask("GET", f"{path}/result")

    async def answer(self, path: str, seed: int, answers: dict[str, str]) -> None:
        """Answer the open questions, as one of several browser tabs, and record the acknowledged answers."""
        for _ in range(ATTEMPTS):
            _, now = await self.ask("GET", f"{path}/question")
            question = now["question"]
            if question is None:
                return
            choice = question["options"][seed % len(question["options"])]
            given = {"version": now["version"], "question_id": question["id"], "answer": choice}
            status, _ = await self.ask("POST", f"{path}/answers", given)
            if status != CONFLICT:  # after a conflict with another tab, read again
                assert status == OK, given
                assert question["id"] not in answers, "two answers to one question were acknowledged"
                answers[question["id"]] = choice
        raise AssertionError("the questions never ended")

    async def change(self, path: str, phase: str, what: str, body: dict[str, Any]) -> None:
        """Make a change in a phase, and repeat it after a conflict if the phase is still the same."""
        for _ in range(ATTEMPTS):
            _, now = await self.ask("GET", f"{path}/question")
            if now["phase"] != phase:
                return
            status, _ = await self.ask("POST", f"{path}/{what}", {**body, "version": now["version"]})
            if status != CONFLICT:
                assert status == OK, what
                return
        raise AssertionError("a change was never taken")

    async def wait(self, path: str, phase: str) -> None:
        """Wait until the session is in the given phase."""
        for _ in range(ATTEMPTS):
            _, now = await self.ask("GET", f"{path}/progress")
            if now["phase"] == phase:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"it never came to {phase}")


async def drive(address: str, sessions: int, clients: int) -> Results:
    """Run sessions with concurrent clients."""
    results = Results()
    numbers = iter(range(sessions))
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:

        async def one() -> None:
            client = Client(http, results)
            for number in numbers:
                await client.drive(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one())
    return results


async def check(url: str, results: Results) -> int:
    """Assert that each acknowledged change is stored exactly once; return the number of sessions."""
    async with await open_async_repository(url, session_type=ForgeSession) as repository:
        for session_id, answers in results.answers.items():
            session = await repository.get_session(session_id)
            assert session is not None, session_id
            assert session.answers == answers, f"{session_id} has lost an answer"
            assert session.current_question_index == len(answers) == len(QUESTIONS)
            assert [entry.position for entry in session.error_history] == list(range(1, len(session.error_history) + 1))
            if session_id in results.aborted:
                assert (session.phase, session.is_aborted) == ("FAILED", True), f"{session_id} was aborted"
            else:
                assert session.phase == "COMPLETE", session_id
                assert session.completed_task_ids == [task["id"] for task in TASKS]
                done = [line.partition("] done: ")[2] for line in session.logs if "] done: " in line]
                assert done == [task["title"] for task in TASKS], "each task is done once"
                assert len(session.error_history) == 1
        return len(results.answers)


@contextlib.contextmanager
def serving(url: str, listener: socket.socket, *, processes: int = 1, task_seconds: float = 0.01) -> Iterator[Any]:
    """Run the service in its own processes on a listening socket; kill them at the end of the block."""
    listener.set_inheritable(True)
    command = [sys.executable, "-m", "uvicorn", "examples.service.app:app", "--fd", str(listener.fileno())]
    command += ["--workers", str(processes), "--log-level", "warning"]
    environment = {**os.environ, "VIBEFORGE_SESSIONS_DATABASE_URL": url, "FORGE_TASK_SECONDS": str(task_seconds)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, pass_fds=[listener.fileno()], start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def listening() -> socket.socket:
    """Return a socket that listens on a free port, so that clients can connect before the service has started."""
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def address_of(listener: socket.socket) -> str:
    """Return the address of the service."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def main() -> None:
    """Run the load test and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    began = time.perf_counter()
    with listening() as listener, serving(DATABASE, listener, processes=2):
        results = asyncio.run(drive(address_of(listener), options.sessions, options.clients))
    took = time.perf_counter() - began
    checked = asyncio.run(check(DATABASE, results))
    print(f"{sum(results.statuses.values()):,} requests in {took:.0f} s, by {options.clients} clients")
    print("statuses: " + ", ".join(f"{status}: {count:,}" for status, count in sorted(results.statuses.items())))
    print(f"p50 {results.percentile(50):.1f} ms, p95 {results.percentile(95):.1f} ms")
    print(f"{checked:,} sessions checked in the database, {len(results.aborted)} of them aborted: no change is lost")


if __name__ == "__main__":
    main()
