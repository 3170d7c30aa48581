"""Is it flat? Mixed calls at a bounded rate, for minutes, while memory, connections, files and threads are watched.

    python -m tests.faults.soak                              # ten minutes, 200 calls a second on each database at once
    python -m tests.faults.soak --database sqlite --minutes 1 --rate 50
    python -m tests.faults.soak --output benchmarks/results  # soak.json, soak.md and, with the extra `bench`, soak.png

The population is steady: where there are more than `POPULATION` sessions, the oldest is deleted. Each database has a
process and a durable server of its own; half of the callers are threads, half are tasks of an event loop. What is
sampled is flat if its median in the last quarter of the time is not above that in the second one by more than the
tolerance of `WATCHED`. What grows is named, and so is a call that failed: then the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import URL, QueuePool, make_url

from tests.faults import report
from tests.faults.at_work import repositories
from tests.repositories import upgrade
from tests.servers import MariaDBDatabases, MariaDBServer, PostgresDatabases, PostgresServer
from tests.servers.machine import children_of
from vibeforge_sessions import Session, SessionNotFoundError, SessionRepository, StaleSessionError

DATABASES: Final = ("sqlite", "postgresql", "mariadb")
CALLERS: Final = 4
POPULATION: Final = 200
_MEGABYTE: Final = 2**20


class Tolerance(NamedTuple):
    """By how much a series may be greater at the end: by a share of what it was, or by an amount, whichever is more."""

    share: float
    amount: float
    unit: str


WATCHED: Final = {
    "client memory": Tolerance(0.05, 4, "MB"),
    "client file descriptors": Tolerance(0, 3, ""),
    "client threads": Tolerance(0, 2, ""),
    "pooled connections": Tolerance(0, 1, ""),
    "server connections": Tolerance(0, 1, ""),
    "server memory": Tolerance(0.10, 16, "MB"),
    "database": Tolerance(0.10, 16, "MB"),
    "write-ahead log": Tolerance(0.10, 4, "MB"),
    "sessions": Tolerance(0.05, 5, ""),
    "entries": Tolerance(0.15, 100, ""),
}
"""What is sampled. The last two tell that the load itself is steady."""


# -- the calls


class Load:
    """Callers that share a population of sessions, and call at a rate."""

    def __init__(self, those: Sequence[SessionRepository], rate: float) -> None:
        self.counted: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._population: deque[str] = deque()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(repository, rate / len(those), number), daemon=True)
            for number, repository in enumerate(those)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def fill(self, repository: SessionRepository) -> None:
        """Begin with as many sessions as there will be."""
        for _ in range(POPULATION):
            self._population.append(repository.create_session().session_id)

    def _work(self, repository: SessionRepository, rate: float, seed: int) -> None:
        caller = _Caller(repository, Random(seed), self._population)
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / rate, time.monotonic() - 1)  # what was missed for longer than a second is left out
            try:
                name = caller.call()
            except Exception as error:  # noqa: BLE001 (it is what the verdict names)
                with self._lock:
                    self.failed[f"{type(error).__name__}: {error}"] += 1
            else:
                with self._lock:
                    self.counted[name] += 1


class _Caller:
    """Makes one call after another, each on a session that others may be using, too."""

    def __init__(self, repository: SessionRepository, random: Random, population: deque[str]) -> None:
        self._repository = repository
        self._random = random
        self._population = population
        weights = {
            self._create: 6,
            self._get: 20,
            self._get_recent: 20,
            self._update: 20,
            self._append_error: 12,
            self._append_log: 12,
            self._list: 6,
            self._find: 4,
        }
        self._calls, self._weights = list(weights), list(weights.values())

    def call(self) -> str:
        """Make a call; return its name, or that it was refused."""
        if len(self._population) > POPULATION:
            with contextlib.suppress(IndexError):  # another caller has taken the last one
                self._repository.delete_session(self._population.popleft())
                return "delete"
        (call,) = self._random.choices(self._calls, self._weights)
        if not self._population:
            call = self._create
        session_id = self._random.choice(self._population) if self._population else ""
        try:
            call(session_id)
        except (StaleSessionError, SessionNotFoundError) as error:  # another caller was first
            return type(error).__name__
        return call.__name__.strip("_")

    def _text(self, size: int) -> str:
        return self._random.randbytes(size // 2).hex()

    def _create(self, _: str) -> None:
        session = Session(build_spec={"text": self._text(3000)}, concept={"text": self._text(1000)})
        session.add_log("created")
        self._population.append(self._repository.create_session(session).session_id)

    def _get(self, session_id: str) -> None:
        self._repository.get_session(session_id)

    def _get_recent(self, session_id: str) -> None:
        self._repository.get_session(session_id, recent=5)

    def _update(self, session_id: str) -> None:
        session = self._repository.get_session(session_id, recent=0)
        if session is None:
            raise SessionNotFoundError(session_id)
        session.add_answer(f"question {self._random.randrange(20)}", self._text(100))
        if self._random.random() < 0.3:
            session.concept = {"text": self._text(1000)}
        session.add_log("updated")
        self._repository.update_session(session)

    def _append_error(self, session_id: str) -> None:
        self._repository.append_error(session_id, "task", self._text(300))

    def _append_log(self, session_id: str) -> None:
        self._repository.append_log(session_id, self._text(80))

    def _list(self, session_id: str) -> None:
        self._repository.list_errors(session_id, limit=20)
        self._repository.list_logs(session_id, limit=20)

    def _find(self, _: str) -> None:
        page = self._repository.find_sessions(order="-updated_at", limit=20)
        if page.next_cursor is not None:
            self._repository.find_sessions(order="-updated_at", limit=20, cursor=page.next_cursor)


# -- what is watched

_CONNECTIONS: Final = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}
_COUNTED: Final = (
    "SELECT (SELECT count(*) FROM vibeforge_sessions),"
    " (SELECT count(*) FROM vibeforge_session_errors) + (SELECT count(*) FROM vibeforge_session_logs)"
)


class Place(NamedTuple):
    """A database, and where its traces are."""

    url: URL
    pid: int | None
    """The server's process, None where there is none."""
    data: Path
    """The database's file, or the server's data directory."""


@contextlib.contextmanager
def place(database: str) -> Iterator[Place]:
    """Give a new database with our tables; a server waits for its disk."""
    if database == "sqlite":
        with TemporaryDirectory(prefix="vfs-soak-") as folder:
            file = Path(folder) / "sessions.db"
            url = make_url(f"sqlite:///{file}")
            upgrade(url)
            yield Place(url, None, file)
        return
    make, factory = (
        (PostgresServer, PostgresDatabases) if database == "postgresql" else (MariaDBServer, MariaDBDatabases)
    )
    with make(durable=True) as server:
        url = factory(server.url, upgrade).create()
        yield Place(url, server.pid, server.directory / "data")


class Watch:
    """Looks at the client, which is this process, at the server and at its files."""

    def __init__(self, place: Place, pools: Sequence[QueuePool]) -> None:
        self._place = place
        self._pools = pools
        self._engine = sa.create_engine(place.url, pool_size=1, isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        self._engine.dispose()

    def look(self) -> dict[str, float]:
        """Return one sample."""
        backend = self._place.url.get_backend_name()
        with self._engine.connect() as connection:
            sessions, entries = connection.execute(sa.text(_COUNTED)).one()
            found: dict[str, float] = {"sessions": sessions, "entries": entries}
            if backend in _CONNECTIONS:
                found["server connections"] = connection.scalar(sa.text(_CONNECTIONS[backend])) or 0
            if backend == "postgresql":
                size = connection.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0
                found["database"] = size / _MEGABYTE
        found |= {
            "client memory": _memory("self", "Rss"),
            "client file descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "client threads": threading.active_count(),
            "pooled connections": sum(pool.checkedin() + pool.checkedout() for pool in self._pools),
        }
        if backend == "sqlite":
            found["database"] = _size([self._place.data])
            found["write-ahead log"] = _size([self._place.data.with_name("sessions.db-wal")])
        elif backend == "postgresql":
            found["write-ahead log"] = _size((self._place.data / "pg_wal").iterdir())
        else:
            logs = set(self._place.data.glob("ib_logfile*"))  # one file of a fixed size
            found["database"] = _size(set(self._place.data.rglob("*")) - logs)
        if self._place.pid is not None:
            found["server memory"] = sum(
                _memory(pid, "Pss") for pid in (self._place.pid, *children_of(self._place.pid))
            )
        return found


def _memory(pid: object, kind: str) -> float:
    """Return a process's resident memory: Rss is all of it, of Pss what it shares with others counts in parts."""
    with contextlib.suppress(OSError):  # it has just ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _size(files: Any) -> float:
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total / _MEGABYTE


def soak(database: str, *, minutes: float, rate: float) -> dict[str, Any]:
    """Do it on one database; return what was counted and sampled."""
    seconds = minutes * 60
    every = min(5.0, max(0.1, seconds / 120))
    samples: list[dict[str, float]] = []
    with place(database) as there, repositories(there.url, CALLERS) as (those, engines):
        pools = [engine.pool for engine in engines if isinstance(engine.pool, QueuePool)]
        with contextlib.closing(Watch(there, pools)) as watch:
            load = Load(those, rate)
            load.fill(those[0])
            began = time.monotonic()
            with load:
                while (at := time.monotonic() - began) < seconds:
                    samples.append({"at": round(at, 1), **watch.look()})
                    time.sleep(max(0.0, every - (time.monotonic() - began - at)))
    return {
        "database": database,
        "minutes": minutes,
        "rate": rate,
        "calls": dict(load.counted.most_common()),
        "failed": dict(load.failed.most_common(20)),
        "quarters": quarters(samples, seconds),
        "samples": [{name: round(value, 1) for name, value in sample.items()} for sample in samples],
    }


# -- the verdict


def quarters(samples: Sequence[Mapping[str, float]], seconds: float) -> dict[str, list[float]]:
    """Return the medians of each series in each quarter of the time."""
    found = {}
    for name in WATCHED:
        parts: list[list[float]] = [[], [], [], []]
        for sample in samples:
            if name in sample:
                parts[min(3, int(sample["at"] * 4 / seconds))].append(sample[name])
        if all(parts):
            found[name] = [round(statistics.median(part), 1) for part in parts]
    return found


def most(name: str, before: float) -> float:
    """Return how great a series may be at the end, that had this median in the second quarter."""
    tolerance = WATCHED[name]
    return before + max(tolerance.share * before, tolerance.amount)


def growing(result: Mapping[str, Any]) -> list[str]:
    """Return the names of what is not flat."""
    return [name for name, medians in result["quarters"].items() if medians[3] > most(name, medians[1])]


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a run: what grows, and which calls have failed."""
    wrong = [
        f"{result['database']}: {name} grows, {' → '.join(f'{each:g}' for each in result['quarters'][name])}"
        for name in growing(result)
    ]
    wrong += [f"{result['database']}: {count} × {failure}" for failure, count in result["failed"].items()]
    if not result["calls"] or not result["quarters"]:
        wrong.append(f"{result['database']}: nothing was done, or nothing seen")
    return wrong


def lines(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return the report."""
    for result in results:
        done = sum(result["calls"].values())
        yield f"### {result['database']}"
        yield ""
        yield (
            f"{done:,} calls in {result['minutes']:g} minutes, {done / result['minutes'] / 60:.0f} a second ("
            + ", ".join(f"{count:,} {name}" for name, count in result["calls"].items())
            + f"); {sum(result['failed'].values())} failed."
        )
        yield ""
        rows = []
        for name, medians in result["quarters"].items():
            unit = WATCHED[name].unit
            flat = "flat" if medians[3] <= most(name, medians[1]) else "**grows**"
            rows.append(
                (
                    f"{name}{unit and f', {unit}'}",
                    *(f"{each:g}" for each in medians),
                    f"{most(name, medians[1]):g}",
                    flat,
                )
            )
        yield from report.table(("median of each quarter", "1st", "2nd", "3rd", "4th", "4th at most", ""), rows)
        yield ""
    wrong = [each for result in results for each in verdict(result)]
    yield "Wrong:" if wrong else "Everything is flat, and nothing has failed."
    yield from (f"- {each}" for each in wrong)


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw each series of each database; return whether there is what it takes (the extra `bench`)."""
    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(
        len(WATCHED), len(results), figsize=(5 * len(results), 1.5 * len(WATCHED)), squeeze=False
    )
    for column, result in enumerate(results):
        for row, (name, tolerance) in enumerate(WATCHED.items()):
            axis = axes[row][column]
            points = [(sample["at"] / 60, sample[name]) for sample in result["samples"] if name in sample]
            if points:
                axis.plot(*zip(*points, strict=True), linewidth=1)
                axis.set_ylim(bottom=0, top=1.2 * max(value for _, value in points) + 1)
                axis.grid(visible=True, alpha=0.3)
            else:
                axis.set_axis_off()
            title = f"{name}{tolerance.unit and f', {tolerance.unit}'}"
            axis.set_title(f"{result['database']}: {title}" if points else "", fontsize=8, loc="left")
            axis.tick_params(labelsize=7)
        axes[-1][column].set_xlabel("minutes", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)
    return True


# -- the program


def run_apart(databases: Sequence[str], *, minutes: float, rate: float) -> list[dict[str, Any]]:
    """Do it on several databases at once, in a process each, so that the memory of each is its own."""
    command = [sys.executable, "-m", "tests.faults.soak", "--minutes", str(minutes), "--rate", str(rate), "--json"]
    running = [
        subprocess.Popen([*command, "--database", database], stdout=subprocess.PIPE, text=True)
        for database in databases
    ]
    said = [process.communicate()[0] for process in running]
    return [json.loads(text) for text in said]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second, on each database")
    parser.add_argument("--database", choices=[*DATABASES, "all"], default="all")
    parser.add_argument("--output", type=Path, help="a folder for soak.json, soak.md and soak.png")
    parser.add_argument("--json", action="store_true", help="print what was counted and sampled, and nothing else")
    given = parser.parse_args(arguments)
    if given.json:
        print(json.dumps(soak(given.database, minutes=given.minutes, rate=given.rate)))
        return 0
    machine = report.machine()
    databases = DATABASES if given.database == "all" else (given.database,)
    results = run_apart(databases, minutes=given.minutes, rate=given.rate)
    report.write("soak", {"machine": machine, "results": results}, lines(results), given.output)
    if given.output is not None and not plot(results, given.output / "soak.png"):
        print("no plot: matplotlib is not installed (pip install 'vibeforge-sessions[bench]')", file=sys.stderr)
    return 1 if any(map(verdict, results)) else 0


if __name__ == "__main__":
    sys.exit(main())
