"""The commands `list`, `show`, `errors`, `logs` and `delete`, on each database."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.support.cli_sessions import HOUR, TIME, errors_of, fill, restore
from vibeforge_sessions import Session, SessionFilter
from vibeforge_sessions.cli import inspection
from vibeforge_sessions.testing.base import full_session

# --- list ---

FILTERS: list[tuple[list[str], dict[str, Any], str]] = [
    ([], {}, "-created_at"),
    (["--phase", "EXECUTION"], {"phases": ["EXECUTION"]}, "-created_at"),
    (["--phase", "FAILED", "--phase", "COMPLETE"], {"phases": ["FAILED", "COMPLETE"]}, "-created_at"),
    (["--phase", "NO_SUCH"], {"phases": ["NO_SUCH"]}, "-created_at"),
    (["--has-errors"], {"has_errors": True}, "-created_at"),
    (["--no-errors", "--order", "updated_at"], {"has_errors": False}, "updated_at"),
    (["--created-from", "2026-11-01T15:00:00.123456Z"], {"created_from": TIME + 3 * HOUR}, "-created_at"),
    (["--created-before", "2026-11-01T16:00:00.123456+01:00"], {"created_before": TIME + 3 * HOUR}, "-created_at"),
    (
        ["--updated-from", "2026-11-01 18:00", "--updated-before", "2026-11-02", "--order", "-updated_at"],
        {
            "updated_from": datetime(2026, 11, 1, 18, tzinfo=UTC),
            "updated_before": datetime(2026, 11, 2, tzinfo=UTC),
        },
        "-updated_at",
    ),
    (["--updated-before", "0s", "--order", "created_at"], {}, "created_at"),
    (["--created-from", "1s"], {"created_from": TIME + timedelta(days=9999)}, "-created_at"),
]
FILTER_IDS = [
    "no_filter",
    "one_phase",
    "two_phases",
    "unknown_phase",
    "with_errors",
    "without_errors",
    "created_from",
    "created_before",
    "updated_range",
    "updated_before_now",
    "created_in_last_second",
]


@pytest.mark.parametrize(("options", "criteria", "order"), FILTERS, ids=FILTER_IDS)
def test_list_prints_result_of_find_sessions(cli: Cli, options: list[str], criteria: Any, order: Any) -> None:
    fill(cli.repository)
    expected = cli.repository.find_sessions(SessionFilter(**criteria), order=order).items
    done = cli("list", *options, "--json")
    assert (done.code, done.errors) == (0, "")
    assert [each["session_id"] for each in done.lines] == [item.session_id for item in expected]
    for each, item in zip(done.lines, expected, strict=True):
        assert (each["phase"], each["error_count"], each["held"]) == (item.phase, item.error_count, item.held)
        assert each["created_at"] == item.created_at.isoformat()
        assert each["artifacts"] == (["concept"] if item.artifacts else [])
    shown = cli("list", *options)
    assert (shown.code, shown.errors) == (0, "")
    assert [line.split()[0] for line in shown.out.splitlines()[2:]] == [item.session_id for item in expected]
    for line, item in zip(shown.out.splitlines()[2:], expected, strict=True):
        assert item.phase in line
        assert ("held" in line) == item.held
        assert ("compile" in line) == (item.active_task_id == "compile")
        assert ("●" in line) == bool(item.artifacts)


def test_list_pages_cover_all_sessions(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cli.repository)
    whole = [each["session_id"] for each in cli("list", "--json").lines]
    assert len(whole) == 12
    monkeypatch.setattr(inspection, "MAX_PAGE", 5)
    for limit in (1, 4, 5, 7, 12, 13):
        seen: list[str] = []
        cursor: list[str] = []
        for turn in count():
            done = cli("list", "--limit", str(limit), "--json", *cursor)
            assert done.code == 0
            seen += [each["session_id"] for each in done.lines]
            if not done.errors:
                break
            assert len(done.lines) == limit
            assert done.errors.startswith("more: --cursor ")
            cursor = done.errors.split()[1:]
            assert turn < 12
        assert seen == whole
    everything = cli("list", "--all", "--json")
    assert [each["session_id"] for each in everything.lines] == whole
    table = cli("list", "--all")
    assert table.errors == ""
    assert [line.split()[0] for line in table.out.splitlines()] == ["session", table.out.splitlines()[1], *whole]
    assert len({len(line.rstrip()) for line in cli("list", "--all", width=200).out.splitlines()[2:]}) == 1


def test_list_queries_at_most_one_page_of_sessions(sqlite_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """List sessions with a recorded query size: memory stays bounded for a million sessions."""
    fill(sqlite_cli.repository)
    limits: list[int] = []
    repository = type(sqlite_cli.repository)
    original = repository.find_sessions

    def find(self: Any, *args: Any, limit: int, **kwargs: Any) -> Any:
        limits.append(limit)
        return original(self, *args, limit=limit, **kwargs)

    monkeypatch.setattr(repository, "find_sessions", find)
    assert len(sqlite_cli("list", "--all", "--json").lines) == 12
    assert sqlite_cli("list", "--limit", "2500").code == 0
    assert limits == [1000, 1000]


@pytest.mark.parametrize("width", [45, 60, 80, 120, 200])
def test_narrow_terminal_hides_columns_but_never_ids(sqlite_cli: Cli, width: int) -> None:
    fill(sqlite_cli.repository)
    long = "a-long-id-of-an-application"
    sqlite_cli.repository.create_session(session_id=long)
    shown = sqlite_cli("list", width=width).out.splitlines()
    assert max(map(len, shown)) <= width
    assert long in shown[2]
    titles = ["session", "phase", "updated", "errors", "held", "task", "made", "logs", "version", "created"]
    assert shown[0].split() == titles[: len(shown[0].split())]
    assert len(shown[0].split()) >= {45: 2, 60: 2, 80: 4, 120: 9, 200: 10}[width]


def test_empty_database_is_listed(cli: Cli) -> None:
    assert cli("list", "--json").out == ""
    assert cli("list").out.split()[0] == "session"
    assert cli("stats").code == 0


# --- show ---


def test_show_prints_all_parts_of_session(cli: Cli) -> None:
    cli.repository.create_session(full_session())
    for number in range(9):
        cli.repository.append_error("session-1", "t4", f"error {number}\n  at a line")
        cli.repository.append_log("session-1", f"log {number}")
    cli.repository.hold_session("session-1")
    shown = cli("show", "session-1").out
    for words in (
        "QUESTIONNAIRE", "version                 1", "error_count             10", "log_count               10",
        "t1, t2", "t3", "t4", "tasks                   1", "held_at                 20",
        "5 of 10 errors", "error 8", "  at a line", "error 4", "5 of 10 log lines", "log 8",
    ):  # fmt: skip
        assert words in shown, words
    assert "error 3" not in shown
    for name in ("answers", "intent_profile", "build_spec", "concept", "task_graph", "pending_clarification"):
        assert name in shown
    found = cli("show", "session-1", "--last", "2", "--json").json
    assert [each["position"] for each in found["errors"]] == [9, 10]
    assert [each["position"] for each in found["logs"]] == [9, 10]
    assert found["completed_task_ids"] == ["t1", "t2"]
    assert found["documents"]["answers"] == {"bytes": 49, "entries": 2}
    assert found["documents"]["extension"] is None
    assert found["held_at"] is not None


def test_show_prints_readable_parts_of_invalid_session(cli: Cli) -> None:
    cli.repository.create_session(full_session())
    cli.change(
        "UPDATE vibeforge_sessions SET phase = 'UNKNOWN_PHASE'",
        "UPDATE vibeforge_session_documents SET concept = 'no json', completed_task_ids = '{}', task_graph = '[1]'",
    )
    shown = cli("show", "session-1")
    assert shown.code == 0
    assert "UNKNOWN_PHASE" in shown.out
    assert "not JSON" in shown.out
    assert re.search(r"^failed_task_ids ", shown.out, re.MULTILINE)
    assert shown.out.count("completed_task_ids") == 1  # only among the documents
    assert cli("show", "session-1", "--json").json["completed_task_ids"] is None
    assert cli("list", "--phase", "UNKNOWN_PHASE", "--json").lines[0]["session_id"] == "session-1"
    cli.change("DELETE FROM vibeforge_session_documents")
    missing = cli("show", "session-1")
    assert (missing.code, missing.out) == (1, "")
    assert "its documents are missing" in missing.errors
    assert cli("errors", "session-1", "--json").lines[0]["task_id"] == "t3"


def test_long_texts_are_shortened_without_full_option(sqlite_cli: Cli) -> None:
    sqlite_cli.repository.create_session(session_id="s")
    message = "\n".join(f"line {number}" for number in range(1_000))
    sqlite_cli.repository.append_error("s", "t", message)
    sqlite_cli.repository.append_error("s", "t", "x" * 5_000)
    cut = sqlite_cli("errors", "s").out
    assert f"line 11… ({len(message) - len(message.split(chr(10) + 'line 12')[0]):,} characters more)" in cut
    assert "line 12" not in cut
    assert "xxx… (3,0" in cut
    full = sqlite_cli("errors", "s", "--full").out
    assert full.count("line ") == 1_000
    assert full.count("x") >= 5_000
    assert sqlite_cli("errors", "s", "--json").lines[0]["error_message"] == message
    assert sqlite_cli("show", "s").out.count("line ") == 12


# --- errors and logs ---


def test_history_options_select_positions(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    check_history_options(cli, monkeypatch, 4)


@pytest.mark.parametrize("page_size", [1, 200])
def test_history_options_do_not_depend_on_page_size(
    sqlite_cli: Cli, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    check_history_options(sqlite_cli, monkeypatch, page_size)


def check_history_options(cli: Cli, monkeypatch: pytest.MonkeyPatch, page_size: int) -> None:
    errors, lines = errors_of(11), [f"line {number}" for number in range(1, 12)]
    restore(cli.repository, Session(session_id="s"), errors, lines)
    monkeypatch.setattr(inspection, "_PAGE", page_size)

    def positions(command: str, *options: str) -> tuple[list[int], str]:
        done = cli(command, "s", *options, "--json")
        assert done.code == 0
        shown = cli(command, "s", *options)
        assert shown.errors == done.errors
        found = [each["position"] for each in done.lines]
        assert [int(line.split()[0]) for line in shown.out.splitlines()] == found
        return found, done.errors

    whole = list(range(1, 12))
    for command in ("errors", "logs"):
        assert positions(command) == (whole, "")
        assert positions(command, "--limit", "4") == ([1, 2, 3, 4], "more: --after 4\n")
        assert positions(command, "--after", "4", "--limit", "5") == ([5, 6, 7, 8, 9], "more: --after 9\n")
        assert positions(command, "--after", "7", "--limit", "4") == ([8, 9, 10, 11], "")
        assert positions(command, "--after", "11") == ([], "")
        assert positions(command, "--limit", "2", "--all") == (whole, "")
        assert positions(command, "--last", "3") == ([9, 10, 11], "")
        assert positions(command, "--last", "99") == (whole, "")
        assert positions(command, "--after", "9", "--last", "5") == ([10, 11], "")
    entries_of_task = [entry.position for entry in errors if entry.task_id == "test"]
    assert positions("errors", "--task", "test") == (entries_of_task, "")
    assert positions("errors", "--task", "test", "--last", "2") == (entries_of_task[-2:], "")
    entries_of_task_and_phase = [
        entry.position for entry in errors if entry.task_id == "test" and entry.phase == "VERIFICATION"
    ]
    assert positions("errors", "--task", "test", "--phase", "VERIFICATION") == (entries_of_task_and_phase, "")
    assert positions("errors", "--phase", "OTHER") == ([], "")
    assert cli("logs", "s", "--json").lines[-1] == {"position": 11, "line": "line 11"}
    assert cli("errors", "s", "--json").lines[0] == {"position": 1, **errors[0]}


def test_last_option_reads_only_end_of_history(sqlite_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    restore(sqlite_cli.repository, Session(session_id="s"), errors_of(40), ["x"] * 40)
    repository = type(sqlite_cli.repository)
    starts: list[int] = []
    for name in ("list_errors", "list_logs"):
        original = getattr(repository, name)

        def read(self: Any, *args: Any, after: int, original: Any = original, **kwargs: Any) -> Any:
            starts.append(after)
            return original(self, *args, after=after, **kwargs)

        monkeypatch.setattr(repository, name, read)
    sqlite_cli("errors", "s", "--last", "5")
    sqlite_cli("logs", "s", "--last", "5")
    sqlite_cli("show", "s")
    assert starts == [35] * 4


@pytest.mark.parametrize("command", ["show", "errors", "logs", "watch"])
def test_unknown_or_invalid_session_id_is_one_error_line(cli: Cli, command: str) -> None:
    for session_id, message in (
        ("missing", "there is no session 'missing'"),
        ("no/id", "must be 1 to 64"),
        ("", "must be"),
    ):
        for options in ([], ["--last", "3"]) if command != "watch" else ([],):
            done = cli(command, session_id, *options)
            assert (done.code, done.out) == (1, "")
            assert message in done.errors
            assert done.errors.startswith("error: ")
            assert done.errors.count("\n") == 1


# --- delete ---


def test_delete_asks_for_confirmation(cli: Cli) -> None:
    fill(cli.repository, 6)
    for given in ("", "n\n", "what?\n"):
        done = cli("delete", "s-00", "s-01", given=given)
        assert (done.code, done.out) == (1, "")
        assert "s-00" in done.errors
        assert "held" in done.errors
        assert "Continue? [y/N]" in done.errors
    assert len(cli.repository.list_sessions()) == 6
    done = cli("delete", "s-00", "s-01", given="y\n")
    assert (done.code, done.out) == (0, "deleted s-00\ndeleted s-01\n")
    assert cli.repository.list_sessions() == ["s-02", "s-03", "s-04", "s-05"]
    done = cli("delete", "s-02", "missing", "s-03", "--yes", "--json")
    assert done.code == 1
    assert [(each["session_id"], each["deleted"]) for each in done.lines] == [
        ("s-02", True), ("missing", False), ("s-03", True)
    ]  # fmt: skip
    unknown = cli("delete", "missing")
    assert (unknown.code, unknown.errors) == (1, "there is no session 'missing'\n")
    assert cli("delete", "missing", "--yes").errors == "there is no session 'missing'\n"
    assert cli("delete", "no/id", "--yes").code == 1
    assert cli("delete").code == 2
    assert cli.repository.list_sessions() == ["s-04", "s-05"]
