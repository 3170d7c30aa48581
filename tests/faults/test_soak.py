"""The soak's script, for seconds; and that it notices what grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.faults import soak


@pytest.mark.exhaustive
def test_it_runs(tmp_path: Path) -> None:
    soak.main(["--database", "sqlite", "--minutes", "0.05", "--rate", "100", "--output", str(tmp_path), "--no-plot"])
    (found,) = json.loads((tmp_path / "soak.json").read_text())["found"]
    assert found["calls"]["create"] > 0
    assert not [name for name in found["calls"] if name.endswith("Error")]
    assert {"memory, MB", "connections", "threads", "open files", "size, MB"} <= found["verdicts"].keys()
    assert "| connections |" in (tmp_path / "soak.md").read_text()


def test_what_grows_is_named() -> None:
    steady = [{"seconds": float(at), "memory, MB": 100.0, "open files": 10.0} for at in range(100)]
    growing = [{**each, "open files": 10.0 + at / 10} for at, each in enumerate(steady)]
    assert all(told["flat"] for told in soak.verdicts(steady).values())
    told = soak.verdicts(growing)
    assert told["memory, MB"]["flat"]
    assert not told["open files"]["flat"]
