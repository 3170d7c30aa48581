"""A Galera cluster that loses a node and gets it back while all nodes are written to."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support.faults import galera, report
from tests.support.faults.galera import Stage
from tests.support.faults.writer import FAILED, UNKNOWN, repository_of
from tests.support.servers import GaleraCluster, GaleraNode
from tests.support.servers.fixtures import skipping
from tests.support.servers.galera import QUICK

# All tests share one cluster, because a cluster takes 12 s to start.
pytestmark = pytest.mark.cluster
CALLS = 150
PAUSE = 0.03
"""Seconds between two calls of a writer, so that the nodes have CPU time; the number of calls is irrelevant here."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[GaleraCluster]:
    with skipping(), GaleraCluster(provider_options=QUICK) as cluster:
        yield cluster


@pytest.mark.parametrize(("event", "number"), [("kill", 0), ("isolate", 1)])
def test_acknowledged_writes_survive_failure_of_a_node_under_load(
    event: str, number: int, cluster: GaleraCluster, tmp_path: Path
) -> None:
    stage = Stage(cluster, event, str(tmp_path), pause=PAUSE)
    findings = galera.one_event(stage, cluster, event, cluster.nodes[number], CALLS)
    assert findings.violations == []
    assert findings.outcomes(FAILED) == 0, findings.texts
    assert findings.outcomes(UNKNOWN) == 0, findings.texts


def test_script_reports_migrations_and_reads_while_all_nodes_are_written_to(
    cluster: GaleraCluster, tmp_path: Path
) -> None:
    options = argparse.Namespace(rounds=1, calls=2 * CALLS, reads=30, quick=True)
    about = {"machine": report.machine(), "options": vars(options)}
    results = about | galera.run(cluster, str(tmp_path), ["migrate", "reads"], options)
    report.write("galera", results, galera.lines(results), tmp_path)
    (migrated,) = json.loads((tmp_path / "galera.json").read_text())["migrate"]
    assert migrated["violations"] == []
    assert (migrated["failed"], migrated["unknown"]) == (0, 0)
    assert results["reads"]["wsrep_sync_wait=1"]["stale"] == 0
    assert "| wsrep_sync_wait=1 | 30 | 0 |" in (tmp_path / "galera.md").read_text()


@pytest.mark.parametrize("driver", ["pymysql", "asyncmy"])
def test_calls_move_to_another_node_when_a_node_rejects_queries(
    driver: str, cluster: GaleraCluster, tmp_path: Path
) -> None:
    stage = Stage(cluster, f"ready_{driver}", str(tmp_path), pause=PAUSE)
    settings = dataclasses.replace(stage.settings()[0], asynchronous=driver == "asyncmy")
    url = sa.make_url(settings.url).set(drivername=f"mariadb+{driver}").render_as_string(hide_password=False)
    one, two, _ = cluster.nodes
    with repository_of(dataclasses.replace(settings, url=url)) as repository:
        session_id = repository.create_session().session_id
        assert clients(one) == 1
        # the node then answers with error 1047, as a joining node does
        one.query("SET GLOBAL wsrep_reject_queries = ALL_KILL")
        try:
            assert repository.append_error(session_id, "task", "after").position == 1
            assert (clients(one), clients(two)) == (0, 1)
        finally:
            one.query("SET GLOBAL wsrep_reject_queries = NONE")


def clients(node: GaleraNode) -> int:
    listing = "SELECT count(*) FROM information_schema.processlist WHERE db IS NOT NULL"
    return int(node.query(listing)[0][0])
