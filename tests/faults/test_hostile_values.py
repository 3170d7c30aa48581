"""Hostile values passed to sessions, filters, cursors, policies, URLs and the command line."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from tests.support.faults.hostile import ENDLESS, HOSTILE, MARK, TEXTS, picks, value_of
from tests.support.faults.shown import check_shown
from tests.support.strategies import sessions
from vibeforge_sessions import (
    ConfigurationError,
    InMemorySessionRepository,
    InvalidArgumentError,
    InvalidSessionError,
    RetryPolicy,
    Session,
    SessionFilter,
)
from vibeforge_sessions.cli.commands import app
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.testing.base import exact, full_session

FIELDS = sorted(Session.model_fields)


def rejection_of(call: Callable[[], Any], kind: type[Exception] = InvalidSessionError) -> Exception | None:
    """Make a call and return the error that rejected it, or None."""
    try:
        call()
    except kind as error:
        check_shown(error, MARK)
        return error
    return None


# --- sessions ---


@pytest.mark.parametrize("field", FIELDS)
def test_session_with_a_hostile_value_is_rejected_or_created(field: str) -> None:
    for pick, value in HOSTILE.items():
        if field in {"logs", "error_history"} and pick in ENDLESS:
            continue
        rejected = rejection_of(lambda: Session.from_dict({field: value})) is not None  # noqa: B023
        assert rejected == (rejection_of(lambda: Session(**{field: value}), ValidationError) is not None)  # noqa: B023
        assert rejected == (
            rejection_of(lambda: Session.model_validate({field: value}), ValidationError) is not None  # noqa: B023
        )
        if not rejected:
            rejection_of(Session(**{field: value}).to_dict)


def test_from_dict_of_hostile_data_is_rejected_or_creates_a_session() -> None:
    for value in HOSTILE.values():
        rejection_of(lambda: Session.from_dict(value))  # noqa: B023
    for text in (*TEXTS.values(), "_baseline", "__class__", "model_config", "stored"):
        name = text.replace(MARK, "!").replace("SELECT", "select")  # the error shows the key as a path
        for value in (None, MARK, {MARK: MARK}):
            rejection_of(lambda: Session.from_dict({name: value}))  # noqa: B023
    many = {f"{number}": MARK for number in range(1_000_000)}
    assert rejection_of(lambda: Session.from_dict(many)) is not None


@pytest.mark.parametrize("field", ["no_such_field", MARK, f"{MARK}\n\x1b[31m", "x" * 10**6])
def test_unknown_field_is_rejected_with_a_short_printable_error(field: str) -> None:
    error = rejection_of(lambda: Session.from_dict({field.replace(MARK, "!"): MARK}))
    assert error is not None
    assert str(error).isprintable()
    assert len(str(error)) < 200


@given(session=sessions, picked=st.lists(st.tuples(st.sampled_from(FIELDS), picks), max_size=3), data=st.data())
def test_tampered_dict_of_a_stored_session_is_rejected_or_loaded(
    session: Session, picked: list[tuple[str, str]], data: st.DataObject
) -> None:
    InMemorySessionRepository().create_session(session)
    data_of_session: dict[str, Any] = session.to_dict()
    for key in data.draw(st.lists(st.sampled_from(sorted(data_of_session["stored"])), max_size=3)):
        pick = data.draw(picks)
        data_of_session["stored"][key] = value_of(pick)
    for field, pick in picked:
        if field not in {"logs", "error_history"} or pick not in ENDLESS:
            data_of_session[field] = value_of(pick)
    rejection_of(lambda: Session.from_dict(data_of_session).to_dict())


def test_session_methods_with_hostile_values_reject_or_apply_them() -> None:
    for pick, value in HOSTILE.items():
        session = full_session()
        rejection_of(lambda: session.update_phase(value))  # noqa: B023
        rejection_of(lambda: session.add_answer(value, value))  # noqa: B023
        if pick not in ENDLESS:
            session.add_log(value)
            session.add_error(value, value, value)
            assert exact(session.error_history[-1].error_message) == exact(str(session.error_history[-1].error_message))
        rejection_of(session.to_dict)
        for field in FIELDS if pick not in ENDLESS else ():
            broken = full_session()
            setattr(broken, field, value)
            for change in (
                lambda: broken.add_answer("q", 1),  # noqa: B023
                lambda: broken.add_log("m"),  # noqa: B023
                lambda: broken.add_error("t", "m"),  # noqa: B023
                lambda: broken.update_phase("IDEA"),  # noqa: B023
            ):
                rejection_of(change)


def test_session_with_a_missing_field_is_rejected() -> None:
    repository = InMemorySessionRepository()
    empty = Session.__new__(Session)
    assert rejection_of(lambda: repository.create_session(empty)) is not None
    for field in FIELDS:
        session = full_session()
        delattr(session, field)
        assert rejection_of(lambda: repository.update_session(session)) is not None  # noqa: B023
    assert repository.list_sessions() == []


# --- filters, cursors, policies ---


@pytest.mark.parametrize(("cls", "kind"), [(SessionFilter, InvalidArgumentError), (RetryPolicy, ConfigurationError)])
def test_filter_or_policy_with_a_hostile_value_is_rejected_or_created(cls: Any, kind: type[Exception]) -> None:
    for field in dataclasses.fields(cls):
        for value in HOSTILE.values():
            for given_ in (value, [value], {"a": value}):
                rejection_of(lambda: cls(**{field.name: given_}), kind)  # noqa: B023


def test_phases_of_a_filter_must_be_iterable_more_than_once() -> None:
    assert rejection_of(lambda: SessionFilter(phases=(phase for phase in ["IDEA"])), InvalidArgumentError)  # type: ignore[arg-type]
    assert SessionFilter(phases=dict.fromkeys(["IDEA"])).phases == {"IDEA"}


@pytest.fixture(scope="module")
def listed() -> InMemorySessionRepository:
    repository: InMemorySessionRepository = InMemorySessionRepository()
    for number in range(3):
        repository.create_session(session_id=f"s{number}")
    return repository


@given(data=st.data())
def test_changed_cursor_is_rejected(listed: InMemorySessionRepository, data: st.DataObject) -> None:
    cursor = listed.find_sessions(limit=1).next_cursor
    assert cursor is not None
    at, length = data.draw(st.tuples(st.integers(0, len(cursor)), st.integers(0, 20)))
    changed = cursor[:at] + data.draw(st.text(max_size=5) | st.text("AZaz09-_=|", max_size=5)) + cursor[at + length :]
    rejected = rejection_of(lambda: listed.find_sessions(limit=1, cursor=changed), InvalidArgumentError)
    assert (rejected is None) == (changed.rstrip("=") == cursor.rstrip("="))


# --- URLs ---

URLS = [
    f"sqlite:///{MARK}.db",
    f"postgresql+psycopg://user:{MARK}@db.example:5432/forge?sslmode=disable&connect_timeout=3",
    f"postgresql://user:{MARK}@/forge?host=h1:5432&host=h2:5433&target_session_attrs=read-write",
    f"mariadb+pymysql://user:{MARK}@db.example:3306/forge?charset=utf8mb4&read_timeout=5",
    f"mariadb+pymysql://user:{MARK}@/forge?host=h1:3306&host=h2:3307",
]


def test_hostile_url_is_rejected_or_accepted() -> None:
    for value in HOSTILE.values():
        rejection_of(lambda: create_engine(value).dispose(), ConfigurationError)  # noqa: B023


@given(url=st.sampled_from(URLS), data=st.data())
def test_changed_url_is_rejected_or_accepted(url: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at, length = data.draw(st.tuples(st.integers(0, len(url)), st.integers(0, 12)))
        url = url[:at] + data.draw(st.text(max_size=5) | st.sampled_from(list(":/@?&=%[]#\0"))) + url[at + length :]
    rejection_of(lambda: create_engine(url).dispose(), ConfigurationError)


# --- the command line ---

COMMANDS = {
    "status": [], "check": [], "plan": [], "history": [], "path": [],
    "wait": ["--timeout"],
    "upgrade": ["--since", "--lock-timeout", "--statement-timeout", ""],
    "downgrade": ["--since", "--lock-timeout", "--statement-timeout", ""],
    "stamp": ["--lock-timeout", ""],
    "grants": ["--role", "--migrator"],
    "verify-data": ["--session-type", "--batch"],
    "backup": [""],
}  # fmt: skip
ARGUMENTS = [
    (command, option) for command, options in COMMANDS.items() for option in (*options, "--schema", "--no-such")
]
WORDS = [
    *(text for text in TEXTS.values() if "\0" not in text and len(text) < 10_000),
    *("nan", "inf", "-inf", "1e999", "0", "1" * 400, "head", "heads", "base", "+1", "-1", "+99", "head:base", "a:b"),
    *("..", ".:x", "os:path", "os:", ":", "json:JSONDecoder", "tests.support.faults.hostile:HostileClassError"),
    *("--", "-", "@"),
]  # fmt: skip
words = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=20)
EXITS = range(9)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "sessions.db"
    url = f"sqlite:///{path}"
    engine = create_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    return url


@given(argument=st.sampled_from(ARGUMENTS), word=words, sql=st.booleans())
def test_command_with_a_hostile_argument_ends_with_a_documented_exit_code(
    database: str, argument: tuple[str, str], word: str, sql: bool
) -> None:
    command, option = argument
    arguments = ["db", command, *([option] if option else []), word]
    arguments += ["--sql"] if sql and command in {"upgrade", "downgrade"} else []
    if command == "wait" and option == "--timeout":
        with contextlib.suppress(ValueError):
            if float(word) > 1:
                return
    environment = {"VIBEFORGE_SESSIONS_DATABASE_URL": database, "COLUMNS": "200"}
    # a backup is written to a file with this name, below the current folder
    with contextlib.chdir(Path(database.removeprefix("sqlite:///")).parent):
        result = CliRunner().invoke(app, arguments, env=environment, input="n\n")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in EXITS
    assert "Traceback" not in result.output
