"""Public names: `__all__`, the lazy tables, and the modules that an import loads."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vibeforge_sessions
from vibeforge_sessions import errors, testing

PACKAGE = Path(vibeforge_sessions.__file__).parent
OURS = "vibeforge_sessions"

SOURCES = sorted(PACKAGE.rglob("*.py"))
WITH_ALL = [
    ".".join((OURS, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCES
    if "\n__all__ = " in path.read_text(encoding="utf-8")
]
PUBLIC = [OURS, *re.findall(r"^- `(.+)`$", vibeforge_sessions.__doc__ or "", re.MULTILINE)]
EXTRAS = (
    "greenlet",
    "aiosqlite",
    "psycopg",
    "asyncpg",
    "pymysql",
    "asyncmy",
    "fastapi",
    "opentelemetry",
    "typer",
    "rich",
)


def fresh(code: str, folder: Path, **environment: str) -> Any:
    """Run code that prints JSON in a new interpreter, and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIBEFORGE_SESSIONS_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- names ---


def test_public_modules_have_all() -> None:
    assert set(PUBLIC) <= set(WITH_ALL)


def test_lazy_tables_hold_the_names_of_all() -> None:
    eager = {name for name in vibeforge_sessions.__all__ if hasattr(errors, name)}
    assert vibeforge_sessions._LAZY.keys() == set(vibeforge_sessions.__all__) - eager
    assert testing._LAZY.keys() == set(testing.__all__)
    for name, module in vibeforge_sessions._LAZY.items():
        assert getattr(importlib.import_module(module), name) is getattr(vibeforge_sessions, name)


@pytest.mark.parametrize("name", WITH_ALL)
def test_all_lists_existing_names_once(name: str) -> None:
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    for public in module.__all__:
        assert not public.startswith("_")
        assert hasattr(module, public)


def test_all_of_the_package_is_complete() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OURS)
        for alias in node.names
    }
    assert imported == set(vibeforge_sessions.__all__)  # those under TYPE_CHECKING are the lazy ones


@pytest.mark.parametrize("public", vibeforge_sessions.__all__)
def test_a_name_of_the_package_is_public_where_it_is_made(public: str) -> None:
    value = getattr(vibeforge_sessions, public)
    home = importlib.import_module(getattr(value, "__module__", OURS))
    if home.__name__ in WITH_ALL:
        assert public in home.__all__
        assert getattr(home, public) is value


@pytest.mark.parametrize("name", WITH_ALL)
def test_what_is_public_is_described(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        if not (inspect.isclass(value) or inspect.isroutine(value)) or not value.__module__.startswith(OURS):
            continue
        text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__  # a class's own, not its base's
        assert text, public
        assert not text.startswith(f"{public}("), f"{public} has only what dataclasses generate"
        for method, member in vars(value).items() if inspect.isclass(value) else ():
            if not method.startswith("_") and inspect.isroutine(getattr(value, method)) and not _is_test(method):
                assert inspect.getdoc(getattr(value, method)) or isinstance(member, type), f"{public}.{method}"


def _is_test(name: str) -> bool:
    return name.startswith("test_")


# --- imports ---


def test_all_names_can_be_imported_without_greenlet_and_extras(tmp_path: Path) -> None:
    code = f"""
import json, sys
for extra in {EXTRAS}:
    sys.modules[extra] = None  # importing it raises ModuleNotFoundError
from vibeforge_sessions import *
with open_repository("sqlite:///sessions.db", migrate=True) as repository:
    stored = repository.create_session().version
try:
    AsyncSQLAlchemySessionRepository(None)
except ImportError as error:
    print(json.dumps([sorted(set(globals()) & set({vibeforge_sessions.__all__})), stored, str(error)]))
"""
    names, stored, message = fresh(code, tmp_path)
    assert names == vibeforge_sessions.__all__
    assert stored == 1
    assert "pip install 'vibeforge-sessions[async]'" in message


@pytest.mark.parametrize(
    "name",
    [OURS, *(f"{OURS}.{room}" for room in ("model", "repository", "memory", "settings", "archive", "retention"))],
)
def test_importing_it_imports_no_database(name: str, tmp_path: Path) -> None:
    loaded = fresh(f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))", tmp_path)
    assert name in loaded
    assert {module.split(".")[0] for module in loaded}.isdisjoint({"sqlalchemy", "alembic", "mako", "sqlite3"})


def test_importing_compat_opens_nothing(tmp_path: Path) -> None:
    loaded = fresh(
        "import json, sys; from vibeforge_sessions.compat import *; print(json.dumps(sorted(sys.modules)))",
        tmp_path,
        VIBEFORGE_SESSIONS_DATABASE_URL="sqlite:///sessions.db",
        VIBEFORGE_SESSIONS_MIGRATE="1",
    )
    assert {module.split(".")[0] for module in loaded}.isdisjoint({"sqlalchemy", "alembic", "sqlite3"})
    assert list(tmp_path.iterdir()) == []


def test_pytests_plugin_imports_nothing_until_a_fixture_is_used(tmp_path: Path) -> None:
    code = "import json, sys, vibeforge_sessions.pytest_plugin; print(json.dumps(sorted(sys.modules)))"
    loaded = fresh(code, tmp_path)
    assert {name for name in loaded if name.startswith(OURS)} == {OURS, f"{OURS}.errors", f"{OURS}.pytest_plugin"}
    assert "pydantic" not in loaded


def test_lazy_names_are_shown_and_come_when_asked_for(tmp_path: Path) -> None:
    code = """
import json, sys, vibeforge_sessions as v
shown = dir(v)
before = "sqlalchemy" in sys.modules
lazy = v.SQLAlchemySessionRepository
from vibeforge_sessions import open_repository
from vibeforge_sessions.settings import open_repository as same
print(json.dumps([shown, before, lazy.__module__, open_repository is same, "sqlalchemy" in sys.modules]))
"""
    shown, before, home, same, after = fresh(code, tmp_path)
    assert set(vibeforge_sessions.__all__) <= set(shown)
    assert shown == sorted(set(shown))
    assert (before, home, same, after) == (False, "vibeforge_sessions.sql.repository", True, True)


@pytest.mark.parametrize("name", ["nothing", "Sessions", "__nothing__", "_nothing", ""])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'vibeforge_sessions' has no attribute '{name}'"):
        getattr(vibeforge_sessions, name)
    assert not hasattr(vibeforge_sessions, name)


def test_only_the_contract_requires_pytest(tmp_path: Path) -> None:
    code = """
import json, sys
sys.modules["pytest"] = sys.modules["_pytest"] = None  # importing them raises ModuleNotFoundError
from vibeforge_sessions import InMemorySessionRepository
from vibeforge_sessions.testing import track_unsaved_changes
session = (repository := track_unsaved_changes(InMemorySessionRepository())).create_session()
session.add_log("m")
(unsaved,) = repository.unsaved_changes()
try:
    from vibeforge_sessions.testing import SessionRepositoryContract
except ImportError as error:
    print(json.dumps([unsaved.fields, str(error)]))
"""
    fields, message = fresh(code, tmp_path)
    assert fields == ["logs"]
    assert "pip install 'vibeforge-sessions[testing]'" in message
