"""Public names: `__all__`, the lazy tables, the API reference, and the modules that an import loads."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import vibeforge_sessions
from vibeforge_sessions import testing

PACKAGE = Path(vibeforge_sessions.__file__).parent
OURS = "vibeforge_sessions"

SOURCES = sorted(PACKAGE.rglob("*.py"))
WITH_ALL = [
    ".".join((OURS, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCES
    if "\n__all__ = " in path.read_text(encoding="utf-8")
]
PUBLIC = [OURS, *re.findall(r"^- `(.+)`$", vibeforge_sessions.__doc__ or "", re.MULTILINE)]
DESCRIBED_ELSEWHERE = {
    f"{OURS}.compat": {"Session", "SessionPhase"},
    f"{OURS}.sql": {"AsyncSQLAlchemySessionRepository", "SQLAlchemySessionRepository"},
    f"{OURS}.sql.migrate": {"SchemaStatus", "check_schema"},
}
"""Names that a public module exports, and that the page of another public module describes."""
REFERENCE = ROOT / "docs" / "reference"
PAGES = {path.stem: path.read_text("utf-8") for path in REFERENCE.glob("*.md") if path.stem != "index"}
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


def home_names(module: str) -> set[str]:
    """Return the names that the page of a public module describes."""
    return set(importlib.import_module(module).__all__) - DESCRIBED_ELSEWHERE.get(module, set())


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


def test_each_public_name_is_described_in_one_place() -> None:
    homes = Counter(name for module in PUBLIC for name in home_names(module))
    assert [name for name, count in homes.items() if count > 1] == []
    for module, names in DESCRIBED_ELSEWHERE.items():
        for name in names:
            assert homes[name] == 1, (module, name)


def test_lazy_tables_hold_the_names_of_all() -> None:
    assert vibeforge_sessions._LAZY.keys() == set(vibeforge_sessions.__all__)
    assert testing._LAZY.keys() == set(testing.__all__)
    for name, module in vibeforge_sessions._LAZY.items():
        assert getattr(importlib.import_module(module), name) is getattr(vibeforge_sessions, name)


@pytest.mark.parametrize("name", WITH_ALL)
def test_all_is_sorted_and_there(name: str) -> None:
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(set(module.__all__))
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


# --- reference ---


def test_reference_has_a_page_for_each_public_module() -> None:
    shown = {stem: re.findall(r"^::: (\S+)$", text, re.MULTILINE) for stem, text in PAGES.items()}
    assert shown == {module.removeprefix(f"{OURS}."): [module] for module in PUBLIC}


def test_index_and_navigation_list_each_page_of_the_reference() -> None:
    index = (REFERENCE / "index.md").read_text("utf-8")
    assert dict(re.findall(r"^\| \[(.+?)\]\((.+?)\.md\) \|", index, re.MULTILINE)) == {
        module: module.removeprefix(f"{OURS}.") for module in PUBLIC
    }
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    (pages,) = (section["API reference"] for section in site["nav"] if "API reference" in section)
    assert [path for page in pages for path in page.values()] == [
        "reference/index.md",
        *(f"reference/{module.removeprefix(f'{OURS}.')}.md" for module in PUBLIC),
    ]


@pytest.mark.parametrize("module", PUBLIC)
def test_page_with_a_list_of_names_lists_all_of_them(module: str) -> None:
    text = PAGES[module.removeprefix(f"{OURS}.")]
    listed = re.findall(r"^ {8}- (\w+)$", text, re.MULTILINE)
    assert listed == list(dict.fromkeys(listed))
    assert set(listed) in ([set(), home_names(module)] if module not in DESCRIBED_ELSEWHERE else [home_names(module)])
    for name in DESCRIBED_ELSEWHERE.get(module, ()):
        assert f"`{name}`" in text


def test_built_reference_describes_exactly_the_public_names(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    # the inventory: four lines of text, then a compressed line "name role priority address title" for each object
    lines = zlib.decompress((tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    described = {name: address for name, _role, _priority, address, _title in (line.split(" ", 4) for line in lines)}
    for module in PUBLIC:
        page = f"reference/{module.removeprefix(f'{OURS}.')}.html#$"
        names = {name for name, address in described.items() if address == page and name.rpartition(".")[0] == module}
        assert names - set(PUBLIC) == {f"{module}.{name}" for name in home_names(module)}


def test_names_in_the_documentation_are_public() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    imported = re.findall(rf"^from ({OURS}[\w.]*) import (?:\(([^)]*)\)|([^\n]*))", text, re.MULTILINE)
    assert len(imported) > 20
    for module, several, one in imported:
        for name in re.sub(r"#.*|\s", "", several or one).strip(",").split(","):
            is_name = name == "*" or (module in PUBLIC and name in importlib.import_module(module).__all__)
            assert is_name or f"{module}.{name}" in PUBLIC, f"from {module} import {name}"
    for dotted in re.findall(rf"`({OURS}(?:\.\w+)+)`", text):
        module, _, name = dotted.rpartition(".")
        is_name = module in PUBLIC and name in importlib.import_module(module).__all__
        assert is_name or any(f"{public}.".startswith(f"{dotted}.") for public in PUBLIC), dotted


def test_types_in_public_signatures_are_public() -> None:
    public = {name for module in PUBLIC for name in importlib.import_module(module).__all__}
    ours = {
        name
        for module in sys.modules.copy().values()
        if module.__name__.startswith(f"{OURS}.")
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__.startswith(f"{OURS}.")
    }
    missing = {
        (f"{module}.{name}", used)
        for module in PUBLIC
        for name in home_names(module)
        for annotation in _annotations(getattr(importlib.import_module(module), name))
        for used in re.findall(r"\w+", str(annotation))
        if used in ours and used not in public and not used.startswith("_")
    }
    assert missing <= {(f"{OURS}.archive.ArchiveWriter", "Source")}  # a protocol that each repository implements


def _annotations(value: Any) -> list[object]:
    """Return the annotations of a function, or of a class's public attributes and methods."""
    if not inspect.isclass(value):
        return list(getattr(inspect.unwrap(value), "__annotations__", {}).values()) if callable(value) else []
    members = [member for name, member in vars(value).items() if name == "__init__" or not name.startswith("_")]
    functions = [getattr(member, "__func__", getattr(member, "fget", member)) for member in members]
    fields = [note for name, note in vars(value).get("__annotations__", {}).items() if not name.startswith("_")]
    return [*fields, *(note for each in functions if inspect.isfunction(each) for note in _annotations(each))]


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
    assert {name for name in loaded if name.startswith(OURS)} == {OURS, f"{OURS}.pytest_plugin"}
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
