"""What was acknowledged survives the failure of a server before which, or behind which, another one stands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import failover, pgbouncer
from tests.faults.ledger import Findings
from tests.faults.writer import FAILED, UNKNOWN
from tests.repositories import upgrade
from tests.servers import AvailableServer, PgBouncer, PostgresPair
from tests.servers.fixtures import skipping

# One pair of servers for those that need one.
pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("failover")]
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


def test_the_script_sees_what_an_asynchronous_standby_has_lost() -> None:
    with skipping():
        PostgresPair()
    command = [
        sys.executable,
        "-m",
        "tests.faults.failover",
        "--rounds=1",
        f"--calls={CALLS}",
        "--how=lag",
        "--drivers=psycopg",
    ]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "- LOST history-" in ended.stdout


def test_pgbouncer_is_killed_under_load(postgresql_server: AvailableServer) -> None:
    with skipping():
        PgBouncer(postgresql_server.url)
    findings = pgbouncer.one_round(postgresql_server.databases.prepared_by(upgrade), calls=CALLS, pause=0.2, times=3)
    assert findings.violations == []
    assert findings.outcomes(FAILED) == 0, findings.texts
    assert unknown(findings) == []
