"""Input of 40 MB is stored or refused, within a limit of memory that a process of its own has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.databases import DATABASES, Storage


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
@pytest.mark.parametrize("name", DATABASES)
def test_large_input(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    url = "memory://" if storage.new_url is None else storage.new_url()
    command = [sys.executable, "-m", "tests.support.faults.large_input", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    outcomes = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert len(outcomes) == 5
    # what the server does not take (MariaDB's packet has 16 MB) is refused with the sizes, and not tried
    assert {each.split(" ")[0] for each in outcomes.values()} <= {"stored", "InvalidSessionError:"}
    assert name == "mariadb" or all(each.startswith("stored") for each in outcomes.values())
