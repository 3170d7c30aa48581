"""What was acknowledged survives the failure of a server before which, or behind which, another one stands."""

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

# One pair of servers for those that need one.
pytestmark = pytest.mark.cluster
CALLS = 200


def unknown(findings: Findings) -> list[str]:
    return [call for call in findings.calls if call.endswith(UNKNOWN)]


@pytest.fixture(scope="module")
def pair() -> Iterator[PostgresPair]:
    with skipping(), PostgresPair() as pair:
        yield pair


@pytest.mark.parametrize("how", ["restart", "promote"])
def test_a_primary_is_killed_under_load(how: str, pair: PostgresPair) -> None:
    if pair.standby is None:
        pair.add_standby()
    findings = failover.one_round(pair, how, calls=CALLS)
    assert findings.violations == []
    assert findings.outcomes(FAILED) == 0, findings.texts
    assert unknown(findings) == []
    assert any("Stale" not in reason for reason in findings.retries), "nobody has noticed"


def test_nothing_is_told_that_a_standby_does_not_have_though_calls_run_out_of_time(pair: PostgresPair) -> None:
    if pair.standby is None:
        pair.add_standby()
    findings = failover.one_round(pair, "stall", calls=CALLS)
    assert findings.violations == []
    assert unknown(findings), "no call was in the midst of its commit"


def test_the_script_sees_what_an_asynchronous_standby_has_lost(tmp_path: Path) -> None:
    with skipping():
        PostgresPair()
    results = script("failover", "--how=lag", "--drivers=psycopg", f"--calls={CALLS}", folder=tmp_path)
    assert results["lag"][0]["lost"] > 0
    assert "- LOST history-" in (tmp_path / "failover.md").read_text()


def test_pgbouncer_is_killed_under_load(tmp_path: Path) -> None:
    with skipping():
        PgBouncer(PostgresServer().url)
    results = script("pgbouncer", "--times=3", "--pause=0.2", f"--calls={CALLS}", folder=tmp_path)
    (figures,) = results["rounds"]
    assert figures["violations"] == []
    assert (figures["failed"], figures["unknown"]) == (0, 0), figures["texts"]


def script(name: str, *words: str, folder: Path) -> Any:
    """What a script has found, which says itself whether all is well."""
    command = [sys.executable, "-m", f"tests.support.faults.{name}", "--rounds=1", f"--out={folder}", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (figures,) = folder.glob("*.json")
    return json.loads(figures.read_text())
