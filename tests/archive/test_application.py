"""Import of the application's ``session_state.json`` files, in the shapes that its versions have written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import SECRET, exported, imported, record_of
from vibeforge_sessions import InMemorySessionRepository, Session, SessionRepository
from vibeforge_sessions.archive import import_sessions
from vibeforge_sessions.testing.base import full_session

TIME = "2026-05-06T07:08:09.000010+00:00"
LATER = "2026-05-06T08:08:09+00:00"
STATE: dict[str, Any] = {
    "session_id": "7f9c",
    "phase": "EXECUTION",
    "created_at": TIME,
    "updated_at": LATER,
    "current_question_index": 2,
    "answers": {"audience": "general"},
    "intent_profile": {"platform": "web"},
    "build_spec": None,
    "concept": None,
    "task_graph": {"tasks": [{"id": "t1"}]},
    "completed_task_ids": [],
    "failed_task_ids": ["t1"],
    "active_task_id": None,
    "logs": [f"[{TIME}] started"],
    "pending_clarification": None,
    "clarification_answer": None,
    "clarification_context": None,
    "error_history": [{"timestamp": TIME, "task_id": "t1", "error_message": "exit 1", "phase": "EXECUTION"}],
    "failure_reason": None,
    "failure_artifact": {"log": "x"},
    "is_aborted": False,
    "abort_reason": None,
    "fix_loop_count": 2,
    "max_fix_loops": 3,
}
"""The fields of a session in the application's file."""


def text(value: Any) -> bytes:
    """Return the value as the application writes it: JSON with an indentation of 2."""
    return json.dumps(value, indent=2).encode()


def test_import_of_application_file_creates_complete_session(repository: SessionRepository) -> None:
    report = imported(text(STATE), repository)
    assert (report.created, report.failed, report.errors, report.logs) == (1, 0, 1, 1)
    session = repository.get_session("7f9c")
    assert session is not None
    assert (session.version, session.phase, session.answers) == (1, "EXECUTION", {"audience": "general"})
    assert (session.created_at, session.updated_at) == (datetime.fromisoformat(TIME), datetime.fromisoformat(LATER))
    assert [dict(entry) for entry in session.error_history] == STATE["error_history"]
    assert session.logs == STATE["logs"]
    assert session.task_graph == STATE["task_graph"]
    assert imported(text(STATE), repository).unchanged == 1
    session.add_answer("more", 1)
    repository.update_session(session)


def test_import_stores_unknown_fields_in_extension_document(repository: SessionRepository) -> None:
    imported(text(STATE), repository)
    extension = json.loads(str(record_of(repository, "7f9c").content.documents["extension"]))
    unknown = ["clarification_context", "failure_reason", "failure_artifact", "is_aborted", "abort_reason"]
    assert extension == {name: STATE[name] for name in [*unknown, "fix_loop_count", "max_fix_loops"]}


def test_session_subclass_reads_imported_unknown_fields() -> None:
    class ForgeSession(Session):
        clarification_context: Any = None
        failure_reason: str | None = None
        failure_artifact: Any = None
        is_aborted: bool = False
        abort_reason: str | None = None
        fix_loop_count: int = 0
        max_fix_loops: int = 3

    repository = InMemorySessionRepository(session_type=ForgeSession)
    imported(text(STATE), repository)
    session = repository.get_session("7f9c")
    assert session is not None
    assert (session.fix_loop_count, session.failure_artifact) == (2, {"log": "x"})


@pytest.mark.parametrize(
    "value",
    [
        [STATE, {**STATE, "session_id": "8f9c"}],
        {"7f9c": STATE, "8f9c": {**STATE, "session_id": "8f9c"}},
        {"7f9c": STATE, "8f9c": {name: value for name, value in STATE.items() if name != "session_id"}},
    ],
    ids=["list", "keyed_by_id", "keyed_by_id_without_session_id"],
)
def test_file_with_several_sessions_imports_all(value: Any) -> None:
    repository = InMemorySessionRepository()
    report = imported(text(value), repository)
    assert (report.created, report.failed) == (2, 0)
    assert repository.list_sessions() == ["7f9c", "8f9c"]
    imported(json.dumps(value).encode("utf-8-sig"), other := InMemorySessionRepository())  # with a byte order mark
    assert exported(other) == exported(repository)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"created_at": TIME}, {"updated_at": TIME}),
        ({"updated_at": LATER, "phase": "IDEA"}, {"created_at": LATER}),
        ({"created_at": TIME, "answers": None, "logs": None, "error_history": None, "phase": None}, {}),
        ({"created_at": TIME, "error_history": [{"error_message": "old"}]}, {}),
    ],
    ids=["only_created_at", "only_updated_at", "null_fields", "short_error_entry"],
)
def test_import_completes_missing_fields(tmp_path: Path, fields: dict[str, Any], expected: dict[str, str]) -> None:
    repository = InMemorySessionRepository()
    assert imported(text({"session_id": "s", **fields}), repository).failed == 0
    record = record_of(repository, "s")
    for name, time in expected.items():
        assert getattr(record, name).isoformat() == time
    assert imported(text({"session_id": "s", **fields}), repository).unchanged == 1


def test_session_without_times_takes_modification_time_of_file(tmp_path: Path) -> None:
    path = tmp_path / "session_state.json"
    path.write_bytes(text({"session_id": "s", "phase": "IDEA"}))
    repository = InMemorySessionRepository()
    for _ in range(2):
        assert import_sessions(repository, path).failed == 0
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    assert record_of(repository, "s").created_at == record_of(repository, "s").updated_at == written


def test_import_keeps_unknown_phase() -> None:
    repository = InMemorySessionRepository()
    assert imported(text({**STATE, "phase": "DEPLOYMENT"}), repository).created == 1
    assert record_of(repository, "7f9c").content.phase == "DEPLOYMENT"


def test_import_of_session_dict_restores_session(repository: SessionRepository) -> None:
    source = InMemorySessionRepository()
    source.create_session(full_session())
    source.modify_session("session-1", lambda session: session.add_answer("more", 1))
    session = source.get_session("session-1")
    assert session is not None
    assert imported(text(session.to_dict()), repository).created == 1
    assert exported(repository) == exported(source)
    partial = source.get_session("session-1", recent=0)
    assert partial is not None
    report = imported(text({**partial.to_dict(), "session_id": "partial"}), repository)
    assert "older entries" in str(report.problems[0].reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"session_id": None}, "session_id: must be present"),
        ({"session_id": f"{SECRET}!"}, "session_id"),
        ({"created_at": "2026-05-06T07:08:09"}, "created_at"),
        ({"created_at": SECRET}, "created_at"),
        ({"answers": [SECRET]}, "answers"),
        ({"error_history": SECRET}, "error_history: must be a list"),
        ({"error_history": [SECRET]}, "error_history"),
        ({"logs": 7}, "logs"),
        ({"phase": SECRET + "\n"}, "phase"),
        ({"phase": 7}, "phase"),
        ({"version": SECRET}, "version"),
        ({"failed_task_ids": [7]}, "failed_task_ids[0]"),
        ({"stored": {SECRET: 1}}, "stored"),
        ({"unknown": "\ud83d\ude00"[:1] + "\ude00"}, ""),
        ({"updated_at": "2999-01-01T00:00:00Z"}, "ahead of this machine's clock"),
    ],
    ids=[
        "missing_id",
        "invalid_id",
        "naive_time",
        "text_as_time",
        "list_as_answers",
        "text_as_history",
        "text_as_error_entry",
        "number_as_logs",
        "invalid_phase",
        "number_as_phase",
        "text_as_version",
        "number_as_task_id",
        "baseline",
        "surrogate",
        "future_time",
    ],
)
def test_rejected_session_is_reported_with_its_number(fields: dict[str, Any], reason: str) -> None:
    repository = InMemorySessionRepository()
    good = {**STATE, "session_id": "good"}
    report = imported(text([good, {**STATE, **fields}, {**good, "session_id": "better"}]), repository)
    if reason:
        assert [(problem.line, problem.outcome) for problem in report.problems] == [(2, "failed")]
        assert reason in str(report.problems[0].reason)
        assert repository.list_sessions() == ["better", "good"]
    assert SECRET not in str(report)


def test_session_id_that_differs_from_key_is_reported() -> None:
    report = imported(text({"other": STATE, f"{SECRET}!": {**STATE, "session_id": None}}))
    assert [problem.session_id for problem in report.problems] == ["other", None]
    assert "must be equal to the key of this session" in str(report.problems[0].reason)
    assert SECRET not in str(report)


def test_file_over_length_limit_is_not_imported(tmp_path: Path) -> None:
    whole = text([STATE] * 100)
    report = imported(whole, longest_line=len(whole) - 1)
    assert (report.created, report.failed > 0) == (0, True)
    path = tmp_path / "x"
    path.write_bytes(whole)
    assert import_sessions(InMemorySessionRepository(), path, longest_line=1000).created == 0
    assert imported(text(STATE), longest_line=len(text(STATE))).created == 1
