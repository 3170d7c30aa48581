"""Contract tests of stored values: JSON values are exact or rejected, times and ids are exact."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any

import pytest

from vibeforge_sessions import InvalidSessionError, Session, SessionRepository
from vibeforge_sessions.testing.base import SESSION_ID, assert_same, exact, stored


class Color(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


class Plain(Enum):
    ONE = "one"


def nested(depth: int, *, innermost: Any = 1) -> Any:
    """Return alternating lists and dicts, nested to the given depth."""
    value = innermost
    for level in range(depth):
        value = {"k": value} if level % 2 else [value]
    return value


SECRET = "s3cr3t-value"  # noqa: S105 (no message may contain it)

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
    "deep": nested(199),  # with the dict of answers around it the depth is 200
    "text": "x" * 1_000_000 + "☃",
    "many": list(range(10_000)),
}
EXACT_TASK_IDS = {
    "lower_case": "t",
    "upper_case": "T",
    "trailing_space": "t ",
    "leading_space": " t",
    "accent": "é",
    "symbol": "☃",
    "maximum_length": "😀" * 255,
    "single_quote": "a'b",
    "double_quote": 'a"b',
    "placeholder": "%s",
    "line_separator": "\u2028",
    "ligature": "ﬁ",
}
NORMALIZED: dict[str, tuple[Any, Any]] = {
    "tuple": ((1, (2, ())), [1, [2, []]]),
    "string_enum": (Color.RED, "red"),
    "integer_enum": (Size.BIG, 3),
    "enum_as_key": ({Color.RED: Size.BIG}, {"red": 3}),
}
"""Values, and the same values as they are stored."""
REJECTED: dict[str, tuple[Any, str | None]] = {
    "nan": (math.nan, ""),
    "infinity": ([1, math.inf], "[1]"),
    "negative_infinity": ({"a": -math.inf}, ".a"),
    "set": ({SECRET, 1}, ""),
    "bytes": (SECRET.encode(), ""),
    "datetime": (datetime(2026, 1, 1, tzinfo=UTC), ""),
    "date": (date(2026, 1, 1), ""),
    "decimal": (Decimal(1), ""),
    "complex": (1j, ""),
    "enum": (Plain.ONE, ""),
    "object": (object(), ""),
    "integer_key": ({1: SECRET}, ""),
    "none_key": ({None: SECRET}, ""),
    "tuple_key": ({("a",): SECRET}, ""),
    "nested_set": ({"a": [{"b c": {SECRET}}]}, ".a[0]['b c']"),
    "large_integer": (10**4300, ""),
    "large_negative_integer": (-(10**4300), ""),
    "too_deep": (nested(200), None),
    "surrogate_pair": ("\ud83d\ude00", ""),
    "surrogate_pair_in_key": ({"\ud83d\ude00": 1}, ""),
}
"""Values that are rejected, and the end of the path that the error names; None for any end."""


class StoredValueTests:
    """Values are read exactly as they were stored; invalid values are rejected before anything is written."""

    @pytest.mark.parametrize("name", EXACT)
    def test_json_values_are_exact(self, repository: SessionRepository, name: str) -> None:
        value = EXACT[name]
        session = Session(session_id=SESSION_ID, answers={"q": value}, concept={"c": value}, clarification_answer=value)
        repository.create_session(session)
        assert_same(stored(repository), session)
        session.pending_clarification = {"p": value}
        session.add_answer("again", value)
        repository.update_session(session)
        assert_same(stored(repository), session)
        assert exact(stored(repository).answers["again"]) == exact(value)

    def test_update_of_key_order_only_is_stored(self, repository: SessionRepository) -> None:
        repository.create_session(Session(session_id=SESSION_ID, answers={"a": 1, "b": 2}))
        session = stored(repository)
        session.answers = {"b": 2, "a": 1}
        repository.update_session(session)
        assert list(stored(repository).answers) == ["b", "a"]

    @pytest.mark.parametrize(
        ("before", "after"),
        [(1, True), (1, 1.0), (0.0, -0.0), (0, False)],
        ids=["integer_to_bool", "integer_to_float", "sign_of_zero", "zero_to_bool"],
    )
    def test_update_of_type_only_is_stored(self, repository: SessionRepository, before: Any, after: Any) -> None:
        repository.create_session(Session(session_id=SESSION_ID, answers={"q": before}))
        session = stored(repository)
        session.answers["q"] = after
        repository.update_session(session)
        assert exact(stored(repository).answers["q"]) == exact(after)

    @pytest.mark.parametrize(("given", "expected"), NORMALIZED.values(), ids=NORMALIZED)
    def test_tuples_and_enums_are_normalized(self, repository: SessionRepository, given: Any, expected: Any) -> None:
        returned = repository.create_session(Session(session_id=SESSION_ID, answers={"q": given}))
        assert exact(returned.answers["q"]) == exact(expected)
        assert exact(stored(repository).answers["q"]) == exact(expected)

    @pytest.mark.parametrize(("value", "path"), REJECTED.values(), ids=REJECTED)
    def test_other_values_than_json_are_rejected(
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

    def test_value_that_contains_itself_is_rejected(self, repository: SessionRepository) -> None:
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
        ids=str,
    )
    def test_times_are_exact(self, repository: SessionRepository, at: datetime) -> None:
        session = Session(session_id=SESSION_ID, created_at=at, updated_at=at)
        session.error_history.append({"timestamp": at, "task_id": "t", "error_message": "m", "phase": "IDEA"})  # type: ignore[arg-type]
        repository.create_session(session)
        after = stored(repository)
        assert (after.created_at, after.updated_at, after.error_history[0].timestamp) == (at, at, at)
        assert after.created_at.tzinfo is after.updated_at.tzinfo is after.error_history[0].timestamp.tzinfo is UTC
        (summary,) = repository.find_sessions().items
        assert (summary.created_at, summary.updated_at) == (at, at)

    @pytest.mark.parametrize("task_id", EXACT_TASK_IDS.values(), ids=EXACT_TASK_IDS)
    def test_task_ids_are_exact(self, repository: SessionRepository, task_id: str) -> None:
        session = Session(
            session_id=SESSION_ID,
            active_task_id=task_id,
            completed_task_ids=[task_id, task_id],
            failed_task_ids=[task_id],
        )
        repository.create_session(session)
        assert_same(stored(repository), session)
        assert repository.find_sessions().items[0].active_task_id == task_id

    def test_maximum_question_index_is_stored(self, repository: SessionRepository) -> None:
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
        ids=[
            "integer_to_bool",
            "integer_to_float",
            "sign_of_zero",
            "key_order",
            "nested_none_to_bool",
            "list_to_dict",
            "empty_text_to_none",
            "large_integer",
            "surrogate",
        ],
    )
    def test_smallest_changes_are_stored(self, repository: SessionRepository, before: Any, after: Any) -> None:
        session = repository.create_session()
        for answer in (before, after, before, after):  # the session has fingerprints from the first update on
            session.answers["q"] = answer
            session.clarification_answer = [answer]
            repository.update_session(session)
            found = stored(repository, session.session_id)
            assert exact(found.answers) == exact({"q": answer})
            assert exact(found.clarification_answer) == exact([answer])
        assert session.version == 5

    @pytest.mark.parametrize(
        "value", [float("nan"), {1}, {1: 1}, "\ud83d\ude00"], ids=["nan", "set", "integer_key", "surrogate_pair"]
    )
    def test_invalid_value_is_rejected_after_an_update(self, repository: SessionRepository, value: Any) -> None:
        session = repository.create_session()
        session.answers["q"] = 1
        repository.update_session(session)
        session.answers["q"] = value
        for _ in range(2):
            with pytest.raises(InvalidSessionError):
                repository.update_session(session)
        assert stored(repository, session.session_id).answers == {"q": 1}
