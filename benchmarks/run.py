"""`make bench`: every call of every contender, interleaved in one run; see README.md."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from benchmarks import report
from benchmarks.contender import CALLS
from tests.repositories import text_of, upgrade
from tests.servers import MariaDBDatabases, MariaDBServer, PostgresDatabases, PostgresServer
from tests.servers.process import ServerUnavailable
from vibeforge_sessions.sql import create_engine, migrate

ROOT: Final = Path(__file__).parent.parent
LENGTHS: Final = (10, 100, 1_000, 10_000)
SESSIONS: Final = (1_000, 100_000)
GROWING: Final = ("append", "get", "get_recent")
"""Calls that are measured at every length."""
SECONDS: Final = 0.12
"""How long one contender's turn at one call takes, where that is more than once."""
MOST: Final = 20
"""How often a call is repeated in one turn: so much a session grows by being appended to."""

console = Console(stderr=True)


class Worker:
    """A process of a contender."""

    def __init__(self, contender: str, place: str, python: str = sys.executable) -> None:
        self.contender, self.place, self.python = contender, place, python
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", contender, place],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request; wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process has ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.contender}, {do} {request}: {answer['error']}")
        return answer

    def another(self) -> Worker:
        """Return one more process of the same contender."""
        return Worker(self.contender, self.place, self.python)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()


class Bench:
    """The contenders of a run, and what was measured."""

    def __init__(self, *, rounds: int, lengths: Sequence[int], sessions: Sequence[int], seconds: float) -> None:
        self.rounds, self.lengths, self.sessions, self.seconds = rounds, lengths, sessions, seconds
        self.workers: dict[str, Worker] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.absent: dict[str, str] = {}
        self.samples: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.processes: list[dict[str, Any]] = []
        self.memory: dict[str, dict[str, float]] = {}
        self._prepared: dict[tuple[str, int], str] = {}
        self._times: dict[tuple[str, str], int] = {}

    def add(self, contender: str, place: str, python: str = sys.executable) -> None:
        """Start a contender."""
        worker = Worker(contender, place, python)
        about = worker.ask("about")
        self.workers[about["name"]] = worker
        self.about[about["name"]] = about

    def cells(self) -> list[tuple[str, int]]:
        """Return what is measured before the listings, each with the length of its history."""
        cells = [(call, length) for call in GROWING for length in self.lengths]
        middle, longest = self.lengths[1], self.lengths[-1]
        for call in CALLS:
            if call.startswith("list_errors"):
                cells.append((call, longest))
            elif call not in GROWING and call != "list_page":
                cells.append((call, middle))
        return cells

    def run(self) -> None:
        """Measure everything."""
        with Progress(console=console) as progress:
            cells = self.cells()
            task = progress.add_task("calls", total=self.rounds * len(cells))
            for number in range(self.rounds):
                for call, length in random.sample(cells, len(cells)):
                    progress.update(task, description=f"{call} at {length:,}")
                    self.turn(call, length, number)
                    progress.advance(task)
            task = progress.add_task("listings", total=len(self.sessions) * self.rounds)
            for sessions in self.sessions:
                for name, worker in self.workers.items():
                    if not name.startswith("floor") and "list_page" in self.about[name]["calls"]:
                        worker.ask("fill", sessions=sessions)
                for _ in range(self.rounds):
                    self.turn("list_page", sessions, 0)
                    progress.advance(task)
            task = progress.add_task("processes", total=len(self.workers))
            for name in self.workers:
                self.append_at_once(name)
                progress.advance(task)
            self.measure_memory()

    def turn(self, call: str, length: int, number: int) -> None:
        """Let each contender do a call, in any order."""
        for name in random.sample(list(self.workers), len(self.workers)):
            if call in self.about[name]["calls"]:
                session_id = (
                    None if call in {"list_page", "create", "delete"} else self.session(name, call, length, number)
                )
                cell = f"{call} {length}"
                times = self._times.get((name, cell), 2)
                taken = self.workers[name].ask("measure", call=call, session_id=session_id, times=times)["ns"]
                if (name, cell) in self._times:  # the first turn tells how long it takes, and warms up
                    self.samples[name][cell] += taken
                self._times[name, cell] = max(1, min(MOST, int(SECONDS * 1e9 / min(taken))))

    def session(self, name: str, call: str, length: int, number: int) -> str:
        """Return a session with such a history; a fresh one for each turn where it would grow by more than a tenth."""
        anew = call in {"append", "update_phase_and_error"} and length < MOST * 10 * self.rounds
        key = (f"{name} {call} {number}" if anew else name, length)
        if key not in self._prepared:
            self._prepared[key] = self.workers[name].ask("prepare", entries=length)["session_id"]
        return self._prepared[key]

    def append_at_once(self, name: str) -> None:
        """Let several processes append to one session, and to one each."""
        about = self.about[name]
        if name == "in memory" or name.startswith("floor") or "append" not in about["calls"]:
            return
        for number in (1, 2, 4):
            for shared in (True, False):
                workers = [self.workers[name], *(self.workers[name].another() for _ in range(number - 1))]
                try:
                    same = workers[0].ask("prepare", entries=10)["session_id"]
                    for worker in workers:
                        worker.ask("about")  # all have started, and so begin at once
                    ids = [same if shared else worker.ask("prepare", entries=10)["session_id"] for worker in workers]
                    with ThreadPoolExecutor(number) as threads:
                        answers = list(
                            threads.map(
                                lambda each: each[0].ask("hammer", session_id=each[1], seconds=self.seconds),
                                zip(workers, ids, strict=True),
                            )
                        )
                    there = sum(workers[0].ask("count", session_id=each)["count"] - 10 for each in set(ids))
                except RuntimeError as error:
                    self.absent[f"{name}, {number} processes"] = str(error)
                    continue
                finally:
                    for worker in workers[1:]:
                        worker.close()
                counts: dict[str, int] = defaultdict(int)
                for answer in answers:
                    for what, count in answer["counts"].items():
                        counts[what] += count
                acknowledged, refused = counts.pop("acknowledged", 0), counts.pop("refused", 0)
                self.processes.append(
                    {
                        "name": name,
                        "processes": number,
                        "same": shared,
                        "per_second": acknowledged / self.seconds,
                        "refused": refused,
                        "failed": dict(counts),
                        "lost": max(0, acknowledged - there),
                        "duplicated": max(0, there - acknowledged),
                    }
                )

    def measure_memory(self) -> None:
        """Load a long history, and page through all sessions, each in a fresh process."""
        longest = self.lengths[-1]
        for name, worker in self.workers.items():
            if "walk" in self.about[name]["calls"] and name != "in memory":
                for call, session_id in (("get", self.session(name, "get", longest, 0)), ("walk", None)):
                    fresh = worker.another()
                    self.memory[f"{name}: {call}"] = fresh.ask("peak", call=call, session_id=session_id)
                    fresh.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()

    def results(self) -> dict[str, Any]:
        """Return all that was measured."""
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"python": platform.python_version(), "system": platform.platform(), "cores": report.cores()},
            "about": self.about,
            "absent": self.absent,
            "samples": {name: dict(cells) for name, cells in self.samples.items()},
            "processes": self.processes,
            "memory": self.memory,
        }


def python_of(peer: Any) -> str:
    """Return the interpreter of a peer's environment, made where there is none yet."""
    folder = ROOT / ".venv-peers" / peer.name.replace(" ", "-")
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists() or stamp.read_text() != "\n".join(peer.requirements):
        console.print(f"making an environment for {peer.name}")
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements]
        subprocess.run(install, check=True, capture_output=True)
        stamp.write_text("\n".join(peer.requirements))
    return str(python)


@contextlib.contextmanager
def servers(bench: Bench, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Start what can be started, durable."""
    kinds: dict[str, tuple[Any, Any]] = {
        "postgresql": (PostgresServer, PostgresDatabases),
        "mariadb": (MariaDBServer, MariaDBDatabases),
    }
    with contextlib.ExitStack() as stack:
        running = {}
        for name in wanted:
            try:
                server = stack.enter_context(kinds[name][0](durable=True))
            except ServerUnavailable as error:
                bench.absent[name] = str(error)
            else:
                running[name] = kinds[name][1](server.url, upgrade)
        yield running


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of everything: whether it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender at each call (15)")
    parser.add_argument("--databases", default="sqlite,postgresql,mariadb", help="which of ours (all)")
    parser.add_argument("--no-peers", action="store_true", help="only this package and the floor")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args()
    bench = Bench(
        rounds=3 if options.quick else options.rounds,
        lengths=(10, 100, 1_000) if options.quick else LENGTHS,
        sessions=(200, 1_000) if options.quick else SESSIONS,
        seconds=0.5 if options.quick else 4.0,
    )
    databases = options.databases.split(",")
    with (
        tempfile.TemporaryDirectory(prefix="vfs-bench-") as folder,
        servers(bench, [name for name in ("postgresql", "mariadb") if name in databases]) as running,
    ):
        try:
            enter(bench, Path(folder), running, databases, peers=not options.no_peers)
            bench.run()
        finally:
            bench.close()
    report.write(bench.results(), options.out)
    Console(width=160).print((options.out / "results.md").read_text())


def enter(bench: Bench, folder: Path, running: dict[str, Any], databases: Sequence[str], *, peers: bool) -> None:
    """Start the contenders; ours and its floor share a database."""
    bench.add("benchmarks.ours:InMemory", str(folder))
    if "sqlite" in databases:
        for kind in ("SQLite", "SQLiteNormal"):
            place = folder / kind
            place.mkdir()
            engine = create_engine(f"sqlite:///{place / 'sessions.db'}")
            migrate.upgrade(engine)
            engine.dispose()
            bench.add(f"benchmarks.ours:{kind}", str(place))
            bench.add(f"benchmarks.floor.sqlite:{kind}", str(place))
    if "postgresql" in running:
        place_ = text_of(running["postgresql"].create())
        bench.add("benchmarks.ours:PostgreSQL", place_)
        bench.add("benchmarks.floor.postgresql:PostgreSQL", place_)
    if "mariadb" in running:
        bench.add("benchmarks.ours:MariaDB", text_of(running["mariadb"].create()))
    for peer in importlib.import_module("benchmarks.peers").PEERS if peers else ():
        try:
            if peer.place == "folder":
                place = folder / f"peer-{peer.name.replace(' ', '-')}"
                place.mkdir()
                bench.add(peer.contender, str(place), python_of(peer))
            elif peer.place in running:
                url = running[peer.place].create(migrated=False).set(drivername=peer.place)
                bench.add(peer.contender, text_of(url), python_of(peer))
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            bench.absent[peer.name] = str(error)


if __name__ == "__main__":
    main()
