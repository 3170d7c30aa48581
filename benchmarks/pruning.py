"""Latency of a service's appends during a prune: ``python -m benchmarks.pruning``.

The service is a separate process. It appends to one session every 2 ms, first alone and then during a prune.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Self

from rich.console import Console

from benchmarks.clients import database
from vibeforge_sessions import Session, SessionFilter, SQLAlchemySessionRepository
from vibeforge_sessions.retention import prune
from vibeforge_sessions.sql import create_engine

EVERY = 0.002
LIVE = "live"
PAUSES = (0.0, 1.0)


def serve(url: str) -> None:
    """Append until a line arrives on standard input; print the latencies."""
    repository = SQLAlchemySessionRepository(create_engine(url))
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    taken = []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not stop.wait(EVERY):
        began = time.perf_counter()
        repository.append_log(LIVE, "it goes on")
        taken.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps(taken))


class Service:
    """The process of the service during a block; `taken` contains its latencies afterwards."""

    def __init__(self, url: str) -> None:
        self.taken: list[float] = []
        command = [sys.executable, "-m", "benchmarks.pruning", "--url", url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(self, *_of_an_error: object) -> None:
        said, _unused = self._process.communicate("enough\n")
        self.taken = json.loads(said)


def measure(url: str, pause: float, sessions: int, seconds: float = 3.0) -> tuple[list[float], list[float], float]:
    """Return the latencies alone, for some seconds, and during a prune; and the duration of the prune."""
    repository = SQLAlchemySessionRepository(create_engine(url))
    if repository.get_session(LIVE) is None:
        repository.create_session(session_id=LIVE)
    for number in range(sessions):
        session = Session(session_id=f"over-{number}", phase="COMPLETE")  # type: ignore[arg-type]
        for task in range(5):
            session.add_error(f"task {task}", "it broke")
        repository.create_session(session)
    with Service(url) as alone:
        time.sleep(seconds)
    with Service(url) as beside:
        began = time.perf_counter()
        report = prune(
            repository, SessionFilter(phases=["COMPLETE"]), older_than=timedelta(milliseconds=1), pause=pause
        )
        took = time.perf_counter() - began
    assert report.total == sessions
    return alone.taken, beside.taken, took


def main() -> None:
    """Run the measurements, and print a table."""
    asked = argparse.ArgumentParser(description="Measure the latency of appends during a prune.")
    asked.add_argument("--sessions", type=int, default=2000)
    asked.add_argument("--url", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.url:
        serve(given.url)
        return
    console = Console(width=160)
    console.print("| database | `--pause` | time of the prune | alone: median, 99th | during: median, 99th, longest |")
    console.print("|---|---|---|---|---|")
    for name in ("sqlite", "postgresql", "mariadb"):
        for pause in PAUSES:
            with database(name) as url:
                alone, beside, took = measure(url, pause, given.sessions)
            console.print(
                f"| {name} | {pause:.0f} | {took:.1f} s | {_ms(statistics.median(alone))}, {_ms(_late(alone))} | "
                f"{_ms(statistics.median(beside))}, {_ms(_late(beside))}, {_ms(max(beside))} |"
            )


def _late(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.99)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


if __name__ == "__main__":
    main()
