"""Nodes of a Galera cluster that are killed, isolated and frozen under load: ``python -m tests.support.faults.galera``.

Each writer process has a URL of all nodes, with its own node first. When a node fails, the writers continue by means of
the repository's own retries. Afterwards their journals are compared with the database of each node.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tests.support.faults import report
from tests.support.faults.ledger import Findings, Writers, examine, shared_sessions
from tests.support.faults.writer import Settings
from tests.support.older_code import older_code
from tests.support.repositories import text_of
from tests.support.servers import GaleraCluster, GaleraNode
from tests.support.servers.galera import QUICK
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.sql.tables import metadata

READ_YOUR_WRITES: Final = {"init_command": "SET SESSION wsrep_sync_wait=1"}
"""The ``connect_args`` of an engine that reads writes which another node has acknowledged."""


def _thaw(cluster: GaleraCluster, node: GaleraNode) -> None:
    node.thaw()
    cluster.wait_until_whole()


Event = tuple[str, Callable[[GaleraNode], None], Callable[[GaleraCluster, GaleraNode], None]]
EVENTS: Final[Mapping[str, Event]] = {
    "kill": ("killed and rejoins", GaleraNode.kill9, lambda _, node: node.rejoin()),
    "isolate": ("isolated from the others and reunited", GaleraNode.isolate, lambda _, node: node.reunite()),
    "freeze": ("frozen and thawed", GaleraNode.freeze, _thaw),
}
"""Events by name: description, function that begins the event, function that ends it."""


class Stage:
    """A migrated database of a cluster, with the settings of its writers.

    :param pause: seconds between two calls of a writer's client, on average.
    """

    def __init__(self, cluster: GaleraCluster, name: str, folder: str, *, pause: float = 0.0) -> None:
        self._pause = pause
        self._cluster, self._name, self.folder = cluster, f"vf_{name}", folder
        cluster.nodes[0].query(f"CREATE DATABASE {self._name}")
        with self.repository() as repository:
            migrate.upgrade(repository._transactions.bind)
            self._histories, self._states = shared_sessions(repository)

    @contextlib.contextmanager
    def repository(
        self, first: int = 0, connect_args: Mapping[str, Any] = MappingProxyType({})
    ) -> Iterator[SQLAlchemySessionRepository]:
        """Provide a repository that prefers one of the nodes."""
        engine = create_engine(self._cluster.url(self._name, first=first), connect_args=dict(connect_args))
        yield SQLAlchemySessionRepository(engine)
        engine.dispose()

    def settings(self, nodes: Sequence[int] = (0, 1, 2)) -> list[Settings]:
        """Return the settings of three processes on these nodes; the last process is asynchronous."""
        return [
            Settings(
                name=f"w{number}",
                url=text_of(self._cluster.url(self._name, f"mariadb+{driver}", first=nodes[number % len(nodes)])),
                journal=f"{self.folder}/{self._name}.{number}.journal",
                histories=self._histories,
                states=self._states,
                asynchronous=driver == "asyncmy",
                pause=self._pause,
            )
            for number, driver in enumerate(("pymysql", "pymysql", "asyncmy"))
        ]

    def examine(self, settings: Sequence[Settings]) -> Findings:
        """Compare the journals of the writers with the database of each node."""
        self._cluster.wait_until_whole()
        with self.repository(connect_args=READ_YOUR_WRITES) as repository:
            findings = examine(repository, settings)
        tables = ", ".join(f"{self._name}.{table}" for table in metadata.tables)
        sums = {
            str(node.query("SET SESSION wsrep_sync_wait=1", f"CHECKSUM TABLE {tables}")): node.name
            for node in self._cluster.nodes
        }
        if len(sums) > 1:
            findings.violations.append(f"NODES {' and '.join(sums.values())} hold different data")
        return findings


def one_event(stage: Stage, cluster: GaleraCluster, event: str, node: GaleraNode, calls: int) -> Findings:
    """Run an event under load; this many calls are acknowledged before, during and after it."""
    _, begin, end = EVENTS[event]
    settings = stage.settings()
    with Writers(settings) as writers:
        writers.wait_for(calls)
        begin(node)
        writers.wait_for(calls)
        end(cluster, node)
        writers.wait_for(calls)
    return stage.examine(settings)


def migrations(stage: Stage, rounds: int, calls: int) -> Findings:
    """Downgrade and upgrade under load; the writers run the previous revision's code, which works with both schemas."""
    settings = stage.settings()
    code = older_code(Path(stage.folder) / "older")
    with Writers(settings, code=code) as writers, stage.repository(first=1) as repository:
        engine = repository._transactions.bind
        for _ in range(rounds):
            writers.wait_for(calls)
            migrate.downgrade(engine, "vibeforge_0001")
            writers.wait_for(calls)
            migrate.upgrade(engine)
        writers.wait_for(calls)
    return stage.examine(settings)


def throughput(stage: Stage, cluster: GaleraCluster, nodes: int, seconds: float) -> dict[str, float]:
    """Measure the throughput of three processes on this number of nodes, and its cost."""
    settings = stage.settings(range(nodes))
    with Writers(settings) as writers:
        writers.wait_for(100)
        began, before, work = time.monotonic(), writers.acknowledged(), _cpu(cluster)
        time.sleep(seconds)
        calls, took = writers.acknowledged() - before, time.monotonic() - began
        work = _cpu(cluster) - work
    findings = stage.examine(settings)
    assert not findings.violations, findings.violations
    figures = findings.as_figures()
    return {
        "calls/s": calls / took,
        "conflicts per call": figures["conflicts"] / figures["acknowledged"],
        "stale per call": figures["stale"] / figures["acknowledged"],
        "ms of the servers' CPU per call": 1000 * work / calls,
    }


def reads_elsewhere(stage: Stage, reads: int) -> dict[str, dict[str, float]]:
    """Count writes that are acknowledged on one node and not read on another one, under load."""
    found: dict[str, dict[str, float]] = {}
    settings = stage.settings()
    with Writers(settings) as writers:
        writers.wait_for(100)
        for name, options in (("by default", {}), ("wsrep_sync_wait=1", READ_YOUR_WRITES)):
            with stage.repository(0) as here, stage.repository(1, options) as there:
                session_id = here.create_session().session_id
                while there.get_session(session_id, recent=0) is None:
                    time.sleep(0.01)
                stale, took = 0, []
                for _ in range(reads):
                    position = here.append_error(session_id, "task", "on one node").position or 0
                    began = time.monotonic()
                    stale += not there.list_errors(session_id, after=position - 1, limit=1)
                    took.append(time.monotonic() - began)
                here.delete_session(session_id)
            found[name] = {"reads": reads, "stale": stale, "median ms": 1000 * statistics.median(took)}
    findings = stage.examine(settings)
    assert not findings.violations, findings.violations
    return found


def _cpu(cluster: GaleraCluster) -> float:
    """Return the CPU seconds that the servers have used."""
    ticks = 0
    for node in cluster.nodes:
        fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run the requested parts and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.faults.galera", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each event, on alternating nodes (3)")
    parser.add_argument(
        "--calls", type=int, default=2000, help="calls acknowledged before, during and after an event (2000)"
    )
    parser.add_argument("--seconds", type=float, default=20, help="duration of each measurement of throughput (20)")
    parser.add_argument("--reads", type=int, default=500, help="reads on another node (500)")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run (all)")
    parser.add_argument("--quick", action="store_true", help="nodes exclude a silent node after 2 s instead of 5 s")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results, such as benchmarks/results")
    options = parser.parse_args()
    about = {"machine": report.machine(), "options": {**vars(options), "out": None}}
    parts = options.parts.split(",")
    with (
        tempfile.TemporaryDirectory(prefix="vfs-galera-") as folder,
        GaleraCluster(durable=True, provider_options=QUICK if options.quick else "") as cluster,
    ):
        results = about | run(cluster, folder, parts, options)
    if "throughput" in parts:
        for size in (2, 1):
            with (
                tempfile.TemporaryDirectory(prefix="vfs-galera-") as folder,
                GaleraCluster(size, durable=True) as fewer,
            ):
                figures = throughput(Stage(fewer, "fewer", folder), fewer, size, options.seconds)
                results["throughput"] = {f"{size} of {size}": figures, **results["throughput"]}
    report.write("galera", results, lines(results), options.out)
    if any(each["violations"] for event in (*EVENTS, "migrate") for each in results.get(event, ())):
        sys.exit(1)


def run(cluster: GaleraCluster, folder: str, parts: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run these parts and return their results."""
    one = cluster.nodes[0]
    results: dict[str, Any] = {
        "server": ".".join(map(str, one.version)),
        "galera": one.status()["provider_version"].partition("(")[0],
    }
    for event in [each for each in EVENTS if each in parts]:
        results[event] = []
        for number in range(options.rounds):
            stage = Stage(cluster, f"{event}_{number}", folder)
            found = one_event(stage, cluster, event, cluster.nodes[number % 3], options.calls)
            results[event].append(found.as_figures())
    if "migrate" in parts:
        stage = Stage(cluster, "migrate", folder)
        results["migrate"] = [migrations(stage, options.rounds, options.calls // 2).as_figures()]
    if "throughput" in parts:
        results["throughput"] = {
            f"{nodes} of 3": throughput(Stage(cluster, f"nodes_{nodes}", folder), cluster, nodes, options.seconds)
            for nodes in (1, 2, 3)
        }
    if "reads" in parts:
        results["reads"] = reads_elsewhere(Stage(cluster, "reads", folder), options.reads)
    return results


PARTS: Final = (*EVENTS, "migrate", "throughput", "reads")


def lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report."""
    options = results["options"]
    patience = 2 if options["quick"] else 5
    yield (
        f"MariaDB {results['server']}, Galera {results['galera']}: three nodes on this machine, which exclude a silent"
        f" node after {patience} s. One process of 4 clients for each node (PyMySQL, PyMySQL, asyncmy), whose URL names"
        " its own node first."
    )
    for event, (what, _, _) in EVENTS.items():
        if event in results:
            yield from ("", f"### A node is {what}", "")
            yield f"{options['calls']} calls are acknowledged before the event, during it, and after it."
            yield ""
            yield from report.rounds(results[event])
    if "migrate" in results:
        yield from ("", "### Downgrade to vibeforge_0001 and upgrade under load", "")
        yield from report.rounds(results["migrate"])
    if "throughput" in results:
        yield from ("", "### Throughput of the same load by number of nodes", "")
        yield from _figures("nodes", results["throughput"])
    if "reads" in results:
        yield from ("", "### Reads on one node of writes that another node has acknowledged, under load", "")
        yield from _figures("session", results["reads"])


def _figures(what: str, rows: Mapping[Any, Mapping[str, float]]) -> Iterator[str]:
    head = next(iter(rows.values()))
    yield from report.table((what, *head), [(row, *(f"{each:.3g}" for each in rows[row].values())) for row in rows])


if __name__ == "__main__":
    main()
