"""The contract, part five: JSON values are exact or refused, times and ids are exact."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any

import pytest

from vibeforge_sessions import InvalidSessionError, Session, SessionRepository
from vibeforge_sessions.testing.base import SESSION_ID, assert_same, exact, numbered, stored


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


class Plain(Enum):
    ONE = "one"


def nested(depth: int, *, innermost: Any = 1) -> Any:
    """Return lists and dicts in turn, nested so deep."""
    value = innermost
    for level in range(depth):
        value = {"k": value} if level % 2 else [value]
    return value


SECRET = "s3cr3t-value"  # noqa: S105 (what no message may show)

EXACT: dict[str, Any] = {
    "scalars": [None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, ""],
    "floats": [1e22, 1e-320, 0.1, 1.7976931348623157e308, 5e-324, 123456789.123456789],
    "integers": [2**31, 2**53 + 1, 2**63, 2**64, -(2**70), 2**70, 10**4299, 10**4300 - 1, -(10**4300) + 1],
    "texts": [
        "\0",
        "a\0b",
        "\ud800",
        "\udfff",
        "\ude00\ud83d",
        "é",
        "e\u0301",
        "☃",
        "😀",
        "\u2028",
        "'\"\\/\b\f\n\r\t",
        " ",
    ],
    "escapes": ["\\u0000", "\\ud800", "\\", "\\\\", '"', "</script>", "%s", ":x", "{}", "null", "1e5"],
    "keys": {
        "": 1,
        " ": 2,
        "\0": 3,
        "\ud800": 4,
        "é": 5,
        "a.b": 6,
        "'": 7,
        '"': 8,
        "null": 9,
        "A": 10,
        "a": 11,
        "a ": 12,
    },
    "order": {"z": 1, "a": 2, "m": {"2": 1, "10": 2, "1": 3}},
    "empty": [[], {}, [[]], [{}], {"a": []}],
    "deep": nested(199),  # and the dict of answers around it makes 200
    "text": "x" * 1_000_000 + "☃",
    "many": list(range(10_000)),
}
NORMALISED: list[tuple[Any, Any]] = [
    ((1, (2, ())), [1, [2, []]]),
    (Colour.RED, "red"),
    (Size.BIG, 3),
    ({Colour.RED: Size.BIG}, {"red": 3}),
]
REFUSED: list[tuple[Any, str | None]] = [
    (math.nan, ""),
    ([1, math.inf], "[1]"),
    ({"a": -math.inf}, ".a"),
    ({SECRET, 1}, ""),
    (SECRET.encode(), ""),
    (datetime(2026, 1, 1, tzinfo=UTC), ""),
    (date(2026, 1, 1), ""),
    (Decimal(1), ""),
    (1j, ""),
    (Plain.ONE, ""),
    (object(), ""),
    ({1: SECRET}, ""),
    ({None: SECRET}, ""),
    ({("a",): SECRET}, ""),
    ({"a": [{"b c": {SECRET}}]}, ".a[0]['b c']"),
    (10**4300, ""),
    (-(10**4300), ""),
    (nested(200), None),
    ("\ud83d\ude00", ""),
    ({"\ud83d\ude00": 1}, ""),
]


class StoredValueTests:
    """What a session holds comes back the same, or is refused before anything is written."""

    @pytest.mark.parametrize("name", EXACT)
    def test_json_values_come_back_exactly(self, repository: SessionRepository, name: str) -> None:
        value = EXACT[name]
        session = Session(session_id=SESSION_ID, answers={"q": value}, concept={"c": value}, clarification_answer=value)
        repository.create_session(session)
        assert_same(stored(repository), session)
        session.pending_clarification = {"p": value}
        session.add_answer("again", value)
        repository.update_session(session)
        assert_same(stored(repository), session)
        assert exact(stored(repository).answers["again"]) == exact(value)

    def test_the_order_of_keys_is_part_of_the_value(self, repository: SessionRepository) -> None:
        repository.create_session(Session(session_id=SESSION_ID, answers={"a": 1, "b": 2}))
        session = stored(repository)
        session.answers = {"b": 2, "a": 1}
        repository.update_session(session)
        assert list(stored(repository).answers) == ["b", "a"]

    @pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), (0.0, -0.0), (0, False)])
    def test_a_change_of_type_alone_is_a_change(self, repository: SessionRepository, before: Any, after: Any) -> None:
        repository.create_session(Session(session_id=SESSION_ID, answers={"q": before}))
        session = stored(repository)
        session.answers["q"] = after
        repository.update_session(session)
        assert exact(stored(repository).answers["q"]) == exact(after)

    @pytest.mark.parametrize(("given", "kept"), NORMALISED, ids=numbered)
    def test_tuples_and_enums_become_what_they_stand_for(
        self, repository: SessionRepository, given: Any, kept: Any
    ) -> None:
        returned = repository.create_session(Session(session_id=SESSION_ID, answers={"q": given}))
        assert exact(returned.answers["q"]) == exact(kept)
        assert exact(stored(repository).answers["q"]) == exact(kept)

    @pytest.mark.parametrize(("value", "path"), REFUSED, ids=numbered)
    def test_what_json_cannot_hold_is_refused(
        self, repository: SessionRepository, value: Any, path: str | None
    ) -> None:
        session = repository.create_session(session_id=SESSION_ID)
        session.add_log("not to be written")
        session.answers["q"] = value
        fresh = Session(answers={"q": value})
        clarified = Session(clarification_answer=[value])
        for call, where in (
            (lambda: repository.update_session(session), "answers.q"),
            (lambda: repository.create_session(fresh), "answers.q"),
            (lambda: repository.update_session(fresh), "answers.q"),
            (lambda: repository.create_session(clarified), "clarification_answer[0]"),
            (fresh.to_dict, "answers.q"),
        ):
            with pytest.raises(InvalidSessionError) as caught:
                call()
            assert caught.value.path is not None
            if path is not None:
                assert caught.value.path == where + path
            assert caught.value.path.startswith(where[:7])
            assert SECRET not in str(caught.value)
            assert SECRET not in repr(caught.value)
        assert repository.list_sessions() == [SESSION_ID]
        assert repository.list_logs(SESSION_ID) == []
        assert stored(repository).version == 1

    def test_a_value_that_holds_itself_is_refused(self, repository: SessionRepository) -> None:
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(InvalidSessionError):
            repository.create_session(Session(answers={"q": loop}))
        assert repository.list_sessions() == []

    @pytest.mark.parametrize(
        "at",
        [
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
            datetime(1582, 10, 14, 12, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC),
            datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        ],
    )
    def test_times_come_back_exactly(self, repository: SessionRepository, at: datetime) -> None:
        session = Session(session_id=SESSION_ID, created_at=at, updated_at=at)
        session.error_history.append({"timestamp": at, "task_id": "t", "error_message": "m", "phase": "IDEA"})  # type: ignore[arg-type]
        repository.create_session(session)
        after = stored(repository)
        assert (after.created_at, after.updated_at, after.error_history[0].timestamp) == (at, at, at)
        assert after.created_at.tzinfo is after.updated_at.tzinfo is after.error_history[0].timestamp.tzinfo is UTC
        (summary,) = repository.find_sessions().items
        assert (summary.created_at, summary.updated_at) == (at, at)

    @pytest.mark.parametrize(
        "task_id", ["t", "T", "t ", " t", "é", "☃", "😀" * 255, "a'b", 'a"b', "%s", "\u2028", "ﬁ"], ids=numbered
    )
    def test_task_ids_come_back_exactly(self, repository: SessionRepository, task_id: str) -> None:
        session = Session(
            session_id=SESSION_ID,
            active_task_id=task_id,
            completed_task_ids=[task_id, task_id],
            failed_task_ids=[task_id],
        )
        repository.create_session(session)
        assert_same(stored(repository), session)
        assert repository.find_sessions().items[0].active_task_id == task_id

    def test_the_greatest_numbers(self, repository: SessionRepository) -> None:
        session = Session(session_id=SESSION_ID, current_question_index=2**63 - 1)
        repository.create_session(session)
        assert stored(repository).current_question_index == 2**63 - 1

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (1, True),
            (1, 1.0),
            (0.0, -0.0),
            ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
            ({"a": [1, {"b": None}]}, {"a": [1, {"b": False}]}),
            ([], {}),
            ("", None),
            (2**70, 2**70 + 1),
            ("\ud800", "\udc00"),
        ],
    )
    def test_the_smallest_change_is_stored(self, repository: SessionRepository, before: Any, after: Any) -> None:
        session = repository.create_session()
        for answer in (before, after, before, after):  # also after an update by which the repository knows the value
            session.answers["q"] = answer
            session.clarification_answer = [answer]
            repository.update_session(session)
            found = stored(repository, session.session_id)
            assert exact(found.answers) == exact({"q": answer})
            assert exact(found.clarification_answer) == exact([answer])
        assert session.version == 5

    @pytest.mark.parametrize("value", [float("nan"), {1}, {1: 1}, "\ud83d\ude00"], ids=numbered)
    def test_what_cannot_be_kept_is_refused_after_an_update_too(
        self, repository: SessionRepository, value: Any
    ) -> None:
        session = repository.create_session()
        session.answers["q"] = 1
        repository.update_session(session)
        session.answers["q"] = value
        for _ in range(2):
            with pytest.raises(InvalidSessionError):
                repository.update_session(session)
        assert stored(repository, session.session_id).answers == {"q": 1}
