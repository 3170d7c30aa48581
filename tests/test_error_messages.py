"""Messages of all errors: what is wrong, and the next step; no values, URLs or passwords.

The table is read from the source: a row for each call of an error class with a message. Only the messages whose next
step is evident, and those that are computed elsewhere, are listed here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vibeforge_sessions
from vibeforge_sessions import errors

PACKAGE = Path(vibeforge_sessions.__file__).parent
PUBLIC = {name for name in vars(errors) if name.endswith("Error")}
REASONS = {"DamagedLineError", "ResolutionConflict", "UnresolvableOutcome"}
"""Exceptions of the package whose text becomes part of a public error."""
CHECKED = PUBLIC | REASONS | {"ImportError", "RuntimeError"}
IDS = {"SessionNotFoundError", "SessionExistsError", "StaleSessionError"}
"""Errors that make their message from an id and versions."""
MESSAGE_POSITIONS = dict.fromkeys(CHECKED - IDS, 0) | {"CorruptSessionError": 1}
"""Position of the message among the arguments of each checked class."""
PROPER_NAMES = {"AsyncSQLAlchemySessionRepository", "SQLite", "SQLite's"}
BAD_WORDS = re.compile(
    r"\b(somebody|nobody|whoever|told|tells?|anew|refuse[sd]?|refusal|ours|holds|please|(?<!there )is no)\b"
    r"|\b\w+n't\b|!",
    re.IGNORECASE,
)
SECRETS = re.compile(r"^(str\(|repr\()?(url|password|value|session|message|entry|document|engine\.url|bind|key)\)?$")
NEXT_STEP = re.compile(r"\bmust\b|[:;] \w+ \w+")

SELF_EVIDENT = {
    # a damaged line of an archive: its number is part of the message, and only another copy of the file helps
    "states a number of {kind} that differs from the header or from the chunks",
    "has no valid format version",
    "is not a chunk of {kind}",
    "is not a header of a session",
    "is not a line of an archive",
    "is not the closing line of this session",
    "is the header of a session that cannot be stored: {error}",
    # CorruptSessionError adds what to do
    "a document is not valid JSON text",
    "a value has a different type from its column",
    "its documents are missing",
    "the number of stored history entries differs from the count in its row",
    "the stored value of {path} is missing or not valid for {session_type.__name__}",
    # OutcomeUnknownError adds what to do
    "another writer has stored a session with this id, and the database does not show whether this one was stored",
    "another writer has since stored or deleted the session",
    "another writer has stored the session, and the database does not show whether this update was stored first",
    "the entry is not stored, but the server may still execute the statement",
    "the session was deleted, and the database does not show whether this update was stored first",
    "the session is not stored, and the database does not show whether it was deleted after the append",
    "the session was deleted and created again, and its earlier histories no longer exist",
    # the repository itself resolves the outcome again
    "another writer has since created the session",
    # the operating system's reason, or the database's code, says what to do
    "a file cannot be read or written: {os.strerror(error.errno or 0)}",
    "could not write {path}: {error.sqlite_errorname}",
    "could not write {path}: {error.strerror}",
    "{text}{LOST if lost else ''}",
    "{text}{type(error).__name__}",
    # pydantic's reason
    "{reason}{more}",
}
COMPUTED = {
    # the reason or text of another error of this table
    "error.reason",
    "str(error)",
    "str(result.reason)",
    # templates and texts that the functions around them build from checked parts
    "text",
}


def template(node: ast.expr, constants: dict[str, ast.expr]) -> str | None:
    """Return a message with its expressions in braces; None if it is not written as a text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
        return "".join(template(part, constants) or f"{{{ast.unparse(part)}}}" for part in parts)
    if isinstance(node, ast.BinOp):
        sides = (node.left, node.right)
        return "".join(template(side, constants) or f"{{{ast.unparse(side)}}}" for side in sides)
    if isinstance(node, ast.Name) and node.id in constants:
        return template(constants[node.id], constants)
    return None


def constants_in(source: str) -> dict[str, ast.expr]:
    """Return the values of a module's constants."""
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: node.value for node in assignments if isinstance(node.target, ast.Name) and node.value}


def name_of(function: ast.expr) -> str | None:
    """Return the name of a called function or class, without its module."""
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", None)


def forwarders_in(tree: ast.Module) -> dict[str, int]:
    """Return the functions that raise an error with one of their parameters as its message, and its position."""
    found = {}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        parameters = [parameter.arg for parameter in function.args.args]
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and (name := name_of(node.func)) in MESSAGE_POSITIONS:
                message = node.args[MESSAGE_POSITIONS[name]]
                if isinstance(message, ast.Name) and message.id in parameters:
                    found[function.name] = parameters.index(message.id)
    return found


def messages_in(source: str, constants: dict[str, ast.expr]) -> Iterator[tuple[int, str, str | None, str]]:
    """Yield line, class or function, message and source text of the message for each error with a message."""
    tree = ast.parse(source)
    forwarders = forwarders_in(tree)
    positions = MESSAGE_POSITIONS | forwarders
    inside = {
        id(call)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in forwarders
        for call in ast.walk(function)
    }
    for node in ast.walk(tree):
        name = name_of(node.func) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and name in positions:
            message = node.args[positions[name]]
            text = template(message, constants)
            if text is not None or id(node) not in inside:
                yield node.lineno, name, text, ast.unparse(message)


def problems_of(message: str | None, source: str) -> Iterator[str]:
    """Yield what is wrong with a message."""
    if message is None:
        if source not in COMPUTED:
            yield "is computed: write it as a text, or add its source to COMPUTED"
        return
    text = re.sub(r"\{[^{}]*\}", "…", message)
    first = text.split()[0]
    if first[0].isupper() and first not in PROPER_NAMES:
        yield "does not begin with a small letter"
    if text.rstrip() != text or text.endswith((".", ":", ";")):
        yield "ends with a punctuation mark or a space"
    if found := BAD_WORDS.search(text):
        yield f"contains {found[0]!r}"
    if secrets := [inserted for inserted in re.findall(r"\{([^{}]*)\}", message) if SECRETS.match(inserted)]:
        yield f"inserts {secrets[0]}, which may contain a value or a password"
    if not NEXT_STEP.search(message) and message not in SELF_EVIDENT:
        yield "has no next step: add it, or add the message to SELF_EVIDENT"


SOURCES = {
    str(path.relative_to(PACKAGE)): path.read_text("utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "errors.py"
}
CONSTANTS = {name: value for source in SOURCES.values() for name, value in constants_in(source).items()}
FOUND = [
    (f"{path}:{line}", name, message, text)
    for path, source in SOURCES.items()
    for line, name, message, text in messages_in(source, CONSTANTS | constants_in(source))
]


@pytest.mark.parametrize(("place", "name", "message", "source"), FOUND, ids=[place for place, *_ in FOUND])
def test_message_states_the_problem_and_the_next_step(place: str, name: str, message: str | None, source: str) -> None:
    problems = list(problems_of(message, source))
    assert problems == [], f"{place}: {name}: {message or source}"


def test_table_covers_the_package() -> None:
    assert len(FOUND) > 120
    assert {name for _, name, _, _ in FOUND} >= MESSAGE_POSITIONS.keys() - {"SessionRepositoryError"}
    used = {message for _, _, message, _ in FOUND}
    assert used >= SELF_EVIDENT
    assert {source for _, _, message, source in FOUND if message is None} == COMPUTED


@pytest.mark.parametrize(
    "error",
    [
        errors.SessionNotFoundError("s"),
        errors.SessionExistsError("s"),
        errors.StaleSessionError("s", 1),
        errors.StaleSessionError("s", 1, 2),
        errors.StaleSessionError("s", 1, 1),
        errors.StaleSessionError("s", 1, 0),
        errors.CorruptSessionError("s", "why"),
        errors.OutcomeUnknownError("why"),
    ],
)
def test_templates_state_the_next_step(error: errors.SessionRepositoryError) -> None:
    assert list(problems_of(str(error), "")) == []


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("Must be a text", "small letter"),
        ("must be a text.", "punctuation"),
        ("is refused: use a text", "'refused'"),
        ("is no text: use one", "'is no'"),
        ("must be a text, not {value}", "inserts value"),
        ("cannot connect to {str(url)}: check the URL", r"inserts str\(url\)"),
        ("the file is damaged", "no next step"),
        (None, "is computed"),
    ],
)
def test_rules_find_each_kind_of_problem(message: str | None, problem: str) -> None:
    found = list(problems_of(message, "compute()"))
    assert any(re.search(problem, each) for each in found), found


def test_messages_are_found_in_each_form() -> None:
    source = """
_TEXT: Final = "one: do it"
raise StorageError(_TEXT) from None
def fail(value):
    raise errors.CorruptSessionError(session_id, f"two {type(value).__name__}")
error = ConfigurationError("three " f"{name}" + four, "name")
raise ValueError("internal")
raise SessionNotFoundError(session_id)
def reject(path, reason):
    raise InvalidSessionError(reason, path)
reject("a", "four")
"""
    found = sorted((name, message) for _, name, message, _ in messages_in(source, constants_in(source)))
    assert found == [
        ("ConfigurationError", "three {name}{four}"),
        ("CorruptSessionError", "two {type(value).__name__}"),
        ("StorageError", "one: do it"),
        ("reject", "four"),
    ]
