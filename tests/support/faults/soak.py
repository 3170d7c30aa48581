"""Mixed calls at a bounded rate for a long time, and the detection of growth: ``python -m tests.support.faults.soak``.

A process works on each database. Sessions are created and deleted, so that their number stays about the same. The
memory of the client and the server, connections, threads, open files and the stored size are sampled. The last quarter
of the samples is compared with the second quarter, which begins after the warm-up. Plots need
``vibeforge-sessions[bench]``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine, QueuePool

from tests.support.faults.report import RESULTS, machine, table
from tests.support.repositories import upgrade
from tests.support.servers import MariaDBDatabases, MariaDBServer, PostgresDatabases, PostgresServer, PrivateServer
from tests.support.servers.machine import children_of
from vibeforge_sessions import SessionFilter, SessionRepositoryError, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine

DATABASES: Final = ("sqlite", "postgresql", "mariadb")
THREADS: Final = 4
POPULATION: Final = 200
"""Maximum number of sessions of a thread."""
TOLERANCES: Final = {
    "memory, MB": (0.10, 8.0),
    "server's memory, MB": (0.10, 32.0),
    "connections": (0.0, 1.0),
    "threads": (0.0, 1.0),
    "open files": (0.0, 4.0),
    "size, MB": (0.25, 16.0),
}
"""Permitted growth of each figure: a share of its former value, or an absolute amount, whichever is larger."""


class Workplace(NamedTuple):
    """A database to work on."""

    engine: Engine
    folder: Path
    server: PrivateServer | None


@contextmanager
def workplace(database: str) -> Iterator[Workplace]:
    """Provide an empty migrated database whose commits are synced."""
    if database == "sqlite":
        with tempfile.TemporaryDirectory(prefix="vfs-soak-") as name:
            folder = Path(name)
            engine = create_engine(f"sqlite:///{folder}/soak.db")
            upgrade(engine.url)
            yield Workplace(engine, folder, None)
            engine.dispose()
        return
    with server_of(database) as server:
        factory = PostgresDatabases if database == "postgresql" else MariaDBDatabases
        engine = create_engine(factory(server.url, upgrade).create())
        yield Workplace(engine, server.directory, server)
        engine.dispose()


def server_of(database: str) -> PrivateServer:
    """Return a server that soon reaches its maximum size: its buffers and its log are full within minutes."""
    if database == "mariadb":
        return MariaDBServer(durable=True)
    return PostgresServer(durable=True, options=["shared_buffers=16MB", "max_wal_size=64MB", "min_wal_size=64MB"])


# --- load ---


class Client:
    """The sessions of one thread, and its calls."""

    def __init__(self, repository: SQLAlchemySessionRepository, number: int) -> None:
        self.repository = repository
        self.random = random.Random(number)
        self.sessions: deque[str] = deque()
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        """Make one call."""
        if len(self.sessions) < 2 or self.random.random() < 0.1:
            session = self.repository.create_session()
            self.sessions.append(session.session_id)
            self.done["create"] += 1
            if len(self.sessions) > POPULATION:
                self.repository.delete_session(self.sessions.popleft())
                self.done["delete"] += 1
            return
        session_id = self.random.choice(self.sessions)
        name, call = self.random.choices(self._calls(session_id), weights=(4, 4, 4, 3, 1, 1, 1))[0]
        call()
        self.done[name] += 1

    def _calls(self, session_id: str) -> list[tuple[str, Callable[[], object]]]:
        of = self.repository
        text = "x" * self.random.randrange(2_000)
        return [
            ("append_error", lambda: of.append_error(session_id, "task", text)),
            ("append_log", lambda: of.append_log(session_id, text)),
            ("modify", lambda: of.modify_session(session_id, lambda session: session.add_answer("a", text))),
            ("get", lambda: of.get_session(session_id, recent=20)),
            ("list_errors", lambda: of.list_errors(session_id, limit=50)),
            ("find", lambda: of.find_sessions(SessionFilter(has_errors=True), order="-updated_at", limit=20)),
            ("get_all", lambda: of.get_session(session_id)),
        ]


def work(repository: SQLAlchemySessionRepository, number: int, rate: float, until: float, into: Counter[str]) -> None:
    """Make calls at a rate until a time, and count them."""
    client, next_call = Client(repository, number), time.monotonic()
    while (now := time.monotonic()) < until:
        if now < next_call:
            time.sleep(next_call - now)
        next_call = max(next_call + 1 / rate, now - 1)  # catch up on at most one second of missed calls
        try:
            client.step()
        except SessionRepositoryError as error:
            client.done[type(error).__name__] += 1
    into.update(client.done)


# --- samples ---


def memory_of(pid: int) -> float:
    """Return the proportional memory of a process in MB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # the process has ended
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def size_of(folder: Path) -> float:
    """Return the size of a folder's files in MB."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # deleted meanwhile
            continue
    return total / 1e6


def sample(at: Workplace) -> dict[str, float]:
    """Return every figure that could grow."""
    pool = at.engine.pool
    found = {
        "memory, MB": memory_of(os.getpid()),
        "connections": float(pool.checkedin() + pool.checkedout()) if isinstance(pool, QueuePool) else 0.0,
        "threads": float(threading.active_count()),
        "open files": float(sum(1 for _ in Path("/proc/self/fd").iterdir())),
        "size, MB": size_of(at.folder),
    }
    if at.server is not None:
        pids = [at.server.pid, *children_of(at.server.pid)]
        found["server's memory, MB"] = sum(map(memory_of, pids))
    return found


def verdicts(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the medians of each figure in the second and in the last quarter, and whether it is flat."""
    quarter = max(1, len(samples) // 4)
    found = {}
    for name in samples[0]:
        if name not in TOLERANCES:
            continue
        before = statistics.median(each[name] for each in samples[quarter : 2 * quarter] or samples)
        after = statistics.median(each[name] for each in samples[-quarter:])
        part, least = TOLERANCES[name]
        flat = after - before <= max(part * before, least)
        found[name] = {"second quarter": round(before, 1), "last quarter": round(after, 1), "flat": flat}
    return found


def soak(database: str, minutes: float, rate: float) -> dict[str, Any]:
    """Work on a database, and return the figures."""
    samples: list[dict[str, float]] = []
    done: Counter[str] = Counter()
    with workplace(database) as at:
        repository = SQLAlchemySessionRepository(at.engine)
        began = time.monotonic()
        until = began + minutes * 60
        threads = [
            threading.Thread(target=work, args=(repository, number, rate / THREADS, until, done))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        pause = max(0.2, min(3.0, minutes * 60 / 60))
        while time.monotonic() < until:
            samples.append({"seconds": time.monotonic() - began, **sample(at)})
            time.sleep(pause)
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    return {
        "database": database,
        "minutes": minutes,
        "rate": rate,
        "calls": dict(done),
        "per second": round(sum(done.values()) / seconds, 1),
        "verdicts": verdicts(samples),
        "samples": samples,
    }


# --- report ---


def report(found: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = []
    for each in found:
        calls, seen = sum(each["calls"].values()), each["per second"]
        errors = {name: number for name, number in each["calls"].items() if name.endswith("Error")}
        lines += [
            f"## {each['database']}",
            "",
            f"{calls:,} calls in {each['minutes']:g} minutes ({seen} per second, requested: {each['rate']:g}).",
            f"Errors: {errors or 'none'}.",
            "",
            *table(
                ("", "second quarter", "last quarter", "flat"),
                [
                    (name, verdict["second quarter"], verdict["last quarter"], "yes" if verdict["flat"] else "**no**")
                    for name, verdict in each["verdicts"].items()
                ],
            ),
            "",
        ]
    return "\n".join(lines)


def plot(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw every figure over time."""
    import matplotlib as mpl  # noqa: PLC0415 (an extra)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = list(TOLERANCES)
    figure, axes = plt.subplots(len(names), 1, figsize=(7, 1.7 * len(names)), sharex=True)
    for axis, name in zip(axes, names, strict=True):
        for number, each in enumerate(found):
            samples = [one for one in each["samples"] if name in one]
            if samples:
                minutes = [one["seconds"] / 60 for one in samples]
                axis.plot(minutes, [one[name] for one in samples], f"C{number}", label=each["database"], linewidth=1)
        axis.set_ylabel(name, fontsize=7)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    axes[-1].set_xlabel("minutes", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; return 1 if a figure has grown or a call has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=200, help="calls per second on each database")
    parser.add_argument("--database", choices=[*DATABASES, "all"], default="all")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of soak.md, soak.json and soak.png")
    parser.add_argument("--no-plot", action="store_true")
    options = parser.parse_args(arguments)
    if options.database != "all":
        found = [soak(options.database, options.minutes, options.rate)]
    else:
        found = _in_processes(options.minutes, options.rate)
    options.output.mkdir(parents=True, exist_ok=True)
    text = report(found)
    print(text)
    (options.output / "soak.json").write_text(json.dumps({"machine": machine(), "found": found}) + "\n")
    (options.output / "soak.md").write_text(f"# Soak\n\n{machine()}\n\n{text}")
    if not options.no_plot:
        plot(found, options.output / "soak.png")
    failed = any(name.endswith("Error") for each in found for name in each["calls"])
    return int(failed or not all(verdict["flat"] for each in found for verdict in each["verdicts"].values()))


def _in_processes(minutes: float, rate: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="vfs-soaked-") as folder:
        processes = [
            subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-m",
                        "tests.support.faults.soak",
                        "--minutes",
                        str(minutes),
                        "--rate",
                        str(rate),
                    ),
                    *("--database", name, "--output", f"{folder}/{name}", "--no-plot"),
                ],
                stdout=subprocess.DEVNULL,
            )
            for name in DATABASES
        ]
        for process in processes:
            process.wait()
        files = [Path(folder) / name / "soak.json" for name in DATABASES]
        return [json.loads(file.read_text())["found"][0] for file in files]


if __name__ == "__main__":
    sys.exit(main())
