"""The `Session` model without a repository: methods, validation, equality, copies, pickling and conversion to JSON."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any, Final

import pydantic
import pytest

from vibeforge_sessions import InMemorySessionRepository, InvalidSessionError
from vibeforge_sessions.model.session import Session, SessionPhase
from vibeforge_sessions.repository.serialization import ARTIFACTS
from vibeforge_sessions.testing.base import SESSION_ID, assert_same, exact, full_session, numbered, stored
from vibeforge_sessions.testing.stored_values import EXACT, nested
from vibeforge_sessions.testing.updates import round_tripped

SECRET = "s3cr3t-value"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
TICK = timedelta(microseconds=1)

Change = Callable[[Session], object]
TIMED_CHANGES: list[Change] = [
    lambda s: s.update_phase(SessionPhase.IDEA),
    lambda s: s.update_phase(s.phase),
    lambda s: s.add_answer("q", 1),
    lambda s: s.add_error("t", "m"),
    lambda s: s.add_error("t", "m", phase=SessionPhase.FAILED),
]
TIMED_CHANGE_IDS = ["update_phase", "update_to_same_phase", "add_answer", "add_error", "add_error_with_phase"]


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


class OtherClass(Session):
    """Class with the same fields as `Session`."""


def assert_plain(value: Any) -> None:
    """Assert that a value consists of the exact JSON types, without subclasses."""
    assert type(value) in {dict, list, str, int, float, bool, type(None)}
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        assert_plain(item)


def fields_of_stored_session() -> dict[str, Any]:
    """Return the `to_dict` result of a stored session with two errors and a log line."""
    session = full_session()
    session.add_error("t5", "again")
    InMemorySessionRepository().create_session(session)
    return session.to_dict()


FIELDS: Final = fields_of_stored_session()


def test_initial_values() -> None:
    session = Session()
    assert uuid.UUID(session.session_id).version == 4
    assert session.phase is SessionPhase.QUESTIONNAIRE
    for at in (session.created_at, session.updated_at):
        assert abs(at - datetime.now(UTC)) < timedelta(days=1)
        assert at.tzinfo is UTC
    given = {"session_id", "phase", "created_at", "updated_at"}
    empty: dict[str, Any] = {name: [] for name in ("completed_task_ids", "failed_task_ids", "logs", "error_history")}
    empty |= {"answers": {}, "current_question_index": 0, "version": 0}
    names = (*ARTIFACTS, "active_task_id", "pending_clarification", "clarification_answer")
    assert session.model_dump(exclude=given) == empty | dict.fromkeys(names)
    assert session.omitted_errors == session.omitted_logs == 0


def test_new_sessions_share_no_mutable_value() -> None:
    one, two = Session(), Session()
    assert one.session_id != two.session_id
    for name in ("answers", "completed_task_ids", "failed_task_ids", "logs", "error_history"):
        assert getattr(one, name) is not getattr(two, name)
    given: dict[str, Any] = {"q": 1}
    assert Session(answers=given).answers is not given


def test_none_as_session_id_generates_a_new_id() -> None:
    no_id: Any = None  # the application passes None
    ids = {Session(session_id=no_id).session_id for _ in range(3)}
    assert len(ids) == 3
    assert {uuid.UUID(session_id).version for session_id in ids} == {4}


@pytest.mark.parametrize("change", TIMED_CHANGES, ids=TIMED_CHANGE_IDS)
@pytest.mark.parametrize(
    "clock",
    [NOON - timedelta(hours=1), NOON, NOON + timedelta(hours=1)],
    ids=["clock_behind", "clock_equal", "clock_ahead"],
)
def test_timed_change_advances_updated_at(monkeypatch: pytest.MonkeyPatch, change: Change, clock: datetime) -> None:
    monkeypatch.setattr("vibeforge_sessions.model.validation.utc_now", lambda: clock)
    session = Session(created_at=NOON, updated_at=NOON)
    assert session.updated_at.tzinfo is UTC
    change(session)
    assert session.updated_at == max(clock, NOON + TICK)  # also if the clock stands still or goes back
    change(session)
    assert session.updated_at == max(clock + TICK, NOON + 2 * TICK)
    assert session.created_at == NOON


@pytest.mark.parametrize("change", TIMED_CHANGES, ids=TIMED_CHANGE_IDS)
def test_updated_at_stays_at_end_of_year_9999(change: Change) -> None:
    session = Session(created_at=NOON, updated_at=LAST - TICK)
    change(session)
    assert session.updated_at == LAST
    change(session)
    assert session.updated_at == LAST


def test_add_log_keeps_updated_at() -> None:
    session = Session(updated_at=NOON)
    session.add_log("message")
    assert session.updated_at == NOON
    assert session.logs[0].endswith("] message")


def test_update_phase_accepts_text_and_rejects_unknown_phase() -> None:
    session = Session(updated_at=NOON)
    session.update_phase("EXECUTION")
    assert session.phase is SessionPhase.EXECUTION
    before = session.updated_at
    with pytest.raises(InvalidSessionError) as caught:
        session.update_phase(SECRET)
    assert caught.value.path == "phase"
    assert SECRET not in str(caught.value)
    assert (session.phase, session.updated_at) == (SessionPhase.EXECUTION, before)


REJECTED: list[tuple[str, Any]] = [
    *(("session_id", value) for value in ("", SECRET + " ", SECRET + "\n", SECRET + "é", "x" * 65, 7, b"a")),
    *(("phase", value) for value in (SECRET, "execution", "EXECUTION ", None, 7)),
    *((name, value) for name in ("created_at", "updated_at") for value in (SECRET, "2026-01-02T03:04:05", 0, None)),
    ("created_at", datetime(2026, 1, 2)),  # noqa: DTZ001
    ("updated_at", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
    *(("current_question_index", value) for value in ("1", 1.0, True, -1, 2**63, None)),
    *(("version", value) for value in ("1", True, -1, 2**63, None)),
    *(("answers", value) for value in (None, SECRET, [SECRET], 7)),
    *((name, SECRET) for name in ("intent_profile", "build_spec", "concept", "task_graph", "pending_clarification")),
    *((name, SECRET) for name in ("completed_task_ids", "failed_task_ids", "logs")),
    *((name, None) for name in ("completed_task_ids", "failed_task_ids", "logs")),
    *(("active_task_id", value) for value in ("", SECRET + "\n", SECRET + "\ud800", "x" * 256, 7)),
    *(("error_history", value) for value in (None, SECRET, [SECRET], [{"task_id": SECRET}])),
    ("error_history", [{"error_message": SECRET, "extra": SECRET}]),
    ("unknown", SECRET),
    ("stored", SECRET),
    ("_baseline", SECRET),
]


def name_or_type(parameter: object) -> str:
    """Return the id of a parameter: a field name, or the type of a value, which may be secret."""
    return parameter if isinstance(parameter, str) and parameter.isidentifier() else type(parameter).__name__


@pytest.mark.parametrize(("name", "value"), REJECTED, ids=name_or_type)
def test_invalid_field_raises_at_construction(name: str, value: Any) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Session(**{name: value})
    error = caught.value
    assert error.errors(include_url=False)[0]["loc"][0] == name
    for shown in (str(error), repr(error), "".join(traceback.format_exception(error))):
        assert SECRET not in shown


OTHER_VALUES: dict[str, Any] = {
    **{name: {} for name in (*ARTIFACTS, "answers", "pending_clarification", "clarification_answer")},
    **{name: [] for name in ("completed_task_ids", "failed_task_ids", "logs", "error_history")},
}
OTHER_VALUES |= {"session_id": "other", "phase": SessionPhase.FAILED, "active_task_id": None, "version": 2}
OTHER_VALUES |= {"created_at": NOON, "updated_at": NOON, "current_question_index": 9}


def test_equality_compares_each_public_field() -> None:
    session = full_session()
    assert set(OTHER_VALUES) == set(Session.model_fields)
    for name, value in OTHER_VALUES.items():
        other = session.model_copy(deep=True)
        assert other == session
        setattr(other, name, value)
        assert other != session, name


def test_equality_compares_class_and_ignores_private_state() -> None:
    session = full_session()
    read = InMemorySessionRepository().create_session(session)
    fields = {name: getattr(session, name) for name in Session.model_fields}
    assert Session(**fields) == read == session
    assert OtherClass(**fields) != session
    assert session != OtherClass(**fields)
    assert session != fields
    with pytest.raises(TypeError, match="unhashable"):
        hash(Session())


@pytest.mark.parametrize(
    "copied",
    [
        lambda session: pickle.loads(pickle.dumps(session)),  # noqa: S301
        lambda session: pickle.loads(pickle.dumps(session, 2)),  # noqa: S301
        lambda session: session.model_copy(deep=True),
        copy.deepcopy,
    ],
    ids=["pickle", "pickle_protocol_2", "model_copy", "deepcopy"],
)
def test_copied_session_can_be_updated(copied: Callable[[Session], Session]) -> None:
    repository = InMemorySessionRepository()
    repository.create_session(full_session())
    repository.append_error(SESSION_ID, "t4", "second")
    session = repository.get_session(SESSION_ID, recent=1)
    assert session is not None
    session.add_log("before the copy")
    twin = copied(session)
    assert_same(twin, session)
    twin.add_error("t5", "third")
    twin.answers["budget"].append("deep")
    assert "deep" not in session.answers["budget"]
    assert len(session.error_history) == 1
    repository.update_session(twin)
    assert [entry.position for entry in twin.error_history] == [2, 3]
    after = stored(repository)
    assert [entry.error_message for entry in after.error_history] == ["it broke", "second", "third"]
    assert len(after.logs) == 2
    assert after.answers["budget"][-1] == "deep"


def test_to_dict_is_plain_json() -> None:
    session = full_session()
    session.answers = {Colour.RED: (Colour.RED, Size.BIG, (1, [2.5, None, True]))}
    session.concept = {"size": Size.BIG}
    session.clarification_answer = ("yes", Colour.RED)
    for fields in (session.to_dict(), FIELDS):
        assert_plain(fields)
        assert exact(json.loads(json.dumps(fields))) == exact(fields)
    fields = session.to_dict()
    assert list(fields) == list(Session.model_fields)  # no "stored": the session was never stored
    assert fields["answers"] == {"red": ["red", 3, [1, [2.5, None, True]]]}
    assert (fields["concept"], fields["clarification_answer"]) == ({"size": 3}, ["yes", "red"])
    assert fields["phase"] == "QUESTIONNAIRE"
    assert datetime.fromisoformat(fields["created_at"]) == session.created_at
    assert fields["error_history"] == [dict(entry) for entry in session.error_history]


@pytest.mark.parametrize(
    "value", [*EXACT.values(), nested(199), {"\ud800": "\udfff"}], ids=[*EXACT, "maximum_depth", "surrogates"]
)
def test_json_round_trip_is_exact(value: Any) -> None:
    session = full_session()
    for name in ("answers", "concept", "pending_clarification"):
        setattr(session, name, {"k": value})
    session.clarification_answer = value
    session.add_error("a\0b", "\ud800 and \0")
    session.add_log("\udfff and \0")
    assert_same(round_tripped(session), session)


@pytest.mark.parametrize(
    "fields",
    [None, 7, "text", [], [("phase", "IDEA")], Session],
    ids=["none", "number", "text", "empty_list", "pairs", "class"],
)
def test_from_dict_rejects_values_that_are_no_dict(fields: Any) -> None:
    with pytest.raises(InvalidSessionError):
        Session.from_dict(fields)


@pytest.mark.parametrize(("name", "value"), [case for case in REJECTED if case[0] != "stored"], ids=name_or_type)
def test_from_dict_rejects_invalid_field_with_its_path(name: str, value: Any) -> None:
    for others in ({}, FIELDS):
        with pytest.raises(InvalidSessionError) as caught:
            Session.from_dict({**others, name: value})
        assert (caught.value.path or "").split("[")[0] == name
        assert SECRET not in str(caught.value) + "".join(traceback.format_exception(caught.value))


def test_from_dict_accepts_missing_fields() -> None:
    fields = full_session().to_dict()
    for name in fields:
        session = Session.from_dict({key: value for key, value in fields.items() if key != name})
        assert {**session.to_dict(), name: fields[name]} == fields
    assert Session.from_dict({}).version == 0


def test_from_dict_accepts_application_file_without_version() -> None:
    old = {name: value for name, value in full_session().to_dict().items() if name != "version"}
    at = "2025-11-02T10:11:12.131415+00:00"
    entry = {"timestamp": at, "task_id": "t3", "error_message": "exit 1", "phase": "EXECUTION"}
    old |= {"phase": "EXECUTION", "created_at": at, "updated_at": at.replace(".131415+00:00", "Z")}
    session = Session.from_dict({**old, "error_history": [entry], "logs": [f"[{at}] started"]})
    assert session.phase is SessionPhase.EXECUTION
    assert session.created_at == datetime(2025, 11, 2, 10, 11, 12, 131415, tzinfo=UTC)
    assert session.error_history[0] == entry
    assert session.error_history[0].phase is SessionPhase.EXECUTION
    InMemorySessionRepository().update_session(session)
    assert session.version == 1


STORED: Final = FIELDS["stored"]
INVALID_BASELINES: list[Any] = [{}, [], "text", 0, True]
INVALID_BASELINES += [{name: STORED[name] for name in STORED if name != key} for key in STORED]
WRONG_VALUES: Final = (None, True, -1, 1.5, SECRET + "!")
INVALID_BASELINES += [
    STORED | {key: value} for key in STORED if "digest" not in key for value in WRONG_VALUES if value is not STORED[key]
]
INVALID_BASELINES += [STORED | {"positions": positions} for positions in ([0, 1], [True, 2], ["1", "2"], [1, None])]
INVALID_BASELINES += [STORED | {"errors": 2**63}, STORED | {"created_at": "2026-01-01"}]
INVALID_BASELINES += [None, STORED | {"positions": []}, STORED | {"positions": [1]}, STORED | {"positions": [1, 2, 3]}]


@pytest.mark.parametrize(
    ("version", "baseline"), [(0, STORED), *((1, baseline) for baseline in INVALID_BASELINES)], ids=numbered
)
def test_from_dict_rejects_invalid_baseline(version: int, baseline: Any) -> None:
    with pytest.raises(InvalidSessionError) as caught:
        Session.from_dict({**FIELDS, "version": version, "stored": baseline})
    assert (caught.value.path or "").startswith("stored")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_json_schema_of_session() -> None:
    schema = json.loads(json.dumps(Session.model_json_schema()))
    assert list(schema["properties"]) == list(Session.model_fields)
    assert schema["additionalProperties"] is False
    items = schema["properties"]["error_history"]["items"]
    entry = schema["$defs"][items["$ref"].rsplit("/", 1)[1]] if "$ref" in items else items
    assert list(entry["properties"]) == ["timestamp", "task_id", "error_message", "phase"]
    assert {field["type"] for field in entry["properties"].values()} == {"string"}
    assert schema["properties"]["created_at"]["format"] == entry["properties"]["timestamp"]["format"] == "date-time"
    assert schema["$defs"]["SessionPhase"]["enum"] == [phase.value for phase in SessionPhase]
