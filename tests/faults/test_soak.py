"""The soak script: a short run, and the detection of growing figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.faults import soak


@pytest.mark.exhaustive
def test_short_soak_succeeds_and_writes_its_report(tmp_path: Path) -> None:
    soak.main(["--database", "sqlite", "--minutes", "0.05", "--rate", "100", "--output", str(tmp_path), "--no-plot"])
    (found,) = json.loads((tmp_path / "soak.json").read_text())["found"]
    assert found["calls"]["create"] > 0
    assert not [name for name in found["calls"] if name.endswith("Error")]
    assert {"memory, MB", "connections", "threads", "open files", "size, MB"} <= found["verdicts"].keys()
    assert "| connections |" in (tmp_path / "soak.md").read_text()


def test_growing_figure_is_reported() -> None:
    steady = [{"seconds": float(at), "memory, MB": 100.0, "open files": 10.0} for at in range(100)]
    growing = [{**each, "open files": 10.0 + at / 10} for at, each in enumerate(steady)]
    assert all(verdict["flat"] for verdict in soak.verdicts(steady).values())
    verdicts = soak.verdicts(growing)
    assert verdicts["memory, MB"]["flat"]
    assert not verdicts["open files"]["flat"]
