"""The soak runs, sees what grows, and says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults import soak, soak_load

MINUTES = 0.05
RATE = 80.0


def made_up(**quarters: Sequence[float]) -> dict[str, Any]:
    """A result with these medians."""
    return {"database": "sqlite", "calls": {"get": 1}, "failed": {}, "quarters": quarters, "minutes": 1, "samples": []}


def test_it_runs_for_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = soak.main(
        ["--database", "sqlite", "--minutes", str(MINUTES), "--rate", str(RATE), "--output", str(tmp_path)]
    )
    (result,) = json.loads((tmp_path / "soak.json").read_text())["results"]
    assert result["failed"] == {}
    assert {"get", "update", "append_error", "delete"} <= result["calls"].keys()
    assert set(result["quarters"]) == soak.WATCHED.keys() - {"server connections", "server memory"}
    # the rest may still be growing so soon
    assert set(soak.growing(result)) <= {"entries", "client memory", "write-ahead log"}
    assert code == bool(soak.verdict(result))
    printed = capsys.readouterr().out
    assert (tmp_path / "soak.md").read_text().strip() == printed.strip()
    assert "| client threads |" in printed


def test_it_names_what_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    get = soak_load.Caller._get

    def leak(caller: soak_load.Caller, session_id: str) -> None:
        get(caller, session_id)
        kept.append(Path("/dev/null").open())  # noqa: SIM115 (that is what leaks)
        kept.append(b"x" * 2**20)

    monkeypatch.setattr(soak_load.Caller, "_get", leak)
    result = soak.soak("sqlite", minutes=MINUTES, rate=RATE)
    for file in kept[::2]:
        file.close()
    assert {"client file descriptors", "client memory"} <= set(soak.growing(result))
    assert any("sqlite: client file descriptors grows" in each for each in soak.verdict(result))


def test_it_names_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("every time")

    monkeypatch.setattr(soak_load.Caller, "_get", fail)
    result = soak.soak("sqlite", minutes=MINUTES / 3, rate=RATE)
    assert list(result["failed"]) == ["ValueError: every time"]
    assert any("ValueError: every time" in each for each in soak.verdict(result))


def test_the_verdict() -> None:
    assert soak.verdict(made_up(sessions=[1, 200, 203, 209])) == []
    assert soak.verdict(made_up(sessions=[1, 200, 203, 211])) == ["sqlite: sessions grows, 1 → 200 → 203 → 211"]
    assert soak.verdict(made_up(**{"client threads": [9, 9, 9, 11], "database": [10, 10, 10, 26]})) == []
    assert len(soak.verdict(made_up(**{"client threads": [9, 9, 9, 12], "database": [10, 10, 10, 27]}))) == 2
    assert soak.verdict({**made_up(), "calls": {}}) == ["sqlite: nothing was done, or nothing seen"]
    samples = [{"at": at, "sessions": at} for at in range(8)]
    assert soak.quarters(samples, 8) == {"sessions": [0.5, 2.5, 4.5, 6.5]}
