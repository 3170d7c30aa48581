"""Acknowledged writes survive the failure of a primary server, or of the pooler in front of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.faults import failover
from tests.support.faults.ledger import Findings
from tests.support.faults.writer import FAILED, UNKNOWN
from tests.support.servers import PgBouncer, PostgresPair, PostgresServer
from tests.support.servers.fixtures import skipping

# All tests of a pair of servers share one pair.
pytestmark = pytest.mark.cluster
CALLS = 200


def unknown(findings: Findings) -> list[str]:
    return [call for call in findings.calls if call.endswith(UNKNOWN)]


@pytest.fixture(scope="module")
def pair() -> Iterator[PostgresPair]:
    with skipping(), PostgresPair() as pair:
        yield pair


@pytest.mark.parametrize("how", ["restart", "promote"])
def test_acknowledged_writes_survive_kill_of_primary_under_load(how: str, pair: PostgresPair) -> None:
    if pair.standby is None:
        pair.add_standby()
    findings = failover.one_round(pair, how, calls=CALLS)
    assert findings.violations == []
    assert findings.outcomes(FAILED) == 0, findings.texts
    assert unknown(findings) == []
    assert any("Stale" not in reason for reason in findings.retries), "no call was retried, so the kill was not noticed"


def test_timed_out_commits_on_a_cut_standby_are_reported_as_unknown(pair: PostgresPair) -> None:
    if pair.standby is None:
        pair.add_standby()
    findings = failover.one_round(pair, "stall", calls=CALLS)
    assert findings.violations == []
    assert unknown(findings), "no call was waiting for its commit"


def test_script_reports_writes_lost_by_an_asynchronous_standby(tmp_path: Path) -> None:
    with skipping():
        PostgresPair()
    results = script("failover", "--how=lag", "--drivers=psycopg", f"--calls={CALLS}", folder=tmp_path)
    assert results["lag"][0]["lost"] > 0
    assert "- LOST history-" in (tmp_path / "failover.md").read_text()


def test_acknowledged_writes_survive_kills_of_pgbouncer_under_load(tmp_path: Path) -> None:
    with skipping():
        PgBouncer(PostgresServer().url)
    results = script("pgbouncer", "--times=3", "--pause=0.2", f"--calls={CALLS}", folder=tmp_path)
    (figures,) = results["rounds"]
    assert figures["violations"] == []
    assert (figures["failed"], figures["unknown"]) == (0, 0), figures["texts"]


def script(name: str, *arguments: str, folder: Path) -> Any:
    """Run a script, which checks its own results, and return the figures that it writes."""
    command = [sys.executable, "-m", f"tests.support.faults.{name}", "--rounds=1", f"--out={folder}", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (figures,) = folder.glob("*.json")
    return json.loads(figures.read_text())
