"""Is it flat? Mixed calls at a bounded rate, for minutes, while memory, connections, files and threads are watched.

    python -m tests.faults.soak                              # ten minutes, 200 calls a second on each database at once
    python -m tests.faults.soak --database sqlite --minutes 1 --rate 50
    python -m tests.faults.soak --output benchmarks/results  # soak.json, soak.md and, with the extra `bench`, soak.png

The population is steady: where there are more than 200 sessions, the oldest is deleted. Each database has a
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
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import QueuePool

from tests.faults import report
from tests.faults.at_work import repositories
from tests.faults.soak_load import Load
from tests.faults.soak_watch import Watch, place

DATABASES: Final = ("sqlite", "postgresql", "mariadb")
CALLERS: Final = 4


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
