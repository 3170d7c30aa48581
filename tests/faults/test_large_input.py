"""Input of 40 MB that is stored or rejected by a process with a memory limit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import cases
from tests.support.databases import DATABASES, Storage


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit needs Linux")
@pytest.mark.parametrize("name", cases(DATABASES, ["sqlite", "mariadb"]))
def test_large_input_is_stored_or_rejected_within_the_memory_limit(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    url = "memory://" if storage.new_url is None else storage.new_url()
    command = [sys.executable, "-m", "tests.support.faults.large_input", url]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    outcomes = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert len(outcomes) == 5
    # values above the server's limit (16 MB for a packet of MariaDB) are rejected with their sizes and never sent
    assert {each.split(" ")[0] for each in outcomes.values()} <= {"stored", "InvalidSessionError:"}
    assert name == "mariadb" or all(each.startswith("stored") for each in outcomes.values())
