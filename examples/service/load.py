"""Clients that drive the service through whole sessions, and a look into the database whether nothing was lost.

``python -m examples.service.load`` starts two processes of the service on ``VIBEFORGE_SESSIONS_DATABASE_URL`` (a SQLite
file by default), drives 1,000 sessions by 16 clients, and prints what it has seen. Two tabs answer each session's
questions at once, and differently; every fifth session is aborted, early or late. All of it on 127.0.0.1.
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
"""How often a client looks whether a session has gone on, with short pauses."""
OK, CONFLICT = 200, 409


@dataclass
class Seen:
    """What the clients have seen."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)

    def percentile(self, percent: int) -> float:
        """Return how long a request took, in milliseconds."""
        return statistics.quantiles(self.seconds, n=100)[percent - 1] * 1000


class Client:
    """Drives sessions; a conflict is looked at, and the change is made again if it is still to be made."""

    def __init__(self, http: httpx.AsyncClient, seen: Seen) -> None:
        self._http = http
        self._seen = seen

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Make a request; return status and body."""
        began = time.perf_counter()
        answer = await self._http.request(method, path, json=body)
        self._seen.seconds.append(time.perf_counter() - began)
        self._seen.statuses[answer.status_code] += 1
        assert not answer.is_server_error, answer.text
        return answer.status_code, answer.json()

    async def drive(self, number: int) -> None:
        """Take one session from its start to its end."""
        _, session = await self.ask("POST", "/sessions")
        path = f"/sessions/{session['session_id']}"
        answers = self._seen.answers[session["session_id"]] = {}
        await asyncio.gather(*(self.answer(path, number + tab, answers) for tab in range(2)))
        await self.change(path, "PLAN_REVIEW", "plan", {"approved": True})
        if number % 5 == 0:
            await asyncio.sleep(number % 20 / 50)  # early and late
            _, told = await self.ask("POST", f"{path}/abort")
            if told["is_aborted"]:
                self._seen.aborted.add(session["session_id"])
            return
        await self.wait(path, "CLARIFICATION")
        await self.change(path, "CLARIFICATION", "clarification", {"answer": "blue"})
        await self.wait(path, "COMPLETE")
        await self.ask("GET", f"{path}/result")

    async def answer(self, path: str, taste: int, answers: dict[str, str]) -> None:
        """Answer the questions that are open, as one tab of several, and keep what was acknowledged."""
        for _ in range(ATTEMPTS):
            _, now = await self.ask("GET", f"{path}/question")
            question = now["question"]
            if question is None:
                return
            choice = question["options"][taste % len(question["options"])]
            given = {"version": now["version"], "question_id": question["id"], "answer": choice}
            status, _ = await self.ask("POST", f"{path}/answers", given)
            if status != CONFLICT:  # else another tab was first: look again
                assert status == OK, given
                assert question["id"] not in answers, "two answers to one question were acknowledged"
                answers[question["id"]] = choice
        raise AssertionError("the questions never ended")

    async def change(self, path: str, phase: str, what: str, body: dict[str, Any]) -> None:
        """Make a change in a phase, again after a conflict as long as the phase is that one."""
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
        """Wait until the workers have brought the session there."""
        for _ in range(ATTEMPTS):
            _, now = await self.ask("GET", f"{path}/progress")
            if now["phase"] == phase:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"it never came to {phase}")


async def drive(address: str, sessions: int, clients: int) -> Seen:
    """Drive so many sessions, by so many clients at once."""
    seen = Seen()
    numbers = iter(range(sessions))
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:

        async def one() -> None:
            client = Client(http, seen)
            for number in numbers:
                await client.drive(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one())
    return seen


async def check(url: str, seen: Seen) -> int:
    """Look at each session in the database: what was acknowledged is there, once; return how many there are."""
    async with await open_async_repository(url, session_type=ForgeSession) as repository:
        for session_id, answers in seen.answers.items():
            session = await repository.get_session(session_id)
            assert session is not None, session_id
            assert session.answers == answers, f"{session_id} has lost an answer"
            assert session.current_question_index == len(answers) == len(QUESTIONS)
            assert [entry.position for entry in session.error_history] == list(range(1, len(session.error_history) + 1))
            if session_id in seen.aborted:
                assert (session.phase, session.is_aborted) == ("FAILED", True), f"{session_id} was aborted"
            else:
                assert session.phase == "COMPLETE", session_id
                assert session.completed_task_ids == [task["id"] for task in TASKS]
                done = [line.partition("] done: ")[2] for line in session.logs if "] done: " in line]
                assert done == [task["title"] for task in TASKS], "each task is done once"
                assert len(session.error_history) == 1
        return len(seen.answers)


@contextlib.contextmanager
def serving(url: str, listener: socket.socket, *, processes: int = 1, task_seconds: float = 0.01) -> Iterator[Any]:
    """Run the service on a socket that listens, as processes of their own; all of them are killed at the end."""
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
    """Return a socket that listens on a free port: who connects before the service is there waits for it."""
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def address_of(listener: socket.socket) -> str:
    """Return the service's address."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def main() -> None:
    """Run all of it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=16)
    asked = parser.parse_args()
    began = time.perf_counter()
    with listening() as listener, serving(DATABASE, listener, processes=2):
        seen = asyncio.run(drive(address_of(listener), asked.sessions, asked.clients))
    took = time.perf_counter() - began
    checked = asyncio.run(check(DATABASE, seen))
    print(f"{sum(seen.statuses.values()):,} requests in {took:.0f} s, by {asked.clients} clients")
    print("statuses: " + ", ".join(f"{status}: {count:,}" for status, count in sorted(seen.statuses.items())))
    print(f"p50 {seen.percentile(50):.1f} ms, p95 {seen.percentile(95):.1f} ms")
    print(f"{checked:,} sessions checked in the database, {len(seen.aborted)} of them aborted: nothing is lost")


if __name__ == "__main__":
    main()
