"""Validation at its limits: times, ids, diagnostics, JSON values and error entries."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import StrEnum
from typing import Any

import pytest

from vibeforge_sessions import InvalidSessionError, Session
from vibeforge_sessions.model.history import ErrorEntry, SessionPhase
from vibeforge_sessions.model.validation import (
    check_session_id,
    check_task_id,
    check_time,
    decode_json,
    encode_json,
    storable_phase,
    storable_task_id,
    storable_text,
)
from vibeforge_sessions.testing.base import exact
from vibeforge_sessions.testing.stored_values import nested

SECRET = "s3cr3t-value"
NOON = datetime(2026, 1, 2, 12, 30, 0, 1, tzinfo=UTC)


class Colour(StrEnum):
    RED = "red"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


# --- times ---


class ZoneWithoutOffset(tzinfo):
    """Time zone without an offset from UTC."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    tzname = dst = utcoffset


@pytest.mark.parametrize(
    "value",
    [
        NOON,
        NOON.astimezone(timezone(timedelta(hours=-7, minutes=-45))),
        NOON.astimezone(timezone(timedelta(0), "UTC with another name")),
        "2026-01-02T12:30:00.000001+00:00",
        "2026-01-02T12:30:00.000001Z",
        Text("2026-01-02T12:30:00.000001Z"),
    ],
    ids=["utc", "other_offset", "other_name", "text_with_offset", "text_with_z", "text_subclass"],
)
def test_aware_time_is_converted_to_utc(value: object) -> None:
    checked = check_time(value)
    assert checked == NOON
    assert checked.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, 1.5, b"2026-01-02T12:30:00Z", [], NOON.date(), NOON.time()),
        *("", " ", SECRET, "2026-01-02", "2026-01-02T12:30", "2026-13-01T00:00Z", "2026-01-02T12:30:00\ud800"),
        datetime(2026, 1, 2),  # noqa: DTZ001
        datetime(2026, 1, 2, tzinfo=ZoneWithoutOffset()),
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59.999999-00:01",
    ],
    ids=[
        *("none", "boolean", "integer", "float", "bytes", "list", "date", "time"),
        *("empty", "space", "text", "date_text", "naive_text", "month_13", "surrogate"),
        *("naive", "zone_without_offset", "before_year_1", "after_year_9999"),
    ],
)
def test_invalid_or_naive_time_raises(value: object) -> None:
    with pytest.raises(InvalidSessionError) as caught:
        check_time(value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# --- ids ---


def test_ids_are_returned_as_exact_str() -> None:
    for checked in (check_session_id(Colour.RED), check_task_id(Colour.RED, "p")):
        assert (type(checked), checked) == (str, "red")


INVALID_SESSION_IDS: dict[str, object] = {
    "trailing_line_feed": "a\n",
    "leading_line_feed": "\na",
    "arabic_digit": "a\u0660",
    "full_width_letter": "\uff41",
    "kelvin_sign": "\u212a",
    "maximum_length_and_line_feed": "a" * 64 + "\n",
    "bytes": b"a",
    "integer": 1,
    "none": None,
    "list": ["a"],
}


@pytest.mark.parametrize("value", INVALID_SESSION_IDS.values(), ids=INVALID_SESSION_IDS)
def test_session_id_outside_the_pattern_raises(value: object) -> None:
    with pytest.raises(InvalidSessionError) as caught:
        check_session_id(value)
    assert caught.value.path == "session_id"


@pytest.mark.parametrize(
    "value",
    [" ", "a" * 255, "\u00a0", "\u2028", "\ufeff", "\ufffe", "😀" * 255],
    ids=[
        *("space", "maximum_length", "no_break_space", "line_separator", "byte_order_mark", "noncharacter"),
        "maximum_length_of_emoji",
    ],
)
def test_valid_task_id_is_unchanged(value: str) -> None:
    assert check_task_id(value, "p") == value
    assert storable_task_id(value) == value


@pytest.mark.parametrize(
    "value",
    ["", "a" * 256, "\0", "a\x1f", "a\n", "\x7f", "\x80", "\x85", "\x9f", "\ud800", "a\udfff", b"a", 1, None, ["a"]],
    ids=[
        *("empty", "too_long", "nul", "unit_separator", "line_feed", "delete", "c1_start", "next_line", "c1_end"),
        *("high_surrogate", "low_surrogate", "bytes", "integer", "none", "list"),
    ],
)
def test_invalid_task_id_raises_and_is_converted_for_errors(value: object) -> None:
    with pytest.raises(InvalidSessionError) as caught:
        check_task_id(value, "the.path")
    assert caught.value.path == "the.path"
    converted = storable_task_id(value)
    assert check_task_id(converted, "p") == converted


# --- diagnostics ---


class BrokenError(Exception):
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


class NoText:
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307 (broken on purpose)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (ValueError("a\0b"), "a␀b"),
        (KeyError("k"), "'k'"),
        (b"caf\xc3\xa9 \xff\0", "café �␀"),
        (None, "None"),
        (Colour.RED, "red"),
        (Text("mine\0"), "mine␀"),
        (BrokenError(), "<BrokenError>"),
        (NoText(), "<NoText>"),
        ("é\0", "é␀"),
        ("\x01\x1b\x7f", "\x01\x1b\x7f"),
    ],
    ids=[
        *("error_with_nul", "key_error", "bytes", "none", "string_enum", "str_subclass", "failing_str", "invalid_str"),
        *("nul", "control_characters"),
    ],
)
def test_any_diagnostic_is_converted_to_text(value: object, text: str) -> None:
    converted = storable_text(value)
    assert (type(converted), converted) == (str, text)
    assert storable_text(converted) == converted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("".join(map(chr, range(32))), "".join(map(chr, range(0x2400, 0x2420)))),
        ("\x7f\x80\x9f\u00a0", "␡��\u00a0"),
        ("\ud800", "�"),
        ("", "�"),
        (b"", "�"),
        ("\0" * 300, "␀" * 255),
    ],
    ids=["c0_controls", "delete_and_c1_controls", "surrogate", "empty", "empty_bytes", "too_long"],
)
def test_any_task_id_or_phase_of_error_is_converted(value: object, text: str) -> None:
    assert storable_task_id(value) == text
    assert storable_phase(value) == text[:64]


# --- JSON values ---


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("a", ".a"),
        ("a-b_C9", ".a-b_C9"),
        ("x" * 65, f"['{'x' * 64}']"),
        ("", "['']"),
        ("a b", "['a b']"),
        ("a.b", "['a.b']"),
        ("é", r"['\xe9']"),
        ("\ud800", r"['\ud800']"),
        ("a\n\0", r"['a\n\x00']"),
        ("'", '["\'"]'),
        (Colour.RED, ".red"),
    ],
    ids=[
        *("letter", "word", "too_long", "empty", "space", "dot", "accent", "surrogate", "control_characters"),
        *("quote", "string_enum"),
    ],
)
def test_path_of_invalid_value_quotes_unusual_keys(key: str, part: str) -> None:
    with pytest.raises(InvalidSessionError) as caught:
        encode_json([{}, ({key: [SECRET, {SECRET}]},)], "p")
    assert caught.value.path == f"p[1][0]{part}[1]"
    assert str(caught.value).isascii()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("innermost", [1, "x", None, [], {}], ids=["number", "text", "none", "list", "dict"])
def test_nesting_depth_limit(innermost: Any) -> None:
    depth = 199 if isinstance(innermost, (list, dict)) else 200
    value = nested(depth, innermost=innermost)
    assert exact(decode_json(encode_json(value, "p"))) == exact(value)
    with pytest.raises(InvalidSessionError) as caught:
        encode_json(nested(depth + 1, innermost=innermost), "p")
    path = caught.value.path or ""
    assert (path.count("[0]"), path.count(".k")) == (100, 100)


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_integer_digit_limit(sign: int) -> None:
    greatest = sign * (10**4300 - 1)
    text = encode_json([greatest], "p")
    assert len(text) == 4302 + (sign < 0)
    assert decode_json(text) == [greatest]
    with pytest.raises(InvalidSessionError) as caught:
        encode_json([greatest + sign], "p")
    assert caught.value.path == "p[0]"


@pytest.fixture
def restored_digit_limit() -> Iterator[None]:
    """Restore the interpreter's limit of integer digits after the test."""
    before = sys.get_int_max_str_digits()
    yield
    sys.set_int_max_str_digits(before)


def test_lower_digit_limit_of_interpreter_raises(restored_digit_limit: None) -> None:
    session = Session(answers={"q": 10**1000})
    text = encode_json(10**1000, "p")
    sys.set_int_max_str_digits(640)
    with pytest.raises(InvalidSessionError) as caught:
        encode_json([1, 10**1000], "p")
    assert caught.value.path == "p"
    with pytest.raises(InvalidSessionError):
        session.to_dict()
    with pytest.raises(ValueError, match="digits"):
        decode_json(text)


def test_unlimited_digits_of_interpreter_keep_own_limit(restored_digit_limit: None) -> None:
    sys.set_int_max_str_digits(0)
    assert decode_json(encode_json(10**4299, "p")) == 10**4299
    with pytest.raises(InvalidSessionError):
        encode_json(10**4300, "p")


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", '{"a":-Infinity}', "", "[1", "[1] x", "'a'", "{1:2}", "\ufeff1"],
    ids=[
        *("nan", "infinity", "negative_infinity", "empty", "truncated", "garbage_after_list", "single_quotes"),
        *("number_as_key", "byte_order_mark"),
    ],
)
def test_decode_json_rejects_foreign_text(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the messages are those of json)
        decode_json(text)


# --- phases and error entries ---


def test_phases_are_those_of_the_application() -> None:
    names = "QUESTIONNAIRE BUILD_SPEC IDEA PLAN_REVIEW EXECUTION CLARIFICATION VERIFICATION COMPLETE FAILED"
    assert " ".join(phase.name for phase in SessionPhase) == " ".join(phase.value for phase in SessionPhase) == names
    for phase in SessionPhase:
        assert isinstance(phase, str)
        assert f"{phase}" == str(phase) == phase.name == json.loads(json.dumps(phase))


ENTRY = ErrorEntry(NOON, "t1", "it broke", SessionPhase.EXECUTION, position=7)
PLAIN = {"timestamp": NOON.isoformat(), "task_id": "t1", "error_message": "it broke", "phase": "EXECUTION"}


def test_error_entry_is_a_mapping() -> None:
    assert isinstance(ENTRY, Mapping)
    assert list(ENTRY) == list(ENTRY.keys()) == list(PLAIN)
    assert list(ENTRY.items()) == list(PLAIN.items())
    assert {type(value) for value in ENTRY.values()} == {str}
    assert (len(ENTRY), {**ENTRY}, dict(ENTRY)) == (4, PLAIN, PLAIN)
    assert (ENTRY["task_id"], ENTRY.get("phase"), ENTRY.get("nothing", 3)) == ("t1", "EXECUTION", 3)
    assert json.loads(json.dumps(dict(ENTRY))) == PLAIN
    for missing in ("position", "at", ""):
        assert missing not in ENTRY
        with pytest.raises(KeyError):
            ENTRY[missing]


def test_error_entry_is_immutable() -> None:
    for name in (*PLAIN, "position", "another"):
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
            setattr(ENTRY, name, "changed")
    with pytest.raises(TypeError):
        ENTRY["task_id"] = "changed"  # type: ignore[index]
    assert dict(ENTRY) == PLAIN


def test_error_entries_are_equal_by_their_four_values() -> None:
    for same in (ENTRY.at(8), ErrorEntry.of(PLAIN)):
        assert same == ENTRY == PLAIN
        assert hash(same) == hash(ENTRY)
    others = {"timestamp": NOON + timedelta(1), "task_id": "t2", "error_message": "", "phase": SessionPhase.IDEA}
    for name, value in others.items():
        changed: dict[str, Any] = {name: value}
        assert dataclasses.replace(ENTRY, **changed) != ENTRY
        assert PLAIN | changed != ENTRY
    assert PLAIN | {"position": 7} != ENTRY
    assert tuple(PLAIN) != ENTRY


def test_error_entry_survives_copy_pickle_and_pydantic() -> None:
    for twin in (copy.copy(ENTRY), copy.deepcopy(ENTRY), pickle.loads(pickle.dumps(ENTRY))):  # noqa: S301
        assert (twin, twin.position, type(twin.phase)) == (ENTRY, 7, SessionPhase)
    session = Session(error_history=[ENTRY])
    assert session.model_dump()["error_history"] == [PLAIN]
    assert type(session.model_dump()["error_history"][0]) is dict


def test_pydantic_json_of_error_entry_has_no_warnings() -> None:
    session = Session(error_history=[ENTRY])
    assert session.model_dump(mode="json")["error_history"] == [PLAIN]
    assert json.loads(session.model_dump_json())["error_history"] == [PLAIN]
