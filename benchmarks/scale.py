"""Cost of each call and command on a million sessions with ten million errors, and on a hundredth of them.

``python -m benchmarks.scale --database sqlite|postgresql [--sessions N --errors N] [--directory DIR]``; see
benchmarks/README.md. It needs about 5 GB in DIR for SQLite and 8 GB for PostgreSQL, and removes them at the end.
``--keep`` names a folder that keeps the files of SQLite.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.filling import fill
from benchmarks.plans import Plan, plans_of
from benchmarks.process import ROOT
from benchmarks.scale_calls import CALLS, Place
from tests.support.repositories import text_of
from tests.support.servers import PostgresDatabases, PostgresServer
from vibeforge_sessions.sql import create_engine

HUNDREDTH: Final = 100
ROUNDS: Final = 11
TURN: Final = 20
"""Calls in a turn, if a call takes less than `QUICK` seconds."""
QUICK: Final = 0.02
TURNS: Final = 5
SLOW: Final = 2.0
"""Seconds. A call that takes longer gets three turns."""
SETTINGS: Final = ("shared_buffers=1GB", "max_wal_size=8GB", "maintenance_work_mem=512MB")
"""Settings of a server for such a database; the others are PostgreSQL's defaults."""
COMMANDS: Final = (
    "sessions list",
    "sessions list --phase EXECUTION --has-errors",
    "sessions list --order updated_at --updated-before 30d",
    "sessions list --all --json",
    "sessions show {ended}",
    "sessions show probe",
    "sessions errors probe --last 20",
    "sessions errors probe --task test_api --limit 20",
    "sessions errors probe --all --json",
    "sessions logs probe --last 20",
    "sessions watch {ended}",
    "sessions stats --timeout 600",
    "sessions delete --yes {spare}",
    "db status",
    "db check",
)
_PROGRAM: Final = """
import atexit, sys
from pathlib import Path
def print_peak():
    sys.stderr.write(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
atexit.register(print_peak)
from vibeforge_sessions.cli import main
main()
"""
"""Program that runs the command line and prints its peak size; the size that its parent sees includes the parent."""
console = Console(stderr=True)


@dataclass
class Measured:
    """Seconds of a call or command on the small and on the large database."""

    small: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Peak size of the process of a command in megabytes, on each database."""
    plans: list[Plan] = field(default_factory=list)

    @property
    def medians(self) -> tuple[float, float]:
        """Both medians."""
        return statistics.median(self.small), statistics.median(self.large)


def main() -> None:
    """Fill the databases, run the measurements, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), required=True)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--errors", type=int, default=10_000_000)
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="folder on the measured disk"
    )
    parser.add_argument("--quick", action="store_true", help="short runs, to check that the benchmark works")
    parser.add_argument("--keep", type=Path, help="SQLite only: an empty folder that keeps the files")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args()
    begun = time.monotonic()
    with databases(options.database, options.directory, options.keep) as (urls, about):
        sizes = [
            (max(1, options.sessions // HUNDREDTH), options.errors // HUNDREDTH),
            (options.sessions, options.errors),
        ]
        filled = [_filled(url, *size) for url, size in zip(urls, sizes, strict=True)]
        places = [Place(url, number) for url, (number, _) in zip(urls, sizes, strict=True)]
        calls = {name: measure(call, places, rounds=1 if options.quick else ROUNDS) for name, call in CALLS.items()}
        for name, measured in calls.items():
            measured.plans = plans_of(places[1].engine, CALLS[name](places[1]))
        turns, asked = (1, COMMANDS[:2]) if options.quick else (TURNS, COMMANDS)
        commands = {command: measure_command(command, places, turns) for command in asked}
        for place in places:
            place.close()
    results = {
        "database": options.database,
        "about": about,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[2], 1),
            "python": platform.python_version(),
        },
        "sizes": [
            {"sessions": number, "errors": total} | more for (number, total), more in zip(sizes, filled, strict=True)
        ],
        "calls": {name: _plain(measured) for name, measured in calls.items()},
        "commands": {name: _plain(measured) for name, measured in commands.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"scale-{options.database}.json").write_text(json.dumps(results, indent=1) + "\n")
    text = "\n".join(markdown(results)) + "\n"
    (options.out / f"scale-{options.database}.md").write_text(text)
    print(text)


@contextlib.contextmanager
def databases(kind: str, directory: Path, keep: Path | None) -> Iterator[tuple[list[str], str]]:
    """Provide the URLs of two empty databases in a directory, and their description."""
    if kind == "sqlite":
        temporary = tempfile.TemporaryDirectory(prefix="vfs-scale-", dir=directory)
        with temporary if keep is None else contextlib.nullcontext(keep) as folder:
            urls = [f"sqlite:///{folder}/{name}.db" for name in ("small", "large")]
            engine = create_engine("sqlite://")
            with engine.connect() as connection:
                version = connection.exec_driver_sql("SELECT sqlite_version()").scalar_one()
            engine.dispose()
            yield urls, f"SQLite {version}, WAL, synchronous=FULL"
    else:
        with _Server(directory) as server:
            made = PostgresDatabases(server.url)
            urls = [text_of(made.create(migrated=False)) for _ in range(2)]
            version = ".".join(map(str, server.version))
            yield urls, f"PostgreSQL {version}, fsync=on, {', '.join(SETTINGS)}"


class _Server(PostgresServer):
    """Durable server with its data in a directory."""

    def __init__(self, parent: Path) -> None:
        super().__init__(durable=True, options=SETTINGS)
        self._parent = parent

    def _make_directory(self) -> Path:
        directory = Path(tempfile.mkdtemp(prefix=self.prefix, dir=self._parent))
        self._hand_over(directory)
        return directory


def _filled(url: str, number: int, total: int) -> dict[str, float]:
    engine = create_engine(url)
    last = 0.0

    def report(rows: int, seconds: float) -> None:
        nonlocal last
        if seconds - last > 20:
            last = seconds
            console.print(f"{rows:,} rows, {rows / seconds:,.0f} per second", highlight=False)

    try:
        return fill(engine, number, total, report=report)
    finally:
        engine.dispose()


def measure(call: Callable[[Place], Callable[[], object]], places: list[Place], *, rounds: int) -> Measured:
    """Measure a call on both databases in turns; it is prepared before the clock starts."""
    measured = Measured()
    taken = (measured.small, measured.large)
    for times, place in zip(taken, places, strict=True):  # the first call on each database is a warm-up
        times.append(_timed(call(place)))
    quick = max(*measured.small, *measured.large) < QUICK
    slow = max(*measured.small, *measured.large) > SLOW
    for times in taken if not slow else ():
        times.clear()
    for _ in range(min(2, rounds) if slow else rounds):
        for times, place in zip(taken, places, strict=True):
            times += [_timed(call(place)) for _ in range(TURN if quick else 1)]
    return measured


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure_command(command: str, places: list[Place], turns: int) -> Measured:
    """Run a command as a process; measure its time and its peak size."""
    measured = Measured()
    taken = (measured.small, measured.large)
    for turn in range(turns):
        for index, (times, place) in enumerate(zip(taken, places, strict=True)):
            if turn and max(times) > 10 * SLOW:
                continue
            seconds, megabytes = _run(command.format(ended=place.ended(), spare=place.spare()), place)
            times.append(seconds)
            measured.memory[index] = max(measured.memory[index], megabytes)
    console.print(f"{command}: {measured.medians}", highlight=False)
    return measured


def _run(command: str, place: Place) -> tuple[float, float]:
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *shlex.split(command)],
        env={**os.environ, "VIBEFORGE_SESSIONS_DATABASE_URL": place.url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return seconds, int(re.findall(r"^VmHWM:\s+(\d+) kB$", done.stderr, re.MULTILINE)[-1]) / 1024


def _plain(measured: Measured) -> dict[str, Any]:
    small, large = measured.medians
    found: dict[str, Any] = {"small": small, "large": large, "times": [len(measured.small), len(measured.large)]}
    if measured.memory[0]:
        found["megabytes"] = [round(each) for each in measured.memory]
    if measured.plans:
        found["plans"] = [plan._asdict() for plan in measured.plans]
    return found


def markdown(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report."""
    machine, (small, large) = results["machine"], results["sizes"]
    titles = [f"{each['sessions']:,} sessions" for each in (small, large)]
    asked = f"--database {results['database']} --sessions {large['sessions']} --errors {large['errors']}"
    yield (
        f"Measured {results['date']} with `python -m benchmarks.scale {asked}`, in {results['minutes']} minutes: "
        f"{results['about']}; {machine['system']}, {machine['cores']} cores, a load of {machine['load']}, "
        f"Python {machine['python']}. Filled with {large['rows']:,} rows in {large['seconds']:,.0f} s, "
        f"{large['rows a second']:,.0f} a second. {large['sessions']:,} sessions have {large['errors']:,} errors, "
        f"{small['sessions']:,} have {small['errors']:,}. Medians, in milliseconds.\n"
    )
    yield f"| call | {titles[0]} | {titles[1]} | × | how |\n|---|---|---|---|---|"
    for name, each in results["calls"].items():
        how = "; ".join(dict.fromkeys(plan["how"] for plan in each.get("plans", ())))
        yield f"| {name} | {_figures(each)} | {how} |"
    yield f"\n| command | {titles[0]} | {titles[1]} | × | MB, MB |\n|---|---|---|---|---|"
    for name, each in results["commands"].items():
        megabytes = ", ".join(map(str, each["megabytes"]))
        yield f"| `{name}` | {_figures(each)} | {megabytes} |"


def _figures(each: dict[str, Any]) -> str:
    return f"{_ms(each['small'])} | {_ms(each['large'])} | {each['large'] / each['small']:.1f}"


def _ms(seconds: float) -> str:
    amount = seconds * 1000
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.1f}" if amount >= 10 else f"{amount:.2f}"


if __name__ == "__main__":
    main()
