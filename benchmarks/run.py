"""Entry point of `make bench`: every call of every contender, interleaved in one run; see README.md."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.process import ROOT, WorkerError, environment
from tests.support.repositories import text_of, upgrade
from tests.support.servers import MariaDBDatabases, MariaDBServer, PostgresDatabases, PostgresServer
from tests.support.servers.process import ServerUnavailable
from vibeforge_sessions.sql import create_engine, migrate

LENGTHS: Final = (10, 100, 1_000, 10_000)
SESSIONS: Final = (1_000, 100_000)
DATABASES: Final = ("sqlite", "postgresql", "mariadb")

console = Console(stderr=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short runs, to check that the benchmark works")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender at each call (15)")
    parser.add_argument("--databases", default=",".join(DATABASES), help="databases of this package (all)")
    parser.add_argument("--only", default="floor,peers", help="other contenders: floor, peers, or names of peers (all)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args()
    bench = Bench(
        rounds=3 if options.quick else options.rounds,
        lengths=LENGTHS[:3] if options.quick else LENGTHS,
        sessions=(200, 1_000) if options.quick else SESSIONS,
        seconds=0.5 if options.quick else 4.0,
    )
    if bench.machine["load"] > 0.5:
        console.print(
            f"the load is {bench.machine['load']}: where others compute, a commit waits a tick (4 ms) for its turn"
        )
    databases, beside = options.databases.split(","), options.only.split(",")
    with (
        tempfile.TemporaryDirectory(prefix="vfs-bench-") as folder,
        servers(bench, databases) as running,
        contextlib.closing(bench),
    ):
        add_ours(bench, Path(folder), running, databases, with_floor="floor" in beside)
        add_peers(bench, Path(folder), running, beside)
        bench.run(console)
    report.write(bench.results(), options.out)
    Console(width=160).print((options.out / "results.md").read_text(), markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def servers(bench: Bench, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Start the servers that can be started, with durable settings."""
    kinds: dict[str, tuple[Any, Any]] = {
        "postgresql": (PostgresServer, PostgresDatabases),
        "mariadb": (MariaDBServer, MariaDBDatabases),
    }
    with contextlib.ExitStack() as stack:
        running = {}
        for name in [each for each in kinds if each in wanted]:
            try:
                server = stack.enter_context(kinds[name][0](durable=True))
            except ServerUnavailable as error:
                bench.absent[name] = str(error)
            else:
                running[name] = kinds[name][1](server.url, upgrade)
        yield running


def add_ours(
    bench: Bench, folder: Path, running: dict[str, Any], databases: Sequence[str], *, with_floor: bool
) -> None:
    """Start a contender of this package and its floor, which share a database."""
    bench.add("ours", "benchmarks.ours:InMemory", str(folder))
    pairs = []
    for kind in ("SQLite", "SQLiteNormal") if "sqlite" in databases else ():
        place = folder / kind
        place.mkdir()
        engine = create_engine(f"sqlite:///{place / 'sessions.db'}")
        migrate.upgrade(engine)
        engine.dispose()
        pairs.append((f"ours:{kind}", f"floor.sqlite:{kind}", str(place)))
    if "postgresql" in running:
        pairs.append(("ours:PostgreSQL", "floor.postgresql:PostgreSQL", text_of(running["postgresql"].create())))
    if "mariadb" in running:
        pairs.append(("ours:MariaDB", "", text_of(running["mariadb"].create())))
    for ours, floor, place_or_url in pairs:
        bench.add("ours", f"benchmarks.{ours}", place_or_url)
        if floor and with_floor:
            bench.add("floor", f"benchmarks.{floor}", place_or_url)


def add_peers(bench: Bench, folder: Path, running: dict[str, Any], wanted: Sequence[str]) -> None:
    """Start the peers, each in its own environment and its own folder or empty database."""
    for peer in importlib.import_module("benchmarks.peers").PEERS:
        if "peers" not in wanted and peer.name not in wanted:
            continue
        try:
            if peer.place == "folder":
                place = folder / f"peer-{peer.name.replace(' ', '-')}"
                place.mkdir()
                where = str(place)
            elif peer.place in running:
                where = text_of(running[peer.place].create(migrated=False).set(drivername=peer.place))
            else:
                raise WorkerError(f"there is no {peer.place} here")
            console.print(f"starting {peer.name}")
            bench.add("peer", peer.contender, where, environment(peer.name, peer.requirements))
        except WorkerError as error:
            bench.absent[peer.name] = str(error)


if __name__ == "__main__":
    main()
