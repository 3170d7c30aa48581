"""The command `stats`: the figures of `sql.statistics` as tables and as JSON."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.support.cli_sessions import HOUR, restore
from vibeforge_sessions import ErrorEntry, Session, StorageError
from vibeforge_sessions.cli.output import format_age
from vibeforge_sessions.cli.rendering import bar, console, shorten, spark
from vibeforge_sessions.model import validation
from vibeforge_sessions.sql.admin import statistics

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def filled(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a database with sessions that were updated before `NOW`, and set the clock to `NOW`."""
    monkeypatch.setattr(validation, "utc_now", lambda: NOW)
    for number in range(6):
        updated = NOW - number * 5 * DAY / 4
        errors = [
            ErrorEntry(updated - (5 - position) * HOUR, f"task-{number % 2}", "it broke", "EXECUTION", position)
            for position in range(1, 6)
        ]
        session = Session(
            session_id=f"s{number}",
            phase="COMPLETE" if number else "FAILED",  # type: ignore[arg-type]
            created_at=updated - 40 * DAY,
            updated_at=updated,
        )
        restore(cli.repository, session, errors, ["a line"], held=number == 2)
    return cli


def test_stats_prints_figures_as_json(filled: Cli) -> None:
    found = filled("stats", "--json")
    assert (found.code, found.errors) == (0, "")
    phases = {each["phase"]: each for each in found.json["phases"]}
    assert {name: (each["sessions"], each["errors"], each["held"]) for name, each in phases.items()} == {
        "COMPLETE": (5, 25, 1), "FAILED": (1, 5, 0)
    }  # fmt: skip
    assert phases["FAILED"]["touched"] == NOW.isoformat()
    assert found.json["errors_since"] == "2026-11-19T00:00:00+00:00"
    assert sum(each["errors"] for each in found.json["errors"]) == 30
    assert {each["task_id"] for each in found.json["errors"]} == {"task-0", "task-1"}
    assert [each["sessions"] for each in found.json["touched"]] == [1, 0, 5, 0, 0, 0, 0]
    assert [each["sessions"] for each in found.json["created"]] == [0, 0, 0, 0, 6, 0, 0]
    assert found.json["touched"][1] == {"least": 3600.0, "most": 86400.0, "sessions": 0}
    assert len(found.json["tables"]) == 4


def test_stats_prints_figures_as_tables(filled: Cli) -> None:
    shown = filled("stats", width=110)
    assert (shown.code, shown.errors) == (0, "")
    out = shown.out
    assert "6 sessions by phase" in out
    assert re.search(r"^COMPLETE         5      25     1  \S+ \S+  ████████████████████ *$", out, re.MULTILINE)
    assert "30 errors by day, since 2026-11-19 00:00:00" in out
    days = [line for line in out.splitlines() if line.startswith("2026-11-")]
    assert [line.split()[0] for line in days] == [f"2026-11-{day}" for day in range(19, 27)]
    times = [NOW - number * 5 * DAY / 4 - hours * HOUR for number in range(6) for hours in range(5)]
    expected = Counter(time.date().isoformat() for time in times)
    assert [int(line.split()[1]) for line in days] == [expected[line.split()[0]] for line in days]
    assert "task-0  EXECUTION      15" in out
    assert "sessions by the time since their last write" in out
    assert "sessions by the time since their creation" in out
    assert "vibeforge_session_documents" in out
    assert max(map(len, out.splitlines())) <= 110


def test_stats_counts_errors_by_hour(filled: Cli) -> None:
    found = filled("stats", "--by", "hour", "--window", "3h", "--json").json
    assert found["errors_since"] == "2026-11-26T06:00:00+00:00"
    assert [each["errors"] for each in found["errors"]] == [1, 1, 1, 1]
    shown = filled("stats", "--by", "hour", "--window", "3h").out
    hours = [line.split()[:3] for line in shown.splitlines() if line.startswith("2026-11-26 0") and "█" in line]
    assert hours == [["2026-11-26", f"{hour:02}:00", "1"] for hour in range(6, 10)]


def test_stats_sums_tasks_beyond_top(filled: Cli) -> None:
    shown = filled("stats", "--top", "1").out
    assert "task-0" in shown
    assert "task-1" not in shown
    assert "(all others)" in shown


def test_timeout_of_one_figure_keeps_the_others(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def exceed_timeout(*_: Any, **__: Any) -> Any:
        raise StorageError("it takes longer than 30 s")

    monkeypatch.setattr(statistics, "count_errors", exceed_timeout)
    done = filled("stats")
    assert (done.code, done.errors) == (1, "error: errors: it takes longer than 30 s\n")
    assert "6 sessions by phase" in done.out
    assert "errors by day" not in done.out
    assert filled("stats", "--json").json["errors"] is None


def test_stats_accepts_timeout_on_each_database(cli: Cli) -> None:
    done = cli("stats", "--timeout", "0.5")
    assert (done.code, done.errors) == (0, "")


def test_formatting_helpers() -> None:
    out = console()
    assert [bar(value, 8, 4, out) for value in (0, 1, 4, 8)] == ["", "█", "██", "████"]
    assert bar(1, 10**9, 4, out) == "█"
    assert bar(0, 0, 4, out) == ""
    assert spark([0, 1, 4, 8], 10, out) == " ▁▄█"
    assert spark([1, 1, 2, 2], 2, out) == "▄█"
    assert spark([], 10, out) == ""
    assert shorten("one\ntwo\nthree", 2, 100) == "one\ntwo… (6 characters more)"
    assert shorten("abcdef", 2, 4) == "abcd… (2 characters more)"
    assert shorten("abc\ndef", 2, 7) == "abc\ndef"
    ages = (0 * DAY, 5 * HOUR / 3600, HOUR / 2, HOUR, 3 * DAY)
    assert [format_age(each) for each in ages] == ["0s", "5s", "30m", "1h", "3d"]
    assert format_age(timedelta(days=365)) == "365d"
