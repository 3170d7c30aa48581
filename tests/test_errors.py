"""The exception tree: its shape, what the errors carry and say, and that they travel between processes."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import get_args
from unittest.mock import Mock

import pytest

import vibeforge_sessions
from tests.support import ROOT
from vibeforge_sessions import errors
from vibeforge_sessions.errors import (
    ArchiveError,
    ConfigurationError,
    CorruptSessionError,
    InvalidArgumentError,
    InvalidSessionError,
    OutcomeUnknownError,
    SchemaError,
    SchemaState,
    SessionExistsError,
    SessionNotFoundError,
    SessionRepositoryError,
    StaleSessionError,
    StorageError,
)

PAGE = (ROOT / "docs" / "errors.md").read_text("utf-8")
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
}
BASES = {
    "SessionRepositoryError": (Exception,),
    "SessionNotFoundError": (SessionRepositoryError, LookupError),
    "SessionExistsError": (SessionRepositoryError,),
    "StaleSessionError": (SessionRepositoryError,),
    "InvalidSessionError": (SessionRepositoryError, ValueError),
    "InvalidArgumentError": (SessionRepositoryError, ValueError),
    "CorruptSessionError": (SessionRepositoryError,),
    "ConfigurationError": (SessionRepositoryError,),
    "StorageError": (SessionRepositoryError,),
    "OutcomeUnknownError": (SessionRepositoryError,),
    "SchemaError": (SessionRepositoryError,),
    "ArchiveError": (SessionRepositoryError,),
}
# each error, its attributes, its text
EXAMPLES: list[tuple[SessionRepositoryError, dict[str, object], str]] = [
    (SessionRepositoryError("text"), {}, "text"),
    (SessionNotFoundError("s1"), {"session_id": "s1"}, "there is no session 's1': check the id, or create the session"),
    (
        SessionExistsError("s1"),
        {"session_id": "s1"},
        "session 's1' already exists: choose another id, or read that session",
    ),
    (
        StaleSessionError("s1", 3, 5),
        {"session_id": "s1", "version": 3, "stored_version": 5},
        "session 's1' was changed since version 3 was read (version 5 is now stored): read it again and retry",
    ),
    (
        StaleSessionError("s1", 3),
        {"session_id": "s1", "version": 3, "stored_version": None},
        "session 's1' was changed since version 3 was read: read it again and retry",
    ),
    (
        StaleSessionError("s1", 3, 3),
        {"session_id": "s1", "version": 3, "stored_version": 3},
        (
            "session 's1' was replaced since version 3 was read: it was deleted and created again, or the caller's "
            "transaction was rolled back; read it again and retry"
        ),
    ),
    (
        StaleSessionError("s1", 3, 0),
        {"session_id": "s1", "version": 3, "stored_version": 0},
        (
            "session 's1' is not stored: the caller's transaction that created it was rolled back, or the session "
            "has since been deleted; create it again, or discard this copy"
        ),
    ),
    (InvalidSessionError("is wrong"), {"reason": "is wrong", "path": None}, "is wrong"),
    (InvalidSessionError("is wrong", "a.b[1]"), {"reason": "is wrong", "path": "a.b[1]"}, "a.b[1]: is wrong"),
    (InvalidArgumentError("is wrong"), {"reason": "is wrong", "argument": None}, "is wrong"),
    (InvalidArgumentError("is wrong", "limit"), {"reason": "is wrong", "argument": "limit"}, "limit: is wrong"),
    (
        CorruptSessionError("s1", "why"),
        {"session_id": "s1", "reason": "why"},
        (
            "session 's1' is stored in a way that this code cannot read: why; use code that can read it, or restore it "
            "from a backup"
        ),
    ),
    (
        CorruptSessionError(None, "why"),
        {"session_id": None, "reason": "why"},
        (
            "a session is stored in a way that this code cannot read: why; use code that can read it, or restore it "
            "from a backup"
        ),
    ),
    (ConfigurationError("is wrong"), {"reason": "is wrong", "name": None}, "is wrong"),
    (ConfigurationError("is wrong", "bind"), {"reason": "is wrong", "name": "bind"}, "bind: is wrong"),
    (StorageError("why"), {"reason": "why", "transaction_lost": False}, "why"),
    (StorageError("why", transaction_lost=True), {"reason": "why", "transaction_lost": True}, "why"),
    (
        OutcomeUnknownError("why"),
        {"reason": "why"},
        "why; the write may or may not have been stored: read the session before you repeat the call",
    ),
    (SchemaError("why"), {"reason": "why", "state": None}, "why"),
    *((SchemaError("why", state), {"reason": "why", "state": state}, "why") for state in get_args(SchemaState)),
    (ArchiveError("why"), {"reason": "why", "line": None}, "why"),
    (ArchiveError("why", 7), {"reason": "why", "line": 7}, "line 7: why"),
]


def describe(error: SessionRepositoryError) -> tuple[type, str, str, tuple[object, ...], dict[str, object]]:
    return type(error), str(error), repr(error), error.args, vars(error)


def passed_on(error: SessionRepositoryError) -> SessionRepositoryError:
    """Return an error from another process, both ways."""
    return error


def raised(error: SessionRepositoryError) -> None:
    raise error


def test_the_tree_is_the_documented_one() -> None:
    assert {name: class_.__bases__ for name, class_ in CLASSES.items()} == BASES
    assert {type(error).__name__ for error, _, _ in EXAMPLES} == set(CLASSES)


def test_the_drawing_shows_each_class_at_its_place() -> None:
    drawn: dict[str, tuple[str, set[str]]] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│ ]*[├└]── )?([A-Z]\w+Error)(?: \((\w+)\))?(?:  |$)", line)
        if match:
            depth, name = len(match[1] or ""), match[2]
            parents = {above[depth - 4]} if depth else {"Exception"}
            drawn[name] = line, parents | ({match[3]} if match[3] else set())
            above[depth] = name
    assert {name: parents for name, (_, parents) in drawn.items()} == {
        name: {base.__name__ for base in bases} for name, bases in BASES.items()
    }


def test_page_shows_the_same_tree() -> None:
    tree = re.search(r"^SessionRepositoryError\n(?:[├└│].*\n)+", errors.__doc__ or "", re.MULTILINE)
    assert tree is not None
    assert tree[0] in PAGE


def test_page_describes_each_class_with_its_attributes() -> None:
    rows: dict[str, str] = dict(re.findall(r"^\| `(\w+Error)` \| ([^|]*) \| [^|]+ \| [^|]+ \|$", PAGE, re.MULTILINE))
    assert set(rows) == set(CLASSES) - {"SessionRepositoryError"}
    for error, attributes, _ in EXAMPLES:
        name = type(error).__name__
        assert set(re.findall(r"`(\w+)`", rows.get(name, ""))) == set(attributes), name


@pytest.mark.parametrize("error", [StorageError("why"), OutcomeUnknownError("why")])
def test_example_of_page_repeats_only_calls_that_wrote_nothing(error: SessionRepositoryError) -> None:
    example = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert example is not None
    queued: list[tuple[str, str]] = []
    repository = Mock(**{"append_log.side_effect": error})
    names = {
        "repository": repository,
        "session_id": "s1",
        "StorageError": StorageError,
        "queue_for_later": lambda *call: queued.append(call),
    }
    with pytest.raises(OutcomeUnknownError) if type(error) is OutcomeUnknownError else contextlib.nullcontext():
        exec(example[1], names)  # noqa: S102 (the page's own code)
    assert queued == ([("s1", "started")] if type(error) is StorageError else [])


def test_page_names_each_class_with_its_status_and_exit_code() -> None:
    table = PAGE[PAGE.index("## Other interfaces") :]
    assert set(re.findall(r"`(\w+Error)`", table)) == set(CLASSES) - {"SessionRepositoryError"}


def test_all_of_them_are_public() -> None:
    assert set(CLASSES) == {name for name in vars(errors) if name.endswith("Error")}
    assert set(CLASSES) <= set(vibeforge_sessions.__all__)
    for name, class_ in CLASSES.items():
        assert getattr(vibeforge_sessions, name) is class_


@pytest.mark.parametrize(("error", "attributes", "text"), EXAMPLES)
def test_what_an_error_carries_and_says(
    error: SessionRepositoryError, attributes: dict[str, object], text: str
) -> None:
    assert vars(error) == attributes
    assert str(error) == text


@pytest.mark.parametrize("session_id", ["a\nb", "\ud800", "'\"", "\x1b[31m", "é" * 1000])
def test_ids_are_shown_quoted(session_id: str) -> None:
    for error in (SessionNotFoundError(session_id), SessionExistsError(session_id), StaleSessionError(session_id, 1)):
        assert repr(session_id) in str(error)
        assert str(error).isprintable()


@pytest.mark.parametrize("error", [error for error, _, _ in EXAMPLES])
def test_an_error_survives_pickle_and_copy(error: SessionRepositoryError) -> None:
    error = copy.copy(error)
    error.add_note("a note")
    twins = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]  # noqa: S301
    for twin in (*twins, copy.copy(error), copy.deepcopy(error)):
        assert twin is not error
        assert describe(twin) == describe(error)


def test_errors_travel_between_processes() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for error, _, _ in EXAMPLES:
            assert describe(pool.submit(passed_on, error).result()) == describe(error)
            with pytest.raises(type(error)) as caught:
                pool.submit(raised, error).result()
            assert (str(caught.value), caught.value.args) == (str(error), error.args)
