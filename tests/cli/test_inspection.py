"""``list``, ``show``, ``errors``, ``logs`` and ``delete``, on each database."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from tests.cli.conftest import Place
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


@pytest.mark.parametrize(("options", "asked", "order"), FILTERS)
def test_list_finds_what_find_sessions_finds(place: Place, options: list[str], asked: Any, order: Any) -> None:
    fill(place.repository)
    wanted = place.repository.find_sessions(SessionFilter(**asked), order=order).items
    done = place("list", *options, "--json")
    assert (done.code, done.errors) == (0, "")
    assert [each["session_id"] for each in done.lines] == [item.session_id for item in wanted]
    for each, item in zip(done.lines, wanted, strict=True):
        assert (each["phase"], each["error_count"], each["held"]) == (item.phase, item.error_count, item.held)
        assert each["created_at"] == item.created_at.isoformat()
        assert each["artifacts"] == (["concept"] if item.artifacts else [])
    shown = place("list", *options)
    assert (shown.code, shown.errors) == (0, "")
    assert [line.split()[0] for line in shown.out.splitlines()[2:]] == [item.session_id for item in wanted]
    for line, item in zip(shown.out.splitlines()[2:], wanted, strict=True):
        assert item.phase in line
        assert ("held" in line) == item.held
        assert ("compile" in line) == (item.active_task_id == "compile")
        assert ("●" in line) == bool(item.artifacts)


def test_pages_follow_each_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place.repository)
    whole = [each["session_id"] for each in place("list", "--json").lines]
    assert len(whole) == 12
    monkeypatch.setattr(inspection, "MAX_PAGE", 5)
    for limit in (1, 4, 5, 7, 12, 13):
        seen: list[str] = []
        cursor: list[str] = []
        for turn in count():
            done = place("list", "--limit", str(limit), "--json", *cursor)
            assert done.code == 0
            seen += [each["session_id"] for each in done.lines]
            if not done.errors:
                break
            assert len(done.lines) == limit
            assert done.errors.startswith("more: --cursor ")
            cursor = done.errors.split()[1:]
            assert turn < 12
        assert seen == whole
    everything = place("list", "--all", "--json")
    assert [each["session_id"] for each in everything.lines] == whole
    table = place("list", "--all")
    assert table.errors == ""
    assert [line.split()[0] for line in table.out.splitlines()] == ["session", table.out.splitlines()[1], *whole]
    assert len({len(line.rstrip()) for line in place("list", "--all", width=200).out.splitlines()[2:]}) == 1


def test_at_most_a_page_is_asked_for_at_once(on_sqlite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million, too: never all of them, and nothing is kept."""
    fill(on_sqlite.repository)
    asked: list[int] = []
    repository = type(on_sqlite.repository)
    original = repository.find_sessions

    def find(self: Any, *given: Any, limit: int, **more: Any) -> Any:
        asked.append(limit)
        return original(self, *given, limit=limit, **more)

    monkeypatch.setattr(repository, "find_sessions", find)
    assert len(on_sqlite("list", "--all", "--json").lines) == 12
    assert on_sqlite("list", "--limit", "2500").code == 0
    assert asked == [1000, 1000]


@pytest.mark.parametrize("width", [45, 60, 80, 120, 200])
def test_a_narrow_terminal_loses_columns_and_no_id(on_sqlite: Place, width: int) -> None:
    fill(on_sqlite.repository)
    long = "a-long-id-of-an-application"
    on_sqlite.repository.create_session(session_id=long)
    shown = on_sqlite("list", width=width).out.splitlines()
    assert max(map(len, shown)) <= width
    assert long in shown[2]
    titles = ["session", "phase", "updated", "errors", "held", "task", "made", "logs", "version", "created"]
    assert shown[0].split() == titles[: len(shown[0].split())]
    assert len(shown[0].split()) >= {45: 2, 60: 2, 80: 4, 120: 9, 200: 10}[width]


def test_an_empty_database(place: Place) -> None:
    assert place("list", "--json").out == ""
    assert place("list").out.split()[0] == "session"
    assert place("stats").code == 0


# --- show ---


def test_show_tells_it_all(place: Place) -> None:
    place.repository.create_session(full_session())
    for number in range(9):
        place.repository.append_error("session-1", "t4", f"error {number}\n  at a line")
        place.repository.append_log("session-1", f"log {number}")
    place.repository.hold_session("session-1")
    shown = place("show", "session-1").out
    for words in (
        "QUESTIONNAIRE", "version                 1", "error_count             10", "log_count               10",
        "t1, t2", "t3", "t4", "tasks                   1", "held_at                 20",
        "5 of 10 errors", "error 8", "  at a line", "error 4", "5 of 10 log lines", "log 8",
    ):  # fmt: skip
        assert words in shown, words
    assert "error 3" not in shown
    for name in ("answers", "intent_profile", "build_spec", "concept", "task_graph", "pending_clarification"):
        assert name in shown
    found = place("show", "session-1", "--last", "2", "--json").json
    assert [each["position"] for each in found["errors"]] == [9, 10]
    assert [each["position"] for each in found["logs"]] == [9, 10]
    assert found["completed_task_ids"] == ["t1", "t2"]
    assert found["documents"]["answers"] == {"bytes": 49, "entries": 2}
    assert found["documents"]["extension"] is None
    assert found["held_at"] is not None


def test_show_of_what_this_code_cannot_read(place: Place) -> None:
    place.repository.create_session(full_session())
    place.change(
        "UPDATE vibeforge_sessions SET phase = 'OF_TOMORROW'",
        "UPDATE vibeforge_session_documents SET concept = 'no json', completed_task_ids = '{}', task_graph = '[1]'",
    )
    shown = place("show", "session-1")
    assert shown.code == 0
    assert "OF_TOMORROW" in shown.out
    assert "not JSON" in shown.out
    assert re.search(r"^failed_task_ids ", shown.out, re.MULTILINE)
    assert shown.out.count("completed_task_ids") == 1  # only among the documents
    assert place("show", "session-1", "--json").json["completed_task_ids"] is None
    assert place("list", "--phase", "OF_TOMORROW", "--json").lines[0]["session_id"] == "session-1"
    place.change("DELETE FROM vibeforge_session_documents")
    missing = place("show", "session-1")
    assert (missing.code, missing.out) == (1, "")
    assert "its documents are missing" in missing.errors
    assert place("errors", "session-1", "--json").lines[0]["task_id"] == "t3"


def test_long_texts_are_cut_unless_asked_for(on_sqlite: Place) -> None:
    on_sqlite.repository.create_session(session_id="s")
    message = "\n".join(f"line {number}" for number in range(1_000))
    on_sqlite.repository.append_error("s", "t", message)
    on_sqlite.repository.append_error("s", "t", "x" * 5_000)
    cut = on_sqlite("errors", "s").out
    assert f"line 11… ({len(message) - len(message.split(chr(10) + 'line 12')[0]):,} characters more)" in cut
    assert "line 12" not in cut
    assert "xxx… (3,0" in cut
    full = on_sqlite("errors", "s", "--full").out
    assert full.count("line ") == 1_000
    assert full.count("x") >= 5_000
    assert on_sqlite("errors", "s", "--json").lines[0]["error_message"] == message
    assert on_sqlite("show", "s").out.count("line ") == 12


# --- errors and logs ---


def test_parts_of_a_history(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at_parts(place, monkeypatch, 4)


@pytest.mark.parametrize("slice_", [1, 200])
def test_parts_however_much_is_read_at_once(on_sqlite: Place, monkeypatch: pytest.MonkeyPatch, slice_: int) -> None:
    look_at_parts(on_sqlite, monkeypatch, slice_)


def look_at_parts(place: Place, monkeypatch: pytest.MonkeyPatch, slice_: int) -> None:
    errors, lines = errors_of(11), [f"line {number}" for number in range(1, 12)]
    restore(place.repository, Session(session_id="s"), errors, lines)
    monkeypatch.setattr(inspection, "_PAGE", slice_)

    def positions(command: str, *options: str) -> tuple[list[int], str]:
        done = place(command, "s", *options, "--json")
        assert done.code == 0
        shown = place(command, "s", *options)
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
    of_test = [entry.position for entry in errors if entry.task_id == "test"]
    assert positions("errors", "--task", "test") == (of_test, "")
    assert positions("errors", "--task", "test", "--last", "2") == (of_test[-2:], "")
    of_both = [entry.position for entry in errors if entry.task_id == "test" and entry.phase == "VERIFICATION"]
    assert positions("errors", "--task", "test", "--phase", "VERIFICATION") == (of_both, "")
    assert positions("errors", "--phase", "OTHER") == ([], "")
    assert place("logs", "s", "--json").lines[-1] == {"position": 11, "line": "line 11"}
    assert place("errors", "s", "--json").lines[0] == {"position": 1, **errors[0]}


def test_the_last_ones_are_read_from_the_end(on_sqlite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    restore(on_sqlite.repository, Session(session_id="s"), errors_of(40), ["x"] * 40)
    repository = type(on_sqlite.repository)
    asked: list[int] = []
    for name in ("list_errors", "list_logs"):
        original = getattr(repository, name)

        def read(self: Any, *given: Any, after: int, original: Any = original, **more: Any) -> Any:
            asked.append(after)
            return original(self, *given, after=after, **more)

        monkeypatch.setattr(repository, name, read)
    on_sqlite("errors", "s", "--last", "5")
    on_sqlite("logs", "s", "--last", "5")
    on_sqlite("show", "s")
    assert asked == [35] * 4


@pytest.mark.parametrize("command", ["show", "errors", "logs", "watch"])
def test_no_such_session(place: Place, command: str) -> None:
    for session_id, said in (("nobody", "there is no session 'nobody'"), ("no/id", "must be 1 to 64"), ("", "must be")):
        for options in ([], ["--last", "3"]) if command != "watch" else ([],):
            done = place(command, session_id, *options)
            assert (done.code, done.out) == (1, "")
            assert said in done.errors
            assert done.errors.startswith("error: ")
            assert done.errors.count("\n") == 1


# --- delete ---


def test_delete_asks(place: Place) -> None:
    fill(place.repository, 6)
    for given in ("", "n\n", "what?\n"):
        done = place("delete", "s-00", "s-01", given=given)
        assert (done.code, done.out) == (1, "")
        assert "s-00" in done.errors
        assert "held" in done.errors
        assert "Go on? [y/N]" in done.errors
    assert len(place.repository.list_sessions()) == 6
    done = place("delete", "s-00", "s-01", given="y\n")
    assert (done.code, done.out) == (0, "deleted s-00\ndeleted s-01\n")
    assert place.repository.list_sessions() == ["s-02", "s-03", "s-04", "s-05"]
    done = place("delete", "s-02", "nobody", "s-03", "--yes", "--json")
    assert done.code == 1
    assert [(each["session_id"], each["deleted"]) for each in done.lines] == [
        ("s-02", True), ("nobody", False), ("s-03", True)
    ]  # fmt: skip
    unknown = place("delete", "nobody")
    assert (unknown.code, unknown.errors) == (1, "there is no session 'nobody'\n")
    assert place("delete", "nobody", "--yes").errors == "there is no session 'nobody'\n"
    assert place("delete", "no/id", "--yes").code == 1
    assert place("delete").code == 2
    assert place.repository.list_sessions() == ["s-04", "s-05"]
