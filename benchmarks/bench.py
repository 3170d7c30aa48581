"""Measurements of a run: in each round, the contenders take turns at each call, in random order."""

from __future__ import annotations

import os
import platform
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from benchmarks.contender import CALLS
from benchmarks.process import Worker, WorkerError

GROWING: Final = ("append", "get", "get_recent")
"""Calls that are measured at every length. Other calls are measured at the second, `list_errors` at the longest."""
SECONDS: Final = 0.12
"""Seconds of a contender's turn at a call, if one call takes less."""
MOST: Final = 20
"""Maximum number of calls in a turn."""
IN_MEMORY: Final = "in memory"
"""Contender whose data other processes cannot use."""
PREPARED: Final = 10
"""Error entries of a session that several processes append to."""


class Bench:
    """Contenders of a run, and its measurements."""

    def __init__(self, *, rounds: int, lengths: Sequence[int], sessions: Sequence[int], seconds: float) -> None:
        self.rounds, self.lengths, self.sessions, self.seconds = rounds, lengths, sessions, seconds
        self.workers: dict[str, Worker] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.kinds: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self.samples: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.processes: list[dict[str, Any]] = []
        self.memory: dict[str, dict[str, float]] = {}
        self._cost: dict[tuple[str, str], int] = {}
        self._given_up: set[tuple[str, str]] = set()
        self._prepared: dict[tuple[str, int, bool], str] = {}
        self._grown: Counter[tuple[str, int, bool]] = Counter()
        self._started = datetime.now(UTC)
        self.machine: dict[str, Any] = {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
        }

    def add(self, kind: str, contender: str, place: str, python: str = sys.executable) -> None:
        """Start a contender, which is ``ours``, a ``floor`` or a ``peer``.

        :raises WorkerError: the contender does not start.
        """
        worker = Worker(contender, place, python)
        try:
            about = worker.ask("about")
        except WorkerError:
            worker.close()
            raise
        self.workers[about["name"]], self.about[about["name"]], self.kinds[about["name"]] = worker, about, kind

    def run(self, console: Console) -> None:
        """Run all measurements."""
        # The smaller listing is measured first: later, the database has more sessions.
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
            self._listings(progress, self.sessions[0])
            cells = self._cells()
            task = progress.add_task("calls", total=self.rounds * len(cells))
            for _ in range(self.rounds):
                for call, length in random.sample(cells, len(cells)):
                    progress.update(task, description=f"{call} at {length:,}")
                    self._turn(call, length)
                    progress.advance(task)
            for sessions in self.sessions[1:]:
                self._listings(progress, sessions)
            for name in progress.track(list(self.workers), description="processes at once"):
                self._append_at_once(name)
            for name in progress.track(self._ours_in_databases(), description="memory"):
                self._measure_memory(name)

    def results(self) -> dict[str, Any]:
        """Return all measurements."""
        ended = datetime.now(UTC)
        return {
            "date": ended.isoformat(timespec="seconds"),
            "minutes": round((ended - self._started).total_seconds() / 60, 1),
            "machine": self.machine,
            "rounds": self.rounds,
            "kinds": self.kinds,
            "about": self.about,
            "absent": self.absent,
            "samples": {name: dict(cells) for name, cells in self.samples.items()},
            "processes": self.processes,
            "memory": self.memory,
        }

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()

    # --- calls ---

    def _cells(self) -> list[tuple[str, int]]:
        """Return the calls on single sessions, with the lengths of their histories."""
        cells = [(call, length) for call in GROWING for length in self.lengths]
        others = [call for call in CALLS if call not in GROWING and call != "list_page"]
        return cells + [(call, self.lengths[-1 if call.startswith("list_errors") else 1]) for call in others]

    def _listings(self, progress: Progress, sessions: int) -> None:
        for name in progress.track(list(self.workers), description=f"storing {sessions:,} sessions"):
            if "list_page" in self.about[name]["calls"]:
                self._attempt(name, f"list_page {sessions}", "fill", sessions=sessions)
        for _ in progress.track(range(self.rounds), description=f"list_page of {sessions:,}"):
            self._turn("list_page", sessions)

    def _turn(self, call: str, length: int) -> None:
        """Measure one call of each contender, in random order."""
        cell = f"{call} {length}"
        for name in random.sample(list(self.workers), len(self.workers)):
            if call not in self.about[name]["calls"] or self._is_enough(name, cell):
                continue
            # the first turn is a warm-up, and shows the duration of a call
            times = max(1, min(MOST, int(SECONDS * 1e9 / self._cost.get((name, cell), sys.maxsize))))
            session_id = None
            if call not in {"list_page", "create", "delete"}:
                grows = call == "append" or call.startswith("update")
                times = min(times, _room(length)) if grows else times
                session_id = self._session(name, length, times if grows else 0)
                if session_id is None:
                    continue
            answer = self._attempt(name, cell, "measure", call=call, session_id=session_id, times=times)
            if answer is not None:
                fastest = min(answer["ns"])
                if (name, cell) in self._cost or fastest > SECONDS * 1e9:
                    self.samples[name][cell] += answer["ns"]
                self._cost[name, cell] = fastest

    def _is_enough(self, name: str, cell: str) -> bool:
        """Return whether a contender has used up the time for a call."""
        return sum(self.samples[name][cell]) > SECONDS * 1e9 * self.rounds

    def _session(self, name: str, length: int, growth: int) -> str | None:
        """Return a session with a history of this length; a new one if the last one would grow by more than a tenth."""
        key = (name, length, growth > 0)
        if key not in self._prepared or self._grown[key] + growth > _room(length):
            answer = self._attempt(name, f"{length} entries", "prepare", entries=length)
            if answer is None:
                return None
            self._prepared[key], self._grown[key] = answer["session_id"], 0
        self._grown[key] += growth
        return self._prepared[key]

    def _attempt(self, name: str, what: str, do: str, **request: Any) -> dict[str, Any] | None:
        """Send a request to a contender. A request that failed is reported, and not sent again."""
        if (name, what) in self._given_up:
            return None
        worker = self.workers[name]
        try:
            return worker.ask(do, **request)
        except WorkerError as error:
            self._given_up.add((name, what))
            self.absent[f"{name}, {what}"] = str(error)
            if not worker.is_running():
                self.workers[name] = worker.another()
                worker.close()
                self._prepared = {key: each for key, each in self._prepared.items() if key[0] != name}
            return None

    # --- processes ---

    def _append_at_once(self, name: str) -> None:
        """Measure appends of several processes: to one session, and each to its own."""
        kind = self.kinds[name]
        if kind == "floor" or "append" not in self.about[name]["calls"]:
            return
        numbers = (1,) if name == IN_MEMORY else (1, 2, 4) if kind == "ours" else (1, 4)
        workers = [self.workers[name], *(self.workers[name].another() for _ in range(numbers[-1] - 1))]
        try:
            for worker in workers:
                worker.ask("about")  # all processes have started, so they begin at the same time
            for number in numbers:
                for shared in (True, False) if number > 1 else (True,):
                    self.processes.append(self._hammer(name, workers[:number], shared=shared))
        except WorkerError as error:
            self.absent[f"{name}, several processes"] = str(error)
        finally:
            for worker in workers[1:]:
                worker.close()

    def _hammer(self, name: str, workers: Sequence[Worker], *, shared: bool) -> dict[str, Any]:
        makers = workers[:1] if shared else workers
        ids = [worker.ask("prepare", entries=PREPARED)["session_id"] for worker in makers]

        def append(worker: Worker, session_id: str) -> Counter[str]:
            return Counter(worker.ask("hammer", session_id=session_id, seconds=self.seconds)["counts"])

        with ThreadPoolExecutor(len(workers)) as threads:
            counts = sum(threads.map(append, workers, ids * len(workers)), Counter[str]())
        there = sum(workers[0].ask("count", session_id=each)["count"] - PREPARED for each in ids)
        acknowledged, conflicts = counts.pop("acknowledged", 0), counts.pop("conflicts", 0)
        return {
            "name": name,
            "processes": len(workers),
            "same": shared,
            "per_second": acknowledged / self.seconds,
            "conflicts": conflicts,
            "failed": dict(counts),
            "lost": max(0, acknowledged - there),
            "duplicated": max(0, there - acknowledged),
        }

    # --- memory ---

    def _measure_memory(self, name: str) -> None:
        """Measure the memory of loading the longest history and of listing all sessions, each in a new process."""
        for call, what in (("get", f"loads {self.lengths[-1]:,} entries"), ("walk", "pages through all sessions")):
            session_id = self._session(name, self.lengths[-1], 0) if call == "get" else None
            worker = self.workers[name].another()
            try:
                self.memory[f"{name}, {what}"] = worker.ask("peak", call=call, session_id=session_id)
            except WorkerError as error:
                self.absent[f"{name}, memory: {what}"] = str(error)
            finally:
                worker.close()

    def _ours_in_databases(self) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind == "ours" and name != IN_MEMORY]


def _room(length: int) -> int:
    """Return the number of entries by which a session of this length may grow during a measurement."""
    return max(MOST // 2, length // 10)
