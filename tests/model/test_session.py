"""The model alone: what its methods do, what it refuses, and that it survives copies, pickles and journeys as JSON."""

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
MOVING: list[Change] = [
    lambda s: s.update_phase(SessionPhase.IDEA),
    lambda s: s.update_phase(s.phase),
    lambda s: s.add_answer("q", 1),
    lambda s: s.add_error("t", "m"),
    lambda s: s.add_error("t", "m", phase=SessionPhase.FAILED),
]


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


class Unlike(Session):
    """The same fields under another name."""


def assert_plain(value: Any) -> None:
    """Assert that a value is made of JSON's own types, no subclass of them."""
    assert type(value) in {dict, list, str, int, float, bool, type(None)}
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        assert_plain(item)


def fields_of_a_stored_session() -> dict[str, Any]:
    """Return what `to_dict` writes of a stored session with two errors and a log line."""
    session = full_session()
    session.add_error("t5", "again")
    InMemorySessionRepository().create_session(session)
    return session.to_dict()


FIELDS: Final = fields_of_a_stored_session()


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


def test_two_sessions_share_nothing() -> None:
    one, two = Session(), Session()
    assert one.session_id != two.session_id
    for name in ("answers", "completed_task_ids", "failed_task_ids", "logs", "error_history"):
        assert getattr(one, name) is not getattr(two, name)
    given: dict[str, Any] = {"q": 1}
    assert Session(answers=given).answers is not given


def test_no_id_is_a_fresh_id() -> None:
    nobody: Any = None  # what the application hands over
    ids = {Session(session_id=nobody).session_id for _ in range(3)}
    assert len(ids) == 3
    assert {uuid.UUID(session_id).version for session_id in ids} == {4}


@pytest.mark.parametrize("change", MOVING, ids=numbered)
@pytest.mark.parametrize("clock", [NOON - timedelta(hours=1), NOON, NOON + timedelta(hours=1)])
def test_what_moves_the_time_moves_it_forward(monkeypatch: pytest.MonkeyPatch, change: Change, clock: datetime) -> None:
    monkeypatch.setattr("vibeforge_sessions.model.validation.utc_now", lambda: clock)
    session = Session(created_at=NOON, updated_at=NOON)
    assert session.updated_at.tzinfo is UTC
    change(session)
    assert session.updated_at == max(clock, NOON + TICK)  # also while the clock stands still, or goes back
    change(session)
    assert session.updated_at == max(clock + TICK, NOON + 2 * TICK)
    assert session.created_at == NOON


@pytest.mark.parametrize("change", MOVING, ids=numbered)
def test_time_ends_with_the_year_9999(change: Change) -> None:
    session = Session(created_at=NOON, updated_at=LAST - TICK)
    change(session)
    assert session.updated_at == LAST
    change(session)
    assert session.updated_at == LAST


def test_a_log_moves_no_time() -> None:
    session = Session(updated_at=NOON)
    session.add_log("message")
    assert session.updated_at == NOON
    assert session.logs[0].endswith("] message")


def test_update_phase_takes_its_text_and_refuses_others() -> None:
    session = Session(updated_at=NOON)
    session.update_phase("EXECUTION")
    assert session.phase is SessionPhase.EXECUTION
    before = session.updated_at
    with pytest.raises(InvalidSessionError) as caught:
        session.update_phase(SECRET)
    assert caught.value.path == "phase"
    assert SECRET not in str(caught.value)
    assert (session.phase, session.updated_at) == (SessionPhase.EXECUTION, before)


REFUSED: list[tuple[str, Any]] = [
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


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=numbered)
def test_what_is_refused_at_construction(name: str, value: Any) -> None:
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


def test_equality_looks_at_each_public_field() -> None:
    session = full_session()
    assert set(OTHER_VALUES) == set(Session.model_fields)
    for name, value in OTHER_VALUES.items():
        other = session.model_copy(deep=True)
        assert other == session
        setattr(other, name, value)
        assert other != session, name


def test_equality_looks_at_the_class_and_at_nothing_private_and_there_is_no_hash() -> None:
    session = full_session()
    read = InMemorySessionRepository().create_session(session)
    fields = {name: getattr(session, name) for name in Session.model_fields}
    assert Session(**fields) == read == session
    assert Unlike(**fields) != session
    assert session != Unlike(**fields)
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
    ids=numbered,
)
def test_a_copy_can_be_updated(copied: Callable[[Session], Session]) -> None:
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
    assert list(fields) == list(Session.model_fields)  # and no "stored": it never was
    assert fields["answers"] == {"red": ["red", 3, [1, [2.5, None, True]]]}
    assert (fields["concept"], fields["clarification_answer"]) == ({"size": 3}, ["yes", "red"])
    assert fields["phase"] == "QUESTIONNAIRE"
    assert datetime.fromisoformat(fields["created_at"]) == session.created_at
    assert fields["error_history"] == [dict(entry) for entry in session.error_history]


@pytest.mark.parametrize("value", [*EXACT.values(), nested(199), {"\ud800": "\udfff"}], ids=numbered)
def test_a_journey_is_exact(value: Any) -> None:
    session = full_session()
    for name in ("answers", "concept", "pending_clarification"):
        setattr(session, name, {"k": value})
    session.clarification_answer = value
    session.add_error("a\0b", "\ud800 and \0")
    session.add_log("\udfff and \0")
    assert_same(round_tripped(session), session)


@pytest.mark.parametrize("fields", [None, 7, "text", [], [("phase", "IDEA")], Session], ids=numbered)
def test_what_is_no_dict_is_no_session(fields: Any) -> None:
    with pytest.raises(InvalidSessionError):
        Session.from_dict(fields)


@pytest.mark.parametrize(("name", "value"), [case for case in REFUSED if case[0] != "stored"], ids=numbered)
def test_malformed_fields_are_refused_with_their_path(name: str, value: Any) -> None:
    for others in ({}, FIELDS):
        with pytest.raises(InvalidSessionError) as caught:
            Session.from_dict({**others, name: value})
        assert (caught.value.path or "").split("[")[0] == name
        assert SECRET not in str(caught.value) + "".join(traceback.format_exception(caught.value))


def test_every_field_may_be_missing() -> None:
    fields = full_session().to_dict()
    for name in fields:
        session = Session.from_dict({key: value for key, value in fields.items() if key != name})
        assert {**session.to_dict(), name: fields[name]} == fields
    assert Session.from_dict({}).version == 0


def test_a_session_of_the_applications_old_file_loads() -> None:
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
SPOILT: list[Any] = [{}, [], "text", 0, True]
SPOILT += [{name: STORED[name] for name in STORED if name != key} for key in STORED]
WRONG: Final = (None, True, -1, 1.5, SECRET + "!")
SPOILT += [
    STORED | {key: value} for key in STORED if "digest" not in key for value in WRONG if value is not STORED[key]
]
SPOILT += [STORED | {"positions": positions} for positions in ([0, 1], [True, 2], ["1", "2"], [1, None])]
SPOILT += [STORED | {"errors": 2**63}, STORED | {"created_at": "2026-01-01"}]
SPOILT += [None, STORED | {"positions": []}, STORED | {"positions": [1]}, STORED | {"positions": [1, 2, 3]}]


@pytest.mark.parametrize(("version", "spoilt"), [(0, STORED), *((1, spoilt) for spoilt in SPOILT)], ids=numbered)
def test_a_malformed_baseline_is_refused(version: int, spoilt: Any) -> None:
    with pytest.raises(InvalidSessionError) as caught:
        Session.from_dict({**FIELDS, "version": version, "stored": spoilt})
    assert (caught.value.path or "").startswith("stored")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_its_json_schema() -> None:
    schema = json.loads(json.dumps(Session.model_json_schema()))
    assert list(schema["properties"]) == list(Session.model_fields)
    assert schema["additionalProperties"] is False
    items = schema["properties"]["error_history"]["items"]
    entry = schema["$defs"][items["$ref"].rsplit("/", 1)[1]] if "$ref" in items else items
    assert list(entry["properties"]) == ["timestamp", "task_id", "error_message", "phase"]
    assert {field["type"] for field in entry["properties"].values()} == {"string"}
    assert schema["properties"]["created_at"]["format"] == entry["properties"]["timestamp"]["format"] == "date-time"
    assert schema["$defs"]["SessionPhase"]["enum"] == [phase.value for phase in SessionPhase]
